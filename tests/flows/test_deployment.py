"""The deployments of prefect.yaml on a real server, and runs of them by a real process worker."""

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.utilities.importtools import import_object
from pydantic import SecretStr

from prefect_environments import ContainerRegistry, Workspace
from prefect_environments.blocks.events import REGISTERED
from prefect_environments.flows import build_environment
from tests.flows.parts import DEPLOYMENT, Run, define, prefect, run_by_worker, unique
from tests.support.base import BaseLayout
from tests.support.registry import Registry

FILE = Path(__file__).parents[2] / "prefect.yaml"
CONTENT = yaml.safe_load(FILE.read_text("utf-8"))


class Deployed(NamedTuple):
    """What the server keeps of a deployment: itself and its automations, as JSON."""

    found: dict[str, Any]
    automations: list[dict[str, Any]]


def stored(name: str) -> Deployed:
    """The deployment `flow/deployment`."""
    flow, _, deployment = name.partition("/")
    by_name = {"flow_name": flow, "deployment_name": deployment}
    with get_client(sync_client=True) as client:
        found = client.request("GET", "/deployments/name/{flow_name}/{deployment_name}", path_params=by_name).json()
        about = {"resource_id": f"prefect.deployment.{found['id']}"}
        automations = client.request("GET", "/automations/related-to/{resource_id}", path_params=about).json()
    return Deployed(found, automations)


@pytest.mark.parametrize("deployment", CONTENT["deployments"], ids=lambda found: str(found["name"]))
def test_every_deployment_is_on_the_server_as_the_file_has_it(deployed: str, deployment: dict[str, Any]) -> None:
    """Without questions, on a server that had a work pool and nothing else."""
    flow = import_object(deployment["entrypoint"])
    found, automations = stored(f"{flow.name}/{deployment['name']}")
    assert (found["entrypoint"], found["pull_steps"], found["parameters"]) == (deployment["entrypoint"], [], {})
    assert (found["tags"], found["work_pool_name"]) == (deployment["tags"], "default")
    limit = deployment.get("concurrency_limit", {})
    assert (found["global_concurrency_limit"] or {}).get("limit") == limit.get("limit")
    assert (found["concurrency_options"] or {}).get("collision_strategy") == limit.get("collision_strategy")
    kept = [(one["slug"], one["active"], one["parameters"]) for one in found["schedules"]]
    assert kept == [(one["slug"], False, one["parameters"]) for one in deployment.get("schedules", ())]
    for automation, trigger in zip(automations, deployment.get("triggers", ()), strict=True):
        assert automation["enabled"] is False
        assert automation["trigger"]["expect"] == [REGISTERED]
        assert automation["actions"][0]["parameters"] == trigger["parameters"]


def deploy_for(block: str, folder: Path) -> dict[str, str]:
    """Deploy what names a workspace under names of its own, for another workspace; the new names by the old ones."""
    content = yaml.safe_load(FILE.read_text("utf-8").replace("environments-workspace/default", block))
    kept = [one for one in content["deployments"] if one["schedules"] or "triggers" in one]
    names = {one["name"]: unique("copy") for one in kept}
    for one in kept:
        one["name"] = names[one["name"]]
    folder.mkdir()
    (folder / "prefect.yaml").write_text(yaml.safe_dump({**content, "deployments": kept}), "utf-8")
    prefect("deploy", "--all", folder=folder)
    return names


def test_the_workspace_of_the_schedule_stays_a_reference_and_is_read_at_night(
    deployed: str, base_layout: BaseLayout, wheels: Path, basic_registry: Registry, tmp_path: Path
) -> None:
    """Its registry has a password, of which deploying stores nothing; a worker that gets the schedule's parameters
    signs in with it."""
    password = SecretStr(basic_registry.password)
    registry = ContainerRegistry(address=basic_registry.address, username=basic_registry.username, password=password)
    registry.save(unique("registry"))
    workspace = Workspace(name=unique("Night"), registry=registry, repository_prefix=unique("night"))
    workspace.save(saved := unique("workspace"))
    block = f"environments-workspace/{saved}"
    ready = build_environment(define(base_layout, wheels), workspace)

    names = deploy_for(block, tmp_path / "deploy")
    nightly = f"build-environments/{names['build-environments']}"
    for name in (nightly, f"run-training-job/{names['train-new-version']}"):
        text = json.dumps(stored(name))
        assert block in text
        assert basic_registry.password not in text and basic_registry.address not in text

    parameters = stored(nightly).found["schedules"][0]["parameters"]
    queue = unique("queue")
    created = run_deployment(nightly, parameters=parameters, timeout=0, work_queue_name=queue)
    assert isinstance(created, FlowRun)
    worker = ["worker", "start", "--pool", "default", "--type", "process", "--run-once", "--work-queue", queue]
    prefect(*worker, folder=tmp_path, PREFECT_LOGGING_LEVEL="INFO")
    run = Run(created.id)
    said = run.messages("Finished in state")
    assert run.run.state is not None and run.run.state.is_completed(), said
    assert run.run.parameters["workspace"] == {"$ref": {"block_document_slug": block}}
    assert ready.name in str([artifact.data for artifact in run.artifacts("table")])


def test_deploying_makes_a_form(deployed: str) -> None:
    """The deployment names the flow by its module, pulls nothing, and has the parameters that users fill in."""
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(DEPLOYMENT)
    assert found.entrypoint == "prefect_environments.flows.build.build_environment"
    assert not found.pull_steps
    assert (found.work_pool_name, found.tags, found.parameters) == ("default", ["environments"], {})
    assert found.enforce_parameter_schema
    assert found.parameter_openapi_schema is not None
    assert found.parameter_openapi_schema["required"] == ["workspace", "environment"]


def test_a_worker_builds_from_plain_json(
    deployed: str, base_layout: BaseLayout, wheels: Path, remote: Workspace, tmp_path: Path
) -> None:
    """An environment as JSON and a reference to a saved workspace are enough; the version is registered."""
    remote.registry.save(unique("registry"))
    remote.save(unique("workspace"))
    definition = define(base_layout, wheels)
    parameters = {
        "environment": definition.model_dump(mode="json", exclude_defaults=True),
        "workspace": {"$ref": {"block_document_id": str(remote._block_document_id)}},
    }
    run, _ = run_by_worker(parameters, tmp_path / "worker")
    assert run.run.state is not None
    text = run.messages("Finished in state")
    assert run.run.state.is_completed(), text
    assert run.run.name.startswith(f"build-{definition.name}-")
    (record,) = asyncio.run(remote.versions.versions(definition.name))
    assert record.created_by["flow_run_id"] == str(run.id)
    assert f"{definition.name} version 1 built: {record.reference}" in text
    assert record.reference.startswith(f"{remote.registry_settings.address}/")


def test_a_wrong_definition_fails_the_workers_run_with_our_message(
    deployed: str, base_layout: BaseLayout, wheels: Path, local: Workspace, tmp_path: Path
) -> None:
    """What the form let through is refused by the definition's own checks, before any task."""
    local.save(unique("workspace"))
    definition = define(base_layout, wheels).model_dump(mode="json", exclude_defaults=True)
    parameters = {
        "environment": {**definition, "requirements": ["--no-such-option"]},
        "workspace": {"$ref": {"block_document_id": str(local._block_document_id)}},
    }
    run, _ = run_by_worker(parameters, tmp_path / "worker")
    assert run.run.state is not None
    assert run.run.state.is_failed()
    assert "--no-such-option" in str(run.run.state.message)
    assert run.tasks() == []
