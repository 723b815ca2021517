"""`refresh_environments` on a real server: what a run shows, and how it waits for somebody's approval."""

import json
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment

from prefect_environments import Workspace
from prefect_environments.core import loop
from prefect_environments.core.compare import compare
from prefect_environments.core.errors import DefinitionError, NameNotAllowed
from prefect_environments.core.refresh.outcome import RefreshOutcome
from prefect_environments.flows import approval, build_environments, refresh_environments
from tests.flows.parts import Run, define, prefect, unique
from tests.support.base import BaseLayout
from tests.support.wheels import make_wheel


def outcomes(state: State[Any]) -> dict[str, RefreshOutcome]:
    found = state.result()
    assert all(isinstance(one, RefreshOutcome) for one in found)
    return {one.name: one for one in found}


@pytest.fixture
def team(base_layout: BaseLayout, wheels: Path, local: Workspace) -> tuple[Workspace, str, str]:
    """A workspace with two environments of which both have drifted, and their names."""
    one, two = sorted((define(base_layout, wheels, "ham"), define(base_layout, wheels, "ham")), key=lambda e: e.name)
    build_environments(local, [one, two])
    make_wheel(wheels, "ham", "3.1")
    return local, one.name, two.name


def test_drift_is_reported_by_a_run_that_completes(team: tuple[Workspace, str, str], wheels: Path) -> None:
    """Its message has the count, an artifact the diff, a table a row for each; nothing is registered."""
    workspace, one, two = team
    state = refresh_environments(workspace, return_state=True)
    assert (state.name, state.message) == ("Completed", "2 drifted")
    run = Run(state.state_details.flow_run_id)
    (diff,) = run.artifacts("markdown")
    assert f"### {one} 1\n\n```diff\n~ ham 3.0 → 3.1\n```" in str(diff.data)
    (table,) = run.artifacts("table")
    assert [(row["environment"], row["status"]) for row in json.loads(str(table.data))] == [
        (one, "drifted"),
        (two, "drifted"),
    ]
    assert [record.version for record in loop.run(workspace.versions.names())] == [1, 1]


def test_by_the_policy_build_the_next_versions_are_registered_with_a_label(team: tuple[Workspace, str, str]) -> None:
    workspace, one, two = team
    state = refresh_environments(workspace, "build", names=[two], label="staging", return_state=True)
    assert state.message == "1 built"
    run = Run(state.state_details.flow_run_id)
    assert {name: found.new_version for name, found in outcomes(state).items()} == {two: 2}
    record = loop.run(workspace.versions.get(two, 2))
    assert record.created_by["flow_run_id"] == str(run.id)
    assert loop.run(workspace.versions.book(two)).life.labels == {"staging": 2}
    assert loop.run(workspace.versions.book(one)).numbers == (1,)


def test_bad_input_is_refused_before_anything_is_looked_at(local: Workspace) -> None:
    for wrong, error in (
        ({"label": "v7"}, NameNotAllowed),
        ({"approval_hours": 0}, DefinitionError),
        ({"exclude_newer_days": -1}, DefinitionError),
    ):
        with pytest.raises(error):
            refresh_environments(local, **wrong)


# ---- approval


class Waiting:
    """A run that waits for approval, by its id, or by its name until there is one."""

    def __init__(self, name: str = "", run: Run | None = None) -> None:
        self.name = name
        self.run = run

    def find(self) -> FlowRun | None:
        if self.run is not None:
            return self.run.run
        wanted = FlowRunFilter(name=FlowRunFilterName(like_=self.name))
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(flow_run_filter=wanted)
        return found[0] if found else None

    def until(self, holds: Callable[[FlowRun], bool]) -> FlowRun:
        for _ in range(600):
            run = self.find()
            if run is not None and holds(run):
                return run
            assert run is None or run.state is None or not run.state.is_final(), run.state
            time.sleep(0.2)
        raise AssertionError(f"{self.name} came to {run and run.state}")

    def form(self) -> tuple[FlowRun, dict[str, Any], str]:
        """The paused run, its form's schema and its text, as the UI reads them."""
        run = self.until(lambda run: run.state is not None and run.state.is_paused())
        assert run.state is not None and run.state.state_details.run_input_keyset
        keys = run.state.state_details.run_input_keyset
        found: dict[str, Any] = {}
        for kind in ("schema", "description"):
            for _ in range(100):  # it is written a moment after the state
                with get_client(sync_client=True) as client:
                    rows = client.filter_flow_run_input(run.id, keys[kind], limit=1, exclude_keys=set())
                if rows:
                    found[kind] = rows[0].decoded_value
                    break
                time.sleep(0.1)
        return run, found["schema"], found["description"]

    def answer(self, run: FlowRun, **given: Any) -> str:
        """Resume the run as the UI's form does; gives what the server says of it."""
        with get_client(sync_client=True) as client:
            return str(client.resume_flow_run(run.id, given).status.value)


