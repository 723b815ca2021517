"""The deployment of prefect.yaml on a real server, and a run of it by a real process worker."""

import asyncio
from pathlib import Path

import yaml
from prefect.client.orchestration import get_client

from prefect_environments import Workspace
from tests.flows.parts import DEPLOYMENT, define, run_by_worker, unique
from tests.support.base import BaseLayout

FILE = Path(__file__).parents[2] / "prefect.yaml"


def test_prefect_yaml_holds_nothing_that_deploying_would_expand() -> None:
    """`{{ … }}` would be replaced by a secret's value, and stored with the deployment."""
    text = FILE.read_text()
    assert "{{" not in text
    assert "$ref" not in text
    for deployment in yaml.safe_load(text)["deployments"]:
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
