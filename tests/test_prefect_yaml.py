"""prefect.yaml: nothing in it that `prefect deploy` would expand to a secret's value, and every flow is there."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_environments import flows

TEXT = (Path(__file__).parents[1] / "prefect.yaml").read_text("utf-8")
CONTENT: dict[str, Any] = yaml.safe_load(TEXT)
DEPLOYMENTS: list[dict[str, Any]] = CONTENT["deployments"]
EXPANDED = re.compile(r"\{\{|\$ref|@Microsoft\.KeyVault|secret:[a-z0-9-]|prefect\.(blocks|variables)|\$[A-Z{]")
"""What deploying replaces by a value and stores in plain text (`{{ prefect.blocks.… }}`, `{{ $VARIABLE }}`), and
references that belong into blocks."""

WORKSPACE = {"$ref": {"block_document_slug": "environments-workspace/default"}}
"""The one reference that deploying leaves as it is: of a whole block, by its slug (by an id, it would be expanded)."""
OF_THE_EVENT = re.compile(r"\{\{ event\.payload\.(name|version|reference|digest|workspace) \}\}")
"""What deploying leaves as it is in a trigger's parameters: the server fills it in when the event happens."""


def words(value: Any, *, event: bool = False) -> list[str]:
    """Every key and value in a document, but for whole references to a workspace, and for an event's payload where
    `event` says that it is filled in later."""
    if value == WORKSPACE:
        return []
    if isinstance(value, dict):
        return [word for pair in value.items() for one in pair for word in words(one, event=event)]
    if isinstance(value, list):
        return [word for one in value for word in words(one, event=event)]
    return [OF_THE_EVENT.sub("", str(value)) if event else str(value)]


def expanded(content: dict[str, Any]) -> list[str]:
    """What of a prefect.yaml would be expanded."""
    found = []
    for deployment in content["deployments"]:
        triggers = deployment.get("triggers", ())
        found += words({**deployment, "triggers": [{**one, "parameters": ""} for one in triggers]})
        for trigger in triggers:
            found += words(trigger.get("parameters"), event=True)
    found += words({**content, "deployments": []})
    return [word for word in found if EXPANDED.search(word)]


def test_nothing_would_be_expanded_when_it_is_deployed() -> None:
    assert expanded(CONTENT) == []
    commented = [line for line in TEXT.splitlines() if line.strip().startswith("#")]
    assert "{{" not in "".join(commented)  # somebody takes it for an example


@pytest.mark.parametrize(
    "line",
    [
        "password: '{{ prefect.blocks.secret.registry }}'",
        "password: '{{prefect.variables.x}}'",
        "password: '{{ $REGISTRY_PASSWORD }}'",
        "password: secret:registry",
        "workspace: {$ref: {block_document_id: x}}",
        "workspace: {$ref: {block_document_slug: environments-workspace/default, block_document_id: x}}",
        "password: {$ref: {block_document_slug: secret/registry}}",
        "env: ['@Microsoft.KeyVault(VaultName=a;SecretName=b)']",
        "name: '{{ event.payload.name }} {{ prefect.blocks.secret.registry }}'",
        "name: '{{ event.payload.name | upper }}'",
        "name: '{{ event.resource.name }}'",
        "'{{ event }}': name",
    ],
)
@pytest.mark.parametrize("place", ["file", "deployment", "trigger", "parameters"])
def test_the_control_each_way_of_writing_one_is_found(line: str, place: str) -> None:
    """Wherever it stands, also in the parameters of a trigger."""
    planted = yaml.safe_load(line)
    trigger = planted if place == "trigger" else {"parameters": {"deep": planted if place == "parameters" else 1}}
    deployment = {"name": "a", "triggers": [trigger], **(planted if place == "deployment" else {})}
    content = {"deployments": [deployment], **(planted if place == "file" else {})}
    assert expanded(content) != []


@pytest.mark.parametrize("place", ["match", "name", "job_variables"])
def test_the_control_an_event_is_for_parameters_only(place: str) -> None:
    """Deploying removes it elsewhere, and in job variables nobody fills it in."""
    trigger = {place: {"a": "{{ event.payload.name }}"}, "parameters": {"fine": "{{ event.payload.name }}"}}
    assert expanded({"deployments": [{"triggers": [trigger]}]}) == ["{{ event.payload.name }}"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda found: str(found["name"]))
def test_a_deployment_names_a_flow_by_its_module_and_pulls_nothing(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), name)
    assert deployment["name"] in (flow.name, "train-new-version")
    assert deployment["pull"] == [] and "job_variables" not in deployment["work_pool"]
    assert "schedules" in deployment  # else `prefect deploy` asks for some on a terminal
    assert deployment["description"].endswith(".")


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda found: str(found["name"]))
def test_nothing_runs_by_itself_until_somebody_switches_it_on(deployment: dict[str, Any]) -> None:
    assert all(schedule["active"] is False for schedule in deployment.get("schedules", ()))
    assert all(trigger["enabled"] is False for trigger in deployment.get("triggers", ()))


def test_all_flows_are_deployed() -> None:
    deployed = {found["name"] for found in DEPLOYMENTS}
    assert {name.replace("_", "-") for name in flows.__all__} <= deployed


def test_parameters_that_are_given_are_parameters_of_the_flow() -> None:
    """Those of schedules and triggers, the job's config among them."""
    from prefect_environments import ScriptRunConfig

    for deployment in DEPLOYMENTS:
        module, _, name = deployment["entrypoint"].rpartition(".")
        known = set(getattr(import_module(module), name).parameters.properties)
        for starts in (*deployment.get("schedules", ()), *deployment.get("triggers", ())):
            assert set(starts["parameters"]) <= known
            if "config" in starts["parameters"]:
                filled = OF_THE_EVENT.sub("1", str(starts["parameters"]["config"]["environment"]))
                assert ScriptRunConfig(**{**starts["parameters"]["config"], "environment": filled}).words
