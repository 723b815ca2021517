"""The flow that promotes, between two saved workspaces on a real Prefect server."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from prefect import State
from pydantic import SecretStr

from prefect_environments import ContainerRegistry, Workspace
from prefect_environments.core import loop
from prefect_environments.core.errors import VersionNotFound
from prefect_environments.core.promotion import Promotion
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.version_record import VersionRecord
from prefect_environments.flows import build_environment, promote_environment
from prefect_environments.tasks import get_environment, promote_version, set_label
from prefect_environments.tasks.promote import promotion_markdown
from tests.flows.parts import Run, define, unique
from tests.support.base import BaseLayout
from tests.support.registry import Registry

PASSWORD = "planted-91c0de77"


@pytest.fixture
def dev(prefect_server: str, open_registry: Registry) -> Workspace:
    return saved("Dev", open_registry)


@pytest.fixture
def prod(prefect_server: str, fresh_registry: Registry) -> Workspace:
    return saved("Prod", fresh_registry)


def saved(kind: str, registry: Registry) -> Workspace:
    """A workspace as it is loaded from its block; the registry ignores the password."""
    block = ContainerRegistry(address=registry.address, plain_http=True, username="ann", password=SecretStr(PASSWORD))
    block.save(unique("registry"))
    workspace = Workspace(name=unique(kind), registry=block, repository_prefix=unique("environments"))
    name = unique(kind.lower())
    workspace.save(name)
    found = Workspace.load(name)
    assert isinstance(found, Workspace)
    return found


def test_a_labelled_version_becomes_production_of_another_workspace(
    base_layout: BaseLayout, wheels: Path, dev: Workspace, prod: Workspace, run_logs: None
) -> None:
    """The result, the version with its origin and the run that made it, the label, and what the run shows; passwords of
    neither registry are in it."""
    definition = define(base_layout, wheels)
    name = definition.name
    built = build_environment(definition, dev)
    assert isinstance(built, ReadyImage)
    set_label(name, "staging", dev)
    state: State[ReadyImage] = promote_environment(
        name, dev, prod, version="staging", label="production", return_state=True
    )
    ready = state.result()
    assert isinstance(ready, ReadyImage)
    run = Run(state.state_details.flow_run_id)
    assert ready.digest == built.digest and ready.reference.startswith(prod.registry.settings().address)
    assert ready.version == 1 and ready.layers_new > 0 and not ready.reused and ready.bytes_sent > 0
    version = get_environment(name, prod, label="production").to_record()
    assert version.reference == ready.reference
    assert (version.origin["workspace"], version.origin["version"]) == (dev.name, 1)
    assert version.created_by["flow_run_id"] == str(run.id)
    (progress,) = run.artifacts("progress")
    (report,) = run.artifacts("markdown")
    assert progress.data == 100
    assert f"| From | {name} version 1 of {dev.name} |" in str(report.data)
    assert "copied through the worker" in str(report.data) and "| Label | production |" in str(report.data)
    said = run.messages(f"{name} version 1 of {prod.name} registered")
    assert "layers were there" in said
    shown = json.dumps([run.run.model_dump(mode="json"), str(report.data), said, *map(str, run.tasks())])
    assert PASSWORD not in shown and name in shown

    again = promote_version(name, dev, prod, 1)
    assert not again.is_new and again.record == version
    with pytest.raises(VersionNotFound, match="no version 2"):
        promote_version(name, dev, prod, 2)
    assert [one.version for one in loop.run(prod.versions.versions(name))] == [1]


def test_the_form_asks_in_the_order_in_which_people_think() -> None:
    """From where, what, to where; the version is one text field, and empty takes the newest."""
    schema = promote_environment.parameters
    fields = sorted(schema.properties.items(), key=lambda item: item[1]["position"])
    assert [name for name, _ in fields] == ["source", "name", "version", "target", "label", "target_name"]
    assert schema.required == ["source", "name", "target"]
    version = schema.properties["version"]
    assert version["default"] == "" and version["anyOf"][0]["type"] == "string"
    assert all(field["description"] for _, field in fields)


def test_the_report_says_what_is_different_in_the_target() -> None:
    record = VersionRecord("prod", "iris", 4, "registry.example.com/iris@sha256:abc", size=2_000_000)
    done = Promotion(record, replace(record, workspace="dev", version=9), how="stays", notes=("it extends base:1",))
    text = promotion_markdown(done)
    assert text.startswith("# iris version 4 of prod\n") and text.endswith("\n\nit extends base:1")
    assert "| From | iris version 9 of dev |" in text and "| Image | stays where it is" in text
    assert "| Version | was registered already |" in text and "Label" not in text
    assert str(done) == "promoted from dev, iris version 9"
