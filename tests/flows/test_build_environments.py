"""Many environments as a flow: what it gives, what the run shows, and builds by runs of a deployment."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.states import Crashed

from prefect_environments import ContainerRegistry, Workspace
from prefect_environments.core import loop
from prefect_environments.core.errors import DefinitionError, RegistryUnreachable
from prefect_environments.core.fleet.outcome import FleetOutcome
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import VersionRecord
from prefect_environments.flows import build_environments
from prefect_environments.tasks import check_images
from prefect_environments.tasks.dispatch import open_dispatcher
from tests.flows.parts import DEPLOYMENT, Run, define, unique
from tests.images.parts import requests_of
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.session import end
from tests.support.wheels import make_wheel


def outcomes(found: object) -> list[FleetOutcome]:
    assert isinstance(found, list)
    assert all(isinstance(one, FleetOutcome) for one in found)
    return found


def statuses(found: object) -> dict[str, str]:
    return {one.name: one.status for one in outcomes(found)}


def rows(run: Run, key: str) -> list[dict[str, Any]]:
    (table,) = (found for found in run.artifacts("table") if str(found.key).startswith(key))
    return list(json.loads(str(table.data)))


def lose_image(workspace: Workspace, name: str) -> None:
    """Take an environment's manifests out of the registry, as somebody who cleans up does."""

    async def work() -> None:
        async with open_site(workspace) as site:
            repository = site.repository(name)
            for tag in await repository.tags():
                found = await repository.find_manifest(tag)
                assert found is not None
                await repository.delete_manifest(found.digest)

    loop.run(work())


