"""The form that the UI makes from the flow's parameters."""

from typing import Any

import pytest

from prefect_environments import EnvironmentDefinition
from prefect_environments.flows import build_environment

SCHEMA: dict[str, Any] = build_environment.parameters.model_dump()
ENVIRONMENT: dict[str, Any] = SCHEMA["definitions"]["EnvironmentDefinition"]


def test_parameters_stand_in_the_order_of_use_with_titles_and_texts() -> None:
    found = sorted(SCHEMA["properties"].items(), key=lambda item: item[1]["position"])
    assert [name for name, _ in found] == ["environment", "workspace", "upgrade", "force"]
    assert SCHEMA["required"] == ["environment", "workspace"]
    for name, field in found:
        assert field["title"], name
        assert field["description"].endswith("."), name


def test_the_environment_is_one_flat_field_set_and_the_usual_fields_come_first() -> None:
    """No nested model and no `X | None`, which costs users a click for each field."""
    assert SCHEMA["properties"]["environment"]["$ref"] == "#/definitions/EnvironmentDefinition"
    assert list(ENVIRONMENT["properties"])[:3] == ["name", "base_image", "requirements"]
    assert ENVIRONMENT["required"] == ["name"]
    for name, field in ENVIRONMENT["properties"].items():
        assert not {"anyOf", "oneOf", "allOf", "$ref"} & set(field), name


@pytest.mark.parametrize("name", list(EnvironmentDefinition.model_fields))
def test_every_field_of_the_environment_says_what_it_is(name: str) -> None:
    field = ENVIRONMENT["properties"][name]
    assert field["title"]
    assert len(field["description"]) > 15


def test_the_workspace_is_a_list_of_saved_blocks() -> None:
    workspace = SCHEMA["definitions"]["Workspace"]
    assert workspace["block_type_slug"] == "environments-workspace"
    assert SCHEMA["properties"]["workspace"]["$ref"] == "#/definitions/Workspace"
