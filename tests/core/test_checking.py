"""The check of what only core knows: ACR Tasks, and things that go wrong in ways that nobody thought of."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.azure.clouds import PUBLIC
from prefect_environments.core.build.acr_tasks.settings import TasksSettings
from prefect_environments.core.checking import check
from prefect_environments.core.findings import Finding, failures
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.versions import FolderVersionStore, VersionRecord
from tests.images.parts import Team
from tests.support.azure.parts import Azure, running_azure
from tests.support.azure.tasks import GROUP, REGISTRY, SUBSCRIPTION, Run, TasksServer
from tests.support.session import Session


@dataclass(frozen=True)
class Elsewhere(Team):
    """A workspace that builds by ACR Tasks."""

    acr_tasks: TasksSettings | None = None


@dataclass(frozen=True)
class Tasks:
    azure: Azure
    server: TasksServer


@pytest.fixture
def tasks(test_session: Session) -> Iterator[Tasks]:
    async def idle(run: Run) -> None:
        raise AssertionError("a check schedules no run")

    with (
        running_azure(test_session) as azure,
        TasksServer(azure.entra, azure.authority.server_context(), idle) as server,
    ):
        yield Tasks(azure, server)


def workspace(kind: type[Team], folder: Path, **fields: Any) -> Team:
    images = RegistrySettings(f"oci:{folder / 'images'}")
    # nothing listens there: the index is no matter of these tests, and nobody waits for it
    given = {"index_url": "http://127.0.0.1:9/simple", **fields}
    return kind(images, FolderVersionStore(folder / "versions", "team"), **given)


async def found(wanted: Team) -> dict[str, Finding]:
    return {one.name: one for one in await check(wanted)}


async def test_acr_tasks_are_asked_for_a_place_to_upload_and_schedule_nothing(tasks: Tasks, tmp_path: Path) -> None:
    cloud = replace(PUBLIC, authority_host=tasks.azure.entra.url, resource_manager=tasks.server.url)
    settings = TasksSettings(SUBSCRIPTION, GROUP, REGISTRY, tasks.azure.identity(cloud=cloud))
    wanted = workspace(Elsewhere, tmp_path, acr_tasks=settings)
    refused = (await found(wanted))["ACR Tasks"]
    assert not refused.ok and refused.required
    assert (
        f"the role Container Registry Tasks Contributor (or Contributor) on the registry {REGISTRY}" in refused.advice
    )
    tasks.server.grant(tasks.azure.app)
    allowed = await found(wanted)
    assert allowed["ACR Tasks"].ok, allowed["ACR Tasks"]
    assert "Docker engine" not in allowed
    assert [line for line in tasks.server.log if "scheduleRun" in line] == []
    assert tasks.azure.app.secret not in str(allowed)


async def test_what_nobody_thought_of_is_a_finding_too_and_the_others_are_still_there(tmp_path: Path) -> None:
    class Broken(FolderVersionStore):
        async def names(self) -> list[VersionRecord]:
            raise LookupError("no such thing")

    wanted = replace(workspace(Team, tmp_path), versions=Broken(tmp_path, "team"))
    seen = await found(wanted)
    assert seen["versions"].found == "LookupError: no such thing" and not seen["versions"].ok
    assert seen["registry"].ok
    assert {one.name for one in failures(seen.values())} == {"versions", "package index"}


def test_only_what_builds_need_counts_as_a_failure() -> None:
    one, other = Finding("a", False, "x", required=False), Finding("b", False, "y")
    assert failures([one, other, Finding("c", True, "z")]) == [other]
    assert [f.state for f in (one, other, Finding("c", True, "z"))] == ["missing", "failed", "ok"]
