"""A registered version is announced, and the automation of prefect.yaml trains in it: a real server, a real worker."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Pending

from prefect_environments import Workspace
from prefect_environments.blocks import events
from prefect_environments.blocks.versions import PrefectVersionStore
from prefect_environments.core.names import slug
from prefect_environments.core.versions import VersionRecord
from prefect_environments.flows import build_environment
from tests.faults.proxy import Rule, lose_reply, proxy_to, stall, status
from tests.flows.parts import Run, define, prefect, unique
from tests.support.base import BaseLayout

FILE = Path(__file__).parents[2] / "prefect.yaml"
DIGEST = f"sha256:{'ab' * 32}"
EVENT = "prefect-environments.environment.registered"


def draft(workspace: str, name: str = "Iris.2", record_hash: str = "r1", **others: Any) -> VersionRecord:
    reference = f"registry.example.com/environments/iris@{DIGEST}"
    return VersionRecord(workspace, name, 0, reference, DIGEST, record_hash=record_hash, **others)


def announced(resource: str) -> list[dict[str, Any]]:
    """The events of an environment that the server keeps, in their order, the one of version 99 the last of them."""
    wanted = {"resource": {"id": [resource]}, "event": {"name": [EVENT]}, "order": "ASC"}
    for _ in range(300):
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
        if any(event["payload"]["version"] == 99 for event in found):
            return sorted(found, key=lambda event: int(event["payload"]["version"]))
        time.sleep(0.1)
    raise AssertionError(f"the server has no event of {resource}")


async def test_each_new_version_is_announced_once_and_an_old_one_never() -> None:
    """Name, number, image and workspace are all that the event tells, whatever else the version has."""
    store = PrefectVersionStore(unique("Team.A"))
    hidden: dict[str, Any] = {
        "environment_variables": {"TOKEN": "secret:token"},
        "description": "hidden",
        "tags": {"a": "hidden"},
    }
    one = await store.register(draft(store.workspace, **hidden))
    assert await store.register(draft(store.workspace, **hidden)) == one
    await store.register(draft(store.workspace, record_hash="r2"))
    await events.announce(replace(one, version=99))
    resource = f"prefect-environments.environment.{slug(store.workspace)}.iris-2"
    first, second, last = await asyncio.to_thread(announced, resource)
    assert first["payload"] == {
        "name": "Iris.2",
        "version": 1,
        "reference": f"registry.example.com/environments/iris@{DIGEST}",
        "digest": DIGEST,
        "workspace": store.workspace,
    }
    assert (second["payload"]["version"], last["payload"]["version"]) == (2, 99)
    assert first["resource"]["prefect.resource.name"] == "Iris.2"
    assert "hidden" not in json.dumps(first) and "secret:" not in json.dumps(first)


async def test_it_is_announced_also_where_the_answer_to_writing_it_was_lost(prefect_server: str) -> None:
    """Prefect's client writes it again and is told that it exists: it is our own version, not somebody else's."""
    workspace = unique("Lost")
    upstream = prefect_server.removeprefix("http://").removesuffix("/api")
    await PrefectVersionStore(workspace).register(draft(workspace, "other"))  # the block type is known from here on
    async with proxy_to(upstream, Rule(r"^POST /api/block_documents/$", lose_reply)) as proxy:
        with temporary_settings({PREFECT_API_URL: f"http://{proxy.address}/api"}):
            record = await PrefectVersionStore(workspace).register(draft(workspace))
        assert (record.version, len(proxy.hits)) == (1, 1)
    await events.announce(replace(record, version=99))
    resource = f"prefect-environments.environment.{slug(workspace)}.iris-2"
    found = await asyncio.to_thread(announced, resource)
    assert [event["payload"]["version"] for event in found] == [1, 99]


@pytest.mark.parametrize("fault", [status(500), status(404), stall], ids=["fails", "is unknown", "never answers"])
async def test_a_version_counts_also_where_the_event_fails(
    prefect_server: str, fault: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is registered, and a warning says what does not happen now."""
    monkeypatch.setattr(events, "_PATIENCE", 0.5)
    workspace = unique("Mute")
    upstream = prefect_server.removeprefix("http://").removesuffix("/api")
    async with proxy_to(upstream, Rule(r"^POST /api/events$", fault, times=None)) as proxy:
        settings = {PREFECT_API_URL: f"http://{proxy.address}/api", PREFECT_CLIENT_MAX_RETRIES: 0}
        with temporary_settings(settings), caplog.at_level(logging.WARNING, events.__name__):
            record = await PrefectVersionStore(workspace).register(draft(workspace))
        assert len(proxy.hits) == 1
    assert await PrefectVersionStore(workspace).get("Iris.2", 1) == record
    assert "Iris.2 version 1 is registered, but its event" in caplog.text


