"""prefect.yaml: nothing in it that `prefect deploy` would expand to a secret's value, and every flow is there."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

TEXT = (Path(__file__).parents[1] / "prefect.yaml").read_text("utf-8")
CONTENT: dict[str, Any] = yaml.safe_load(TEXT)
EXPANDED = re.compile(r"\{\{|\$ref|@Microsoft\.KeyVault|secret:[a-z0-9-]|prefect\.(blocks|variables)|\$[A-Z{]")
"""What deploying replaces by a value and stores in plain text (`{{ prefect.blocks.… }}`, `{{ $VARIABLE }}`), and
references that belong into blocks."""


def words(value: Any) -> list[str]:
    """Every key and value in a document."""
    if isinstance(value, dict):
        return [word for pair in value.items() for one in pair for word in words(one)]
    if isinstance(value, list):
        return [word for one in value for word in words(one)]
    return [str(value)]


def test_nothing_would_be_expanded_when_it_is_deployed() -> None:
    assert [word for word in words(CONTENT) if EXPANDED.search(word)] == []
    assert "{{" not in TEXT  # nor in a comment that somebody takes for an example


@pytest.mark.parametrize(
    "line",
    [
        "password: '{{ prefect.blocks.secret.registry }}'",
        "password: '{{prefect.variables.x}}'",
        "password: '{{ $REGISTRY_PASSWORD }}'",
        "password: secret:registry",
        "workspace: {$ref: {block_document_id: x}}",
        "env: ['@Microsoft.KeyVault(VaultName=a;SecretName=b)']",
    ],
)
def test_the_control_each_way_of_writing_one_is_found(line: str) -> None:
    assert [word for word in words(yaml.safe_load(line)) if EXPANDED.search(word)] != []


@pytest.mark.parametrize("deployment", CONTENT["deployments"], ids=lambda found: str(found["name"]))
def test_a_deployment_names_a_flow_by_its_module_and_pulls_nothing(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), name)
    assert flow.name == deployment["name"]
    assert deployment["pull"] == [] and "parameters" not in deployment and "job_variables" not in deployment
    assert deployment["description"].endswith(".")


def test_the_flows_that_are_run_from_the_ui_are_deployed() -> None:
    assert {"build-environment", "check-workspace"} <= {found["name"] for found in CONTENT["deployments"]}
