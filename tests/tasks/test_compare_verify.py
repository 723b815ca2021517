"""Comparing and verifying as tasks: artifacts of the run, and an error where something is wrong."""

import json
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import flow, task
from prefect.client.schemas.objects import FlowRun

from prefect_environments import Environment, Workspace
from prefect_environments.core.compare import VersionDiff
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import VerificationError, VersionNotFound
from prefect_environments.core.verify import Verification
from prefect_environments.tasks import (
    build_image,
    compare_versions,
    register_environment,
    resolve_environment,
    verify_environment,
)
from prefect_environments.tasks.provenance import current_origin, origin_of
from tests.flows.parts import Run, define
from tests.support.base import BaseLayout


def registered(workspace: Workspace, definition: EnvironmentDefinition) -> str:
    lock = resolve_environment(definition, workspace)
    register_environment(definition, build_image(definition, lock, workspace), workspace)
    return definition.name


@pytest.fixture
def name(local: Workspace, base_layout: BaseLayout, wheels: Path) -> str:
    """An environment with two versions: a package and a variable more."""
    first = define(base_layout, wheels, "spam")
    registered(local, first)
    more = {"requirements": ("spam", "ham"), "environment_variables": {"LEVEL": "high-value"}}
    return registered(local, define(base_layout, wheels, name=first.name, **more))


def test_a_flow_shows_what_differs_between_two_versions(name: str, local: Workspace) -> None:
    @flow(persist_result=False)
    def own() -> VersionDiff:
        return compare_versions(name, local, 1, 2)

    state = own(return_state=True)
    found = state.result()
    (artifact,) = Run(state.state_details.flow_run_id).artifacts("markdown")
    assert artifact.data == found.to_markdown()
    assert "+ ham 3.0\n+ variable LEVEL" in str(artifact.data) and "high-value" not in str(artifact.data)
    assert found.layers is not None and found.layers.only_b == 1 and found.layers.shared >= 5


def test_a_notebook_compares_and_verifies_without_any_flow(name: str, local: Workspace) -> None:
    found = Environment.compare(local, name, 1)
    assert (found.a, found.b) == (1, 2) and "# " in found._repr_markdown_()
    assert Environment.compare(local, name, 2, 2).changes == ()
    assert Environment.verify(local, name, 1).ok
    with pytest.raises(VersionNotFound, match="no version 3"):
        Environment.compare(local, name, 1, 3)


def test_a_flow_verifies_and_fails_where_something_is_wrong_with_all_checks_in_its_table(
    name: str, local: Workspace
) -> None:
    @flow(persist_result=False)
    def own() -> Verification:
        return verify_environment(name, local, full=True, rebuild=True)

    state = own(return_state=True)
    assert state.result().ok
    blobs = Path(local.registry_settings.folder or "") / "blobs/sha256"
    layer = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    content = layer.read_bytes()
    layer.unlink()  # a layout links files of others: only this name may lead to other bytes
    layer.write_bytes(content[:-1] + b"?")
    state = own(return_state=True)
    with pytest.raises(VerificationError, match="1 of 12 checks failed: contents"):
        state.result()
    (table,) = Run(state.state_details.flow_run_id).artifacts("table")
    rows = {row["check"]: row["state"] for row in json.loads(str(table.data))}
    assert len(rows) == 12 and [check for check, shown in rows.items() if shown != "ok"] == ["contents"]
    assert "1 checks failed" in str(table.description)


def test_what_a_flow_run_registers_can_name_the_run() -> None:
    """In a flow and in its tasks; outside of one there is none, and a server without users has no user."""

    @task
    def inside() -> dict[str, object]:
        return current_origin()

    @flow(persist_result=False, flow_run_name="my-run")
    def own() -> list[dict[str, object]]:
        return [current_origin(), inside(), inside.submit().result()]

    state = own(return_state=True)
    wanted = {"flow_run_id": str(state.state_details.flow_run_id), "flow_run_name": "my-run", "flow_name": "own"}
    assert state.result() == [wanted] * 3
    assert current_origin() == {}


def test_the_user_or_automation_that_started_a_run_is_named_where_prefect_knows_it() -> None:
    for kind, key in (("USER", "user"), ("AUTOMATION", "automation"), (None, "user")):
        told = {"flow_id": uuid4(), "name": "r", "created_by": {"type": kind, "display_value": "ann"}}
        assert origin_of(FlowRun.model_validate(told))[key] == "ann"