def test_a_folder_is_built_and_one_failure_stops_no_other(
    base_layout: BaseLayout, wheels: Path, remote: Workspace, tmp_path: Path
) -> None:
    """The run fails at its end and says why; the table has a row for each, failures first; the rest is registered."""
    folder = tmp_path / "specifications"
    folder.mkdir()
    options = f"--no-index\n--find-links {wheels}\n"
    good, bad, odd = unique("good"), unique("bad"), unique("odd")
    (folder / f"{good}.txt").write_text(f"{options}spam\n")
    (folder / f"{bad}.txt").write_text(f"{options}no-such-package\n")
    (folder / f"{odd}.txt").write_text("--no-such-option\n")
    workspace = remote.model_copy(update={"default_base_image": base_layout.reference})
    state = build_environments(workspace, folder=str(folder), return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("1 built, 2 failed. ")
    assert "no-such-option" in str(state.message)
    run = Run(state.state_details.flow_run_id)
    table = rows(run, "environments-")
    assert [row["status"] for row in table] == ["failed", "failed", "built"]
    assert [row["environment"] for row in table] == [bad, odd, good]
    assert "no-such-package" in table[0]["reason"]
    assert table[2]["image"].startswith(f"{remote.registry.settings().address}/")
    (progress,) = run.artifacts("progress")
    assert progress.data == 100
    assert progress.description == "2 of 2 environments: 1 built, 1 failed"
    assert [record.name for record in loop.run(remote.versions.names())] == [good]


def test_equal_environments_share_one_image_and_are_found_again(
    base_layout: BaseLayout, wheels: Path, local: Workspace
) -> None:
    """Each name has its own version; in the second run nothing is left to do."""
    several = [define(base_layout, wheels) for _ in range(3)]
    cold = outcomes(build_environments(local, several))
    assert sorted(one.status for one in cold) == ["built", "reused", "reused"]
    assert [(one.name, one.version) for one in cold] == [(one.name, 1) for one in several]
    assert len({one.image_hash for one in cold}) == 1
    assert set(statuses(build_environments(local, several)).values()) == {"ready"}


def test_without_a_list_what_the_registry_lost_is_built_again(
    base_layout: BaseLayout, wheels: Path, remote: Workspace, open_registry: Registry
) -> None:
    """The status is one request for each environment; the lost one is built as it was, under the same version."""
    there, lost = define(base_layout, wheels, "spam"), define(base_layout, wheels, "ham")
    first = {one.name: one for one in outcomes(build_environments(remote, [there, lost]))}
    lose_image(remote, lost.name)
    with requests_of(open_registry) as seen:
        found = {one.name: one for one in check_images(remote)}
    assert len([line for line in seen if remote.repository_prefix in line]) == 2  # others use the registry, too
    assert {name: one.state for name, one in found.items()} == {there.name: "there", lost.name: "missing"}
    assert "build_environments" in found[lost.name].reason
    assert [one.name for one in check_images(remote, [there.name])] == [there.name]
    again = {one.name: one for one in outcomes(build_environments(remote))}
    assert {name: one.status for name, one in again.items()} == {there.name: "ready", lost.name: "built"}
    assert {one.reference for one in again.values()} == {one.reference for one in first.values()}
    assert again[lost.name].version == 1


def test_an_upgrade_resolves_all_that_is_registered(base_layout: BaseLayout, wheels: Path, local: Workspace) -> None:
    one = define(base_layout, wheels, "spam")
    build_environments(local, [one])
    assert statuses(build_environments(local, upgrade=True)) == {one.name: "reused"}


def test_a_version_that_cannot_be_read_stops_no_other(base_layout: BaseLayout, wheels: Path, local: Workspace) -> None:
    """A definition that a later release wrote: a failure with its reason, for what is lost and for an upgrade."""
    one, odd = define(base_layout, wheels, "spam"), unique("odd")
    build_environments(local, [one])
    reference = f"registry.example.com/{odd}@sha256:{'0' * 64}"
    loop.run(
        local.versions.register(
            VersionRecord(local.name, odd, 0, reference, definition={"name": odd, "of_another_release": 1})
        )
    )
    lose_image(local, one.name)
    for upgrade, expected in ((False, "1 built, 1 failed. "), (True, "1 reused, 1 failed. ")):
        state = build_environments(local, upgrade=upgrade, return_state=True)
        assert str(state.message).startswith(expected)
        assert f"{odd}: the definition of version 1 cannot be read" in str(state.message)


def test_a_registry_that_is_down_has_lost_no_image(base_layout: BaseLayout, wheels: Path, local: Workspace) -> None:
    """Its error, and not a table of missing images that somebody would build again."""
    build_environments(local, [define(base_layout, wheels)])
    down = local.model_copy(update={"registry": ContainerRegistry(address="127.0.0.1:9", plain_http=True)})
    with pytest.raises(RegistryUnreachable):
        check_images(down)


# ---- by runs of a deployment


@contextmanager
def worker(pool: str, folder: Path) -> Iterator[None]:
    """A process worker of a pool, while the block lasts."""
    folder.mkdir()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield
        finally:
            end(process.pid)
            process.wait(30)


def key_of(image_hash: str, workspace: Workspace, attempt: int) -> str:
    return f"build-{image_hash}-{workspace.name.lower()}-{attempt}"


def runs_of(image_hash: str, workspace: Workspace) -> list[FlowRun]:
    """The runs that were made for an image hash, by attempt."""
    keys = [key_of(image_hash, workspace, attempt) for attempt in range(5)]
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
        found = client.read_flow_runs(flow_run_filter=wanted)
    return sorted(found, key=lambda run: str(run.idempotency_key))


def test_a_pool_builds_each_image_hash_once(
    base_layout: BaseLayout, wheels: Path, saved: Workspace, local: Workspace, tmp_path: Path
) -> None:
    """A run for each hash builds the dispatcher's lock, and names with an equal lock get versions of their own. After
    a run that crashed before, the next attempt is made; a failed run is its environment's failure alone."""
    make_wheel(wheels, "evil", "1.0", {"../evil.py": b""})
    twins = [define(base_layout, wheels, "spam") for _ in range(2)]
    other, evil = define(base_layout, wheels, "ham"), define(base_layout, wheels, "evil")
    (here,) = outcomes(build_environments(local, [other]))
    pool = unique("pool")
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    loop.run(crash_first_attempt(here.image_hash, saved, pool))
    with worker(pool, tmp_path / "worker"):
        state = build_environments(saved, [*twins, other, evil], deployment=pool, return_state=True)
    table = {row["environment"]: row for row in rows(Run(state.state_details.flow_run_id), "environments-")}
    assert {name: row["status"] for name, row in table.items() if name != twins[0].name and name != twins[1].name} == {
        other.name: "built",
        evil.name: "failed",
    }
    assert sorted(table[one.name]["status"] for one in twins) == ["built", "reused"]
    assert "evil" in table[evil.name]["reason"] and "is Failed" in table[evil.name]["reason"]
    newest = {record.name: record for record in loop.run(saved.versions.names())}
    assert {name: record.version for name, record in newest.items()} == {one.name: 1 for one in (*twins, other)}
    assert newest[other.name].image_hash == here.image_hash
    ended = [run.state and run.state.type.value for run in runs_of(newest[other.name].image_hash, saved)]
    assert ended == ["CRASHED", "COMPLETED"]
    (run,) = runs_of(newest[twins[0].name].image_hash, saved)
    assert run.parameters["image_hash"] == newest[twins[0].name].image_hash
    again = build_environments(saved, [*twins, other], deployment=pool)  # no worker is there any more
    assert set(statuses(again).values()) == {"ready"}


async def crash_first_attempt(image_hash: str, workspace: Workspace, pool: str) -> None:
    """Leave behind what a dispatcher before us did: a run of this hash that crashed."""
    async with open_dispatcher(pool, workspace) as dispatcher:
        run = await arun_deployment(
            dispatcher.deployment, timeout=0, idempotency_key=key_of(image_hash, workspace, 0), parameters={}
        )
        await dispatcher.client.set_flow_run_state(run.id, Crashed(message="its worker was killed"), force=True)


async def test_a_deployment_of_somebody_else_is_not_written_over(prefect_server: str, remote: Workspace) -> None:
    """One that has the name of the pool, and another entrypoint, stays as it is."""
    pool = unique("pool")
    await asyncio.to_thread(lambda: (remote.registry.save(unique("registry")), remote.save(unique("workspace"))))
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        flow_id = await client.create_flow_from_name("build-environment")
        await client.create_deployment(flow_id, pool, work_pool_name=pool, entrypoint="own/flows.py:build")
        with pytest.raises(DefinitionError, match="somebody's own"):
            async with open_dispatcher(pool, remote):
                pass
        assert (await client.read_deployment_by_name(f"build-environment/{pool}")).entrypoint == "own/flows.py:build"


def test_a_deployment_that_is_not_there_is_refused_before_any_work(
    base_layout: BaseLayout, wheels: Path, remote: Workspace, open_registry: Registry
) -> None:
    """So is a workspace that runs elsewhere could not load."""
    definition = define(base_layout, wheels)
    with pytest.raises(DefinitionError, match="not saved"):
        build_environments(remote, [definition], deployment=DEPLOYMENT)
    remote.registry.save(unique("registry"))
    remote.save(unique("workspace"))
    for wrong, says in ((f"{unique('flow')}/x", "no deployment"), (unique("pool"), "no work pool")):
        with pytest.raises(DefinitionError, match=says):
            build_environments(remote, [definition], deployment=wrong)
    assert [line for line in open_registry.requests() if remote.repository_prefix in line] == []
