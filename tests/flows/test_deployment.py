"""The deployment of prefect.yaml on a real server, and a run of it by a real process worker."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from prefect_environments import Workspace
from tests.flows.parts import Run, define, unique
from tests.support.base import BaseLayout
from tests.support.registry import Registry

FILE = Path(__file__).parents[2] / "prefect.yaml"
DEPLOYMENT = "build-environment/build-environment"


def prefect(*arguments: str, folder: Path, **variables: str) -> str:
    """Run Prefect's command line; gives all that it prints. Fails with that if the command does."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def deployed(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The work pool `default`, and in it what prefect.yaml deploys, from a folder that holds nothing else."""
    folder = tmp_path_factory.mktemp("deploy")
    shutil.copy(FILE, folder)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="default", type="process"), overwrite=True)
    yield prefect("deploy", "--all", folder=folder)


def test_prefect_yaml_holds_nothing_that_deploying_would_expand() -> None:
    """`{{ … }}` would be replaced by a secret's value, and stored with the deployment."""
    text = FILE.read_text()
    assert "{{" not in text
    assert "$ref" not in text
    (deployment,) = yaml.safe_load(text)["deployments"]
    assert deployment["pull"] == []
    assert "parameters" not in deployment


def test_deploying_makes_a_form(deployed: str) -> None:
    """The deployment names the flow by its module, pulls nothing, and has the parameters that users fill in."""
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(DEPLOYMENT)
    assert found.entrypoint == "prefect_environments.flows.build.build_environment"
    assert not found.pull_steps
    assert (found.work_pool_name, found.tags, found.parameters) == ("default", ["environments"], {})
    assert found.enforce_parameter_schema
    assert found.parameter_openapi_schema is not None
    assert found.parameter_openapi_schema["required"] == ["environment", "workspace"]


def run_by_worker(parameters: dict[str, Any], folder: Path) -> Run:
    """Run the deployment with plain JSON by a process worker that ends after it."""
    created = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0)
    assert isinstance(created, FlowRun)
    folder.mkdir()
    started = prefect(
        *("worker", "start", "--pool", "default", "--type", "process", "--run-once", "--limit", "1"),
        folder=folder,
        PREFECT_LOGGING_LEVEL="INFO",
    )
    assert str(created.id) in started
    return Run(created.id)


@pytest.mark.xdist_group("worker")
def test_a_worker_builds_from_plain_json(
    deployed: str, base_layout: BaseLayout, wheels: Path, remote: Workspace, tmp_path: Path, open_registry: Registry
) -> None:
    """An environment as JSON and a reference to a saved workspace are enough; the version is registered."""
    remote.registry.save(unique("registry"))
    remote.save(unique("workspace"))
    definition = define(base_layout, wheels)
    parameters = {
        "environment": definition.model_dump(mode="json", exclude_defaults=True),
        "workspace": {"$ref": {"block_document_id": str(remote._block_document_id)}},
    }
    run = run_by_worker(parameters, tmp_path / "worker")
    assert run.run.state is not None
    text = run.messages("Finished in state")
    assert run.run.state.is_completed(), text
    assert run.run.name.startswith(f"build-{definition.name}-")
    (record,) = asyncio.run(remote.versions.versions(definition.name))
    assert record.created_by["flow_run_id"] == str(run.id)
    assert f"{definition.name} version 1 built: {record.reference}" in text
    assert record.reference.startswith(f"{open_registry.address}/")


@pytest.mark.xdist_group("worker")
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
    run = run_by_worker(parameters, tmp_path / "worker")
    assert run.run.state is not None
    assert run.run.state.is_failed()
    assert "--no-such-option" in str(run.run.state.message)
    assert run.tasks() == []