@dataclass(frozen=True)
class Training:
    """The deployment `train-new-version` under a name of its own, its automation switched on for one environment."""

    name: str
    queue: str

    def runs(self) -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(f"run-training-job/{self.name}")
            wanted = DeploymentFilter(id=DeploymentFilterId(any_=[found.id]))
            return client.read_flow_runs(deployment_filter=wanted)


def deploy_training(folder: Path, workspace: Workspace, environment: str, command: str) -> Training:
    """Deploy what prefect.yaml has, changed as its comment tells users to."""
    content = yaml.safe_load(FILE.read_text("utf-8"))
    (deployment,) = [found for found in content["deployments"] if found["name"] == "train-new-version"]
    training = Training(unique("train"), unique("queue"))
    (trigger,) = deployment["triggers"]
    resource = f"prefect-environments.environment.{slug(workspace.name)}.{slug(environment)}"
    trigger |= {"enabled": True, "match": {"prefect.resource.id": resource}, "name": training.name}
    trigger["parameters"]["config"] |= {"command": command, "compute_target": "local:process", "outputs": ""}
    block = f"environments-workspace/{workspace._block_document_name}"
    trigger["parameters"]["workspace"]["$ref"]["block_document_slug"] = block
    deployment |= {"name": training.name, "work_pool": {"name": "default", "work_queue_name": training.queue}}
    folder.mkdir()
    (folder / "prefect.yaml").write_text(yaml.safe_dump({**content, "deployments": [deployment]}), "utf-8")
    prefect("deploy", "--all", folder=folder)
    return training


def test_registering_a_version_starts_a_job_in_it(
    deployed: str, base_layout: BaseLayout, wheels: Path, remote: Workspace, tmp_path: Path
) -> None:
    """From the build to the worker's job in the new image; finding the same image again starts nothing."""
    definition = define(base_layout, wheels, "spam")
    remote.registry.save(unique("registry"))
    remote.save(unique("workspace"))
    command = "python -c 'import spam; print(\"trained with spam\", spam.__version__)'"
    training = deploy_training(tmp_path / "deploy", remote, definition.name, command)
    ready = build_environment(definition, remote)
    build_environment(definition, remote)
    deadline = time.monotonic() + 60
    while not (runs := training.runs()) and time.monotonic() < deadline:
        time.sleep(0.1)
    (run,) = runs
    assert run.parameters["config"]["environment"] == f"{definition.name}:1"
    slug_of_block = f"environments-workspace/{remote._block_document_name}"
    assert run.parameters["workspace"] == {"$ref": {"block_document_slug": slug_of_block}}
    worker = ["worker", "start", "--pool", "default", "--type", "process", "--run-once"]
    folder = tmp_path / "worker"
    folder.mkdir()
    prefect(*worker, "--work-queue", training.queue, folder=folder, PREFECT_LOGGING_LEVEL="INFO")
    said = Run(run.id).messages("Finished in state")
    assert f"running in {definition.name} version 1: {ready.reference}" in said
    assert "trained with spam 1.0" in said
    (again,) = training.runs()
    assert again.state is not None and again.state.is_completed(), said


def test_one_job_at_a_time_the_next_one_waits(deployed: str) -> None:
    """The deployment's limit as the server keeps it: a worker that asks for a second run is told to come later."""
    config = {"environment": "none:1", "command": "true"}
    workspace = {"$ref": {"block_document_slug": f"environments-workspace/{unique('none')}"}}
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("run-training-job/train-new-version").id
        given = {"config": config, "workspace": workspace}
        one, two = (
            client.create_flow_run_from_deployment(deployment, parameters=given, work_queue_name=unique("queue"))
            for _ in range(2)
        )
        first: State[Any] | None = client.set_flow_run_state(one.id, Pending()).state
        second: State[Any] | None = client.set_flow_run_state(two.id, Pending()).state
        client.set_flow_run_state(one.id, Completed(), force=True)
        client.set_flow_run_state(two.id, Completed(), force=True)
    assert first is not None and first.is_pending()
    assert second is not None and second.name == "AwaitingConcurrencySlot"
