"""The check of what only core knows: ACR Tasks, and things that go wrong in ways that nobody thought of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from prefect_environments.core.azure.clouds import PUBLIC
from prefect_environments.core.build.acr_tasks.settings import TasksSettings
from prefect_environments.core.checking import check
from prefect_environments.core.findings import Finding, failures
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.versions import FolderVersionStore, VersionRecord
from tests.core.lock.test_feeds import login_of, serving
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
        async def names(self, *, archived: bool = False) -> list[VersionRecord]:
            raise LookupError("no such thing")

    wanted = replace(workspace(Team, tmp_path), versions=Broken(tmp_path, "team"))
    seen = await found(wanted)
    assert seen["versions"].found == "LookupError: no such thing" and not seen["versions"].ok
    assert seen["registry"].ok
    assert {one.name for one in failures(seen.values())} == {"versions", "package index"}


@dataclass(frozen=True)
class Fed(Team):
    """A workspace with further feeds."""

    feeds: tuple[str, ...] = ("more",)
    logins: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    async def feed_credentials(self) -> Mapping[str, tuple[str, str]]:
        return self.logins


async def test_each_further_feed_is_asked_with_its_own_login_and_no_page_is_no_proof(tmp_path: Path) -> None:
    """They are on one host, with a login each."""
    words = {"/a": "ann:of-a", "/b": "bob:of-b", "/none": "eve:of-eve"}

    async def answer(request: web.Request) -> web.StreamResponse:
        if login_of(request) != words[request.path]:
            return web.Response(status=401)
        return web.Response(status=404 if request.path == "/none" else 200)

    async with serving(answer) as server:
        logins = {f"{server.url}{path}": (word[:3], word[4:]) for path, word in words.items()}
        seen = (await found(workspace(Fed, tmp_path, logins=logins)))["private feeds"]
        assert seen.ok, seen
        assert f"{server.url}/a let us in; {server.url}/b let us in" in seen.found
        assert (
            f"{server.url}/none answers HTTP 404, so it is not known whether it takes user and password" in seen.found
        )
        logins[f"{server.url}/b"] = ("bob", "planted-wrong-word")
        seen = (await found(workspace(Fed, tmp_path, logins=logins)))["private feeds"]
    assert not seen.ok and f"{server.url}/b refused user and password (HTTP 401)" in seen.found
    assert "planted-wrong-word" not in str(seen)


def test_only_what_builds_need_counts_as_a_failure() -> None:
    one, other = Finding("a", False, "x", required=False), Finding("b", False, "y")
    assert failures([one, other, Finding("c", True, "z")]) == [other]
    assert [f.state for f in (one, other, Finding("c", True, "z"))] == ["missing", "failed", "ok"]
