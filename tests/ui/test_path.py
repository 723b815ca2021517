"""From a browser: somebody who never saw the code builds an environment, and trains in it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate

from prefect_environments import Workspace
from prefect_environments.blocks.versions import PrefectVersionStore
from prefect_environments.core.names import document_name
from prefect_environments.core.versions import VersionRecord
from tests.flows.parts import unique, wheel_folder
from tests.ui.browser import PrefectUI, browsing

SCRIPT = """\
import spam
from prefect_environments import Run
print("training with spam", spam.__version__)
Run.get_context().log("accuracy", 0.97)
"""

LISTED = 50
"""How many blocks a drop-down of the UI lists; further ones are found by typing."""


def _register_versions_of_others(count: int) -> None:
    """Versions that come first in the alphabet: one, and copies of its block."""
    team = unique("a-team")
    draft = VersionRecord(team, "iris", 0, "registry.example.com/iris@sha256:abc")
    asyncio.run(PrefectVersionStore(team).register(draft))
    with get_client(sync_client=True) as client:
        one = client.read_block_document_by_name(document_name(team, "iris", 1), "environment-version")
        ids = one.block_type_id, one.block_schema_id
        for number in range(2, count + 1):
            name = document_name(team, "iris", number)
            client.create_block_document(
                BlockDocumentCreate(name=name, data=one.data, block_type_id=ids[0], block_schema_id=ids[1])
            )


def parameters(run_id: str) -> dict[str, Any]:
    """What the form sent."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).parameters  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(900)  # seconds on a quiet machine, and several minutes on one that others use
def test_from_a_form_to_a_version_to_a_job_in_it(
    prefect_server: str, workspace: Workspace, deployments: dict[str, str], tmp_path: Path
) -> None:
    """Pasted requirements become a version with its package table; it is in the job's drop-down, also beside more
    versions than that lists; the log has the script's lines. The same requirements as a list give the same image."""
    _register_versions_of_others(LISTED)
    name = unique("iris")
    options = ["--no-index", f"--find-links {wheel_folder(tmp_path / 'wheels')}"]
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train.py").write_text(SCRIPT)
    with browsing(prefect_server.removesuffix("/api")) as ui:
        pasted = "\r\n".join(["\ufeff# what we train with", *options, "", "spam==1.0  # and its eggs", "ham", ""])
        ui.open_form(deployments["build-environment"])
        _build(ui, workspace, name, pasted)
        ui.until_shown(f"{name} version 1 built")
        ui.until_shown("Completed")
        ui.tab("Artifacts")
        ui.until_shown("4 of 4 packages")
        _sees_the_package_table(ui, name, workspace)
        ui.open_form(deployments["build-environment"])
        rows = _build(ui, workspace, name, [*options, "spam==1.0", "ham"])
        ui.open_form(deployments["run-training-job"])
        _train(ui, workspace, f"{workspace.name}--{name}--v1", tmp_path)
        ui.until_shown("training with spam 1.0")
        ui.until_shown("ended well")
        ui.open_artifact("metrics-")
        ui.until_shown("0.97")
        ui.open_run(rows)
        ui.until_shown(f"{name} version 1 reused")
        assert parameters(rows)["environment"]["requirements"] == [*options, "spam==1.0", "ham"]


def _build(ui: PrefectUI, workspace: Workspace, name: str, requirements: str | list[str]) -> str:
    first = ui.labels()[1:6]
    assert first == ["workspace", "environment", "Name", "Base Image (Optional)", "Requirements (Optional)"]
    ui.choose("workspace", workspace.name)
    ui.write("Name", name)
    if isinstance(requirements, str):
        ui.write("Requirements", requirements)
    else:
        ui.field("Requirements").get_by_role("tab", name="List").click()
        ui.add_rows("Requirements", requirements)
    return ui.submit()


def _sees_the_package_table(ui: PrefectUI, name: str, workspace: Workspace) -> None:
    ui.open_artifact(f"environment-{name}")
    ui.page.get_by_role("heading", name=f"{name} version 1").wait_for()
    table = ui.page.get_by_role("table").filter(has_text="Layer").last
    for package in ("spam 1.0", "eggs 2.0", "ham 3.0", "pip 26.1"):
        table.get_by_role("row", name=package).wait_for()
    assert f"{workspace.registry_settings.address}/{workspace.repository_path(name)}@sha256:" in ui.text()


def _train(ui: PrefectUI, workspace: Workspace, version: str, folder: Path) -> None:
    assert ui.labels()[1:5] == ["workspace", "environment (Optional)", "config", "Script (Optional)"]
    ui.choose("workspace", workspace.name)
    ui.choose("environment", version)
    ui.write("Script", "train.py")
    ui.write("Source Directory", str(folder / "source"))
    ui.write("Compute Target", "local:process")
    ui.write("outputs_directory", str(folder / "jobs"))
    ui.submit()