class InThread(Waiting):
    """A run without a deployment, which is paused: its process waits."""

    def __init__(self, workspace: Workspace, **options: Any) -> None:
        super().__init__(unique("refresh"))
        self.states: list[State[Any]] = []
        self.thread = threading.Thread(
            target=copy_context().run, args=(self._run, workspace, options), name=self.name, daemon=True
        )
        self.thread.start()

    def _run(self, workspace: Workspace, options: dict[str, Any]) -> None:
        flow = refresh_environments.with_options(flow_run_name=self.name)
        self.states.append(flow(workspace, "approve", return_state=True, **options))

    def state(self) -> State[Any]:
        self.thread.join(120)
        return self.states[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused run looks for its answer often."""
    monkeypatch.setattr(approval, "_EVERY", 1)


def test_a_run_pauses_and_builds_only_what_was_chosen_as_it_was_seen(
    team: tuple[Workspace, str, str], wheels: Path
) -> None:
    """The form shows the diff and takes no other name; a release that comes while it waits is not built."""
    workspace, one, two = team
    run = InThread(workspace)
    paused, schema, text = run.form()
    assert paused.state is not None and paused.state.name == "Paused"
    assert schema["properties"]["environments"]["items"]["enum"] == [one, two]
    assert schema["properties"]["environments"]["default"] == [one, two]
    assert schema["required"] == ["decision"]
    assert f"### {one} 1\n\n```diff\n~ ham 3.0 → 3.1\n```" in text
    assert run.answer(paused, decision="build", environments=["another"]) == "REJECT"
    make_wheel(wheels, "ham", "3.2")
    assert run.answer(paused, decision="build", environments=[two], reason="patch day") == "ACCEPT"
    state = run.state()
    assert state.message == "1 refused, 1 built"
    found = outcomes(state)
    assert {name: (x.status, x.new_version, x.reason) for name, x in found.items()} == {
        one: ("refused", 0, "refused: patch day"),
        two: ("built", 2, ""),
    }
    assert found[two].changes == ("~ ham 3.0 → 3.1",)
    record = loop.run(workspace.versions.get(two, 2))
    assert (record.created_by["reason"], record.created_by["refreshed_from"]) == ("patch day", 1)
    assert loop.run(workspace.versions.book(one)).numbers == (1,)


@pytest.mark.usefixtures("run_logs")
def test_a_refusal_ends_the_run_well_and_is_kept_with_it(team: tuple[Workspace, str, str]) -> None:
    workspace, one, two = team
    run = InThread(workspace)
    paused, _, _ = run.form()
    assert run.answer(paused, decision="refuse", environments=[one, two], reason="frozen for the release") == "ACCEPT"
    state = run.state()
    assert (state.name, state.message) == ("Completed", "2 refused")
    (table,) = Run(paused.id).artifacts("table")
    assert {row["reason"] for row in json.loads(str(table.data))} == {"refused: frozen for the release"}
    assert f"{one} 1 refused: frozen for the release" in Run(paused.id).messages("2 environments: 2 refused")
    assert [record.version for record in loop.run(workspace.versions.names())] == [1, 1]


def test_without_drift_nobody_is_asked(base_layout: BaseLayout, wheels: Path, local: Workspace) -> None:
    build_environments(local, [define(base_layout, wheels, "ham")])
    state = refresh_environments(local, "approve", return_state=True)
    assert (state.name, state.message) == ("Completed", "1 unchanged")


@pytest.mark.usefixtures("run_logs")
def test_a_run_that_nobody_answers_ends_with_a_word_about_it(
    team: tuple[Workspace, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour is a second here."""
    monkeypatch.setattr(approval, "_HOUR", 1)
    workspace, _, _ = team
    state = refresh_environments(workspace, "approve", approval_hours=3, return_state=True)
    assert state.is_failed() and "never resumed" in str(state.message)
    said = "nobody decided within 3 hours, and nothing was built; refresh again"
    assert said in Run(state.state_details.flow_run_id).messages(said)
    assert [record.version for record in loop.run(workspace.versions.names())] == [1, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("deployed")
def test_a_deployed_run_is_suspended_and_goes_on_in_another_process(
    base_layout: BaseLayout, wheels: Path, remote: Workspace, tmp_path: Path
) -> None:
    """No worker waits with it, and what comes out meanwhile is not built. Only one look was taken."""
    remote.registry.save(unique("registry"))
    block = remote.save(unique("workspace"))
    wanted = define(base_layout, wheels, "ham")
    build_environments(remote, [wanted])
    make_wheel(wheels, "ham", "3.1")
    queue = unique("queue")
    parameters = {"workspace": {"$ref": {"block_document_id": str(block)}}, "policy": "approve"}
    created = run_deployment(
        "refresh-environments/refresh-environments", parameters=parameters, timeout=0, work_queue_name=queue
    )
    assert isinstance(created, FlowRun)
    command = ["worker", "start", "--pool", "default", "--type", "process", "--run-once", "--work-queue", queue]
    prefect(*command, folder=tmp_path)
    run = Waiting(run=Run(created.id))
    paused, schema, _ = run.form()
    assert paused.state is not None and paused.state.name == "Suspended"
    assert schema["properties"]["environments"]["items"]["enum"] == [wanted.name]
    make_wheel(wheels, "ham", "3.2")
    assert run.answer(paused, decision="build", environments=[wanted.name]) == "ACCEPT"
    name = paused.name
    prefect(*command, folder=tmp_path)
    ended = run.until(lambda run: run.state is not None and run.state.is_final())
    assert ended.state is not None and ended.name == name
    assert (ended.state.name, ended.state.message) == ("Completed", "1 built")
    assert [one.name.partition("-")[0] for one in Run(created.id).tasks()] == ["find", "build"]
    diff = compare(remote, wanted.name, 1, 2)
    assert [str(change) for change in diff.changes] == ["~ ham 3.0 → 3.1"]
