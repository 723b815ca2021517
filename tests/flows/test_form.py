"""The forms that the UI makes from the flows' parameters."""

import inspect
from typing import Any

import pytest
from prefect import flow
from prefect.utilities.callables import parameter_schema

from prefect_environments import EnvironmentDefinition
from prefect_environments.flows import build_environment, run_training_job
from prefect_environments.flows.form import ask_in_order

SCHEMA: dict[str, Any] = build_environment.parameters.model_dump()
ENVIRONMENT: dict[str, Any] = SCHEMA["definitions"]["EnvironmentDefinition"]


def test_parameters_stand_in_the_order_of_use_with_titles_and_texts() -> None:
    found = sorted(SCHEMA["properties"].items(), key=lambda item: item[1]["position"])
    assert [name for name, _ in found] == ["workspace", "environment", "upgrade", "force", "image_hash"]
    assert SCHEMA["required"] == ["workspace", "environment"]
    for name, field in found:
        assert field["title"], name
        assert field["description"].endswith("."), name


def test_the_environment_is_one_flat_field_set_and_the_usual_fields_come_first() -> None:
    """No nested model and no `X | None`, which costs users a click for each field. Requirements are a text or rows."""
    assert SCHEMA["properties"]["environment"]["$ref"] == "#/definitions/EnvironmentDefinition"
    assert list(ENVIRONMENT["properties"])[:3] == ["name", "base_image", "requirements"]
    assert ENVIRONMENT["required"] == ["name"]
    choices = {"anyOf", "oneOf", "allOf", "$ref"}
    assert [name for name, field in ENVIRONMENT["properties"].items() if choices & set(field)] == ["requirements"]
    assert [found["title"] for found in ENVIRONMENT["properties"]["requirements"]["anyOf"]] == ["Text", "List"]


@pytest.mark.parametrize("name", list(EnvironmentDefinition.model_fields))
def test_every_field_of_the_environment_says_what_it_is(name: str) -> None:
    field = ENVIRONMENT["properties"][name]
    assert field["title"]
    assert len(field["description"]) > 15


def test_the_workspace_is_a_list_of_saved_blocks() -> None:
    workspace = SCHEMA["definitions"]["Workspace"]
    assert workspace["block_type_slug"] == "environments-workspace"
    assert SCHEMA["properties"]["workspace"]["$ref"] == "#/definitions/Workspace"


def test_a_training_job_asks_for_workspace_and_version_first_and_both_are_lists_of_blocks() -> None:
    """The version is optional, and yet takes no click to get at: there is no tab `None` in front of the list."""
    schema = parameter_schema(run_training_job).model_dump()
    assert sorted(schema["properties"], key=lambda name: schema["properties"][name]["position"]) == [
        *("workspace", "environment", "config", "outputs_directory")
    ]
    assert schema["required"] == ["workspace", "config"]
    version = schema["properties"]["environment"]
    assert version["$ref"] == "#/definitions/EnvironmentVersion" and "anyOf" not in version
    assert schema["definitions"]["EnvironmentVersion"]["block_type_slug"] == "environment-version"
    tabs = schema["definitions"]["ScriptRunConfig"]["properties"]
    assert [found["title"] for found in tabs["command"]["anyOf"]] == ["Text", "Words"]
    assert tabs["environment"]["anyOf"][0]["title"] == "Name"


@pytest.mark.parametrize("given", [build_environment, run_training_job])
def test_the_order_of_a_form_changes_no_call(given: Any) -> None:
    """What deploying reads is the form's order; the function keeps its own."""
    order = list(given.parameters.properties)
    assert order == list(parameter_schema(given).properties)
    assert order[0] == "workspace" and set(order) == set(inspect.signature(given.fn).parameters)
    assert list(inspect.signature(given.fn).parameters)[1] == "workspace"


def test_a_form_that_forgets_a_parameter_is_refused() -> None:
    @flow
    def shelf(books: int, name: str = "") -> None:
        """Nothing."""

    with pytest.raises(TypeError, match="asks for"):
        ask_in_order(shelf, "books")
