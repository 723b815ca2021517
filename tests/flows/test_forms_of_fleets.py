"""The forms of the flows that look after many environments: what stands in them, and in which order."""

from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from prefect_environments.flows import (
    build_environments,
    promote_environment,
    prune_environments,
    refresh_environments,
)
from prefect_environments.flows.check import check_workspace

ASKED = {
    build_environments: ["workspace", "environments", "folder", "upgrade", "concurrency", "deployment"],
    check_workspace: ["workspace", "deleting"],
    promote_environment: ["source", "name", "version", "target", "label", "target_name"],
    prune_environments: ["workspace", "dry_run", "policy"],
    refresh_environments: [
        *("workspace", "names", "policy", "approval_hours", "label", "exclude_newer_days", "allow_undated")
    ],
}


@pytest.mark.parametrize("flow", ASKED, ids=lambda flow: flow.name)
def test_a_form_asks_for_what_counts_first_and_says_what_each_field_is(flow: Flow[..., Any]) -> None:
    """Blocks are drop-downs, no field has a tab `None`, and each text is a sentence."""
    schema = parameter_schema(flow).model_dump()
    fields = sorted(schema["properties"].items(), key=lambda item: item[1]["position"])
    assert [name for name, _ in fields] == ASKED[flow]
    for name, field in fields:
        assert field["description"].endswith("."), name
        assert {"type": "null"} not in field.get("anyOf", []), name
    blocks = {name for name, field in fields if field.get("$ref") == "#/definitions/Workspace"}
    assert blocks == {"workspace", "source", "target"} & set(ASKED[flow])


def test_the_policy_of_a_refresh_says_what_each_choice_does() -> None:
    field = parameter_schema(refresh_environments).model_dump()["properties"]["policy"]
    assert [choice for choice in field["enum"] if choice not in field["description"]] == []
