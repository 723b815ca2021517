"""Pruning where images really are: locked images of a Container Registry, jobs' images, Dockerfiles' images, and
archived environments beside builds of many."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core import archive, steps
from prefect_environments.core.azure import acr as contents
from prefect_environments.core.errors import RegistryAuthError, RegistryError
from prefect_environments.core.fleet.build import build_environments
from prefect_environments.core.jobs.job_image import ensure_job_image
from prefect_environments.core.jobs.run import lock_of
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.prune import removal
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.run import prune_environments
from prefect_environments.core.refresh.look import find_drift
from prefect_environments.core.site import Site, open_site
from prefect_environments.core.version_record import VersionRecord
from prefect_environments.core.versions import FolderVersionStore
from tests.images.conftest import Define
from tests.images.parts import Team
from tests.images.test_prune import KEEP_ONE, actions, build_again, put, there, time_passes
from tests.support.azure.acr_parts import Acr, running_acr, with_lock
from tests.support.engine import DockerEngine
from tests.support.registry import Registry
from tests.support.session import Session
from tests.support.wheels import make_wheel, serve_index

TODAY = datetime.now(UTC).date()
PATH = "environments/train"


@pytest.fixture
async def azure(test_session: Session, tmp_path: Path) -> AsyncIterator[tuple[Acr, Site]]:
    """Two versions in a Container Registry, whose images are locked as registered ones are."""
    with running_acr(test_session, tmp_path / "acr") as acr:
        acr.server.grant(acr.azure.app, "Owner")
        team = Team(with_lock(acr.settings()), FolderVersionStore(tmp_path / "versions", "team"))
        async with open_site(team, cache=tmp_path / "cache") as site:
            for text in ("one", "two"):
                record = await put(site, text)
                await steps.lock_image(team, record.reference)
            yield acr, site


async def locked(acr: Acr, record: VersionRecord) -> bool:
    tags = await contents.list_tags(acr.settings(), PATH)
    return next(tag.locked for tag in tags if tag.digest == record.digest)


async def test_a_locked_image_is_unlocked_to_go_and_the_others_stay_locked(azure: tuple[Acr, Site]) -> None:
    acr, site = azure
    one, two = await site.workspace.versions.versions("train")
    dry = await prune_environments(site, KEEP_ONE)
    assert await locked(acr, one) and acr.count("DELETE ") == 0
    report = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(report) == {("train", 1): "pruned", ("train", 2): "keep"} and report.bytes == dry.bytes > 0
    assert not await there(site, one.digest) and await locked(acr, two)
    assert await site.repository("train").referrers(one.digest) == []


async def test_an_image_that_is_put_back_is_locked_again(
    azure: tuple[Acr, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    acr, site = azure
    one, real = await site.workspace.versions.get("train", 1), removal.take_away

    async def register_meanwhile(*arguments: Any, **options: Any) -> None:
        await real(*arguments, **options)
        await site.workspace.versions.register(replace(one, version=0, record_hash="again", nonce=""))

    monkeypatch.setattr(removal, "take_away", register_meanwhile)
    await prune_environments(site, KEEP_ONE, dry_run=False)
    assert await there(site, one.digest) and await locked(acr, one)


async def test_what_belongs_to_an_image_that_stays_where_it_is_is_put_back_without_a_lock(
    azure: tuple[Acr, Site],
) -> None:
    """The image is not in the workspace's repository, and there is nothing there to be locked."""
    acr, site = azure
    elsewhere = f"sha256:{'5' * 64}"
    one = await site.workspace.versions.get("train", 1)
    lock = await site.repository("train").get_manifest(one.lock_digest)
    await site.repository("train").delete_manifest(one.lock_digest)
    await removal.put_back(site, site.repository("train"), removal.Remembered(elsewhere, (), None, (lock,)))
    assert await there(site, one.lock_digest) and await locked(acr, one)


async def test_an_image_that_may_not_be_deleted_stays_usable_and_is_locked_again(azure: tuple[Acr, Site]) -> None:
    """Here its repository is locked by hand, which nobody undoes who prunes."""
    acr, site = azure
    one = await site.workspace.versions.get("train", 1)
    tag = one.image_hash.partition(":")[2]
    await contents.set_lock(acr.settings(), PATH, tag, locked=True)
    report = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(report)["train", 1] == "failed" and "locked" in report.failed[0].reason
    assert await site.workspace.versions.get("train", 1) == one
    await contents.set_lock(acr.settings(), PATH, tag, locked=False)
    with pytest.raises(RegistryError, match="locked"):
        await site.repository("train").delete_manifest(one.digest)


async def test_who_may_not_delete_is_told_before_anything_is_written(azure: tuple[Acr, Site], tmp_path: Path) -> None:
    acr, site = azure
    acr.server.grant(acr.azure.app, "AcrPush")
    async with open_site(site.workspace, cache=tmp_path / "other-cache") as fresh:
        with pytest.raises(RegistryAuthError, match=r"(?i)delete"):
            await prune_environments(fresh, KEEP_ONE, dry_run=False)
    assert (await site.workspace.versions.book("train")).entries == ()


async def test_job_images_and_runtimes_go_when_no_flow_run_needs_them(
    fresh_registry: Registry, define: Define, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    index = tmp_path / "index"
    index.mkdir()
    make_wheel(index, "prefect-client", version("prefect"), requires=["small"], requires_python=">=3.10")
    for name in ("small", "pip"):
        make_wheel(index, name, "1.0")
    with serve_index(index) as served:
        team = Team.on(fresh_registry, tmp_path / "versions", index_url=served.url)
        async with open_site(team, cache=tmp_path / "cache") as site:
            await build_again(site, define("beta"))
            record, images = await team.versions.get("demo", 1), []
            for text in ("1", "2"):
                (source / "train.py").write_text(f"print({text})\n")
                images.append(await ensure_job_image(site, record, await lock_of(site, record), source))
            ended, queued = (image.reference.rpartition("@")[2] for image in images)
            jobs = site.store.repository("environments-jobs")

            async def in_use() -> frozenset[str]:
                return frozenset({queued})

            async def later(days: int, protection: Any = in_use) -> list[tuple[str, str, str]]:
                day = TODAY + timedelta(days=days)
                report = await prune_environments(
                    site, PrunePolicy(keep=1), dry_run=False, today=day, protection=protection
                )
                return [(row.name, row.action, row.reason.partition(" ")[0]) for row in report.rows if not row.version]

            await build_again(site, define("gamma"))
            await later(0)
            assert ("job images", "pruned", "1") in await later(60)
            assert await jobs.find_manifest(ended) is None
            await validate(jobs, queued, site.scratch)
            assert (
                actions(await prune_environments(site, KEEP_ONE, protection=in_use, today=TODAY + timedelta(days=400)))[
                    "demo", 1
                ]
                == "keep"
            )  # under the job's image
            (source / "train.py").write_text("print(3)\n")
            again = await ensure_job_image(site, record, await lock_of(site, record), source)
            await validate(jobs, again.reference.rpartition("@")[2], site.scratch)

            async def nothing() -> frozenset[str]:
                return frozenset()

            await later(61, nothing)
            gone = {name: action for name, action, _ in await later(99, nothing)}
            assert gone["job images"] == gone["job runtimes"] == "pruned"
            assert await jobs.tags() == []
            record = await team.versions.get("demo", 2)
            new = await ensure_job_image(site, record, await lock_of(site, record), source)
            await validate(jobs, new.reference.rpartition("@")[2], site.scratch)


async def test_a_dockerfiles_image_stays_as_long_as_an_environment_stands_on_it(
    build_engine: DockerEngine, fresh_registry: Registry, open_base: str, define: Define, tmp_path: Path
) -> None:
    team = Team.on(fresh_registry, tmp_path / "versions")
    async with open_site(team, cache=tmp_path / "cache") as site:
        text = f"FROM {open_base}\nRUN echo made > /made.txt\n"
        await build_again(site, define("beta", base_image="", dockerfile=text))
        await build_again(site, define("gamma"))
        keep_two = PrunePolicy(keep=2, unused_days=2)
        for days in (100, 200):
            await prune_environments(site, keep_two, dry_run=False, today=TODAY + timedelta(days=days))
        assert len(await site.built_repository.tags()) == 1
        time_passes(tmp_path / "versions")
        for days in (300, 400):
            report = await prune_environments(site, KEEP_ONE, dry_run=False, today=TODAY + timedelta(days=days))
        assert [row.action for row in report.rows if row.name == "Dockerfile images"] == ["pruned"]
        assert await site.built_repository.tags() == []
        await build_again(site, define("beta", base_image="", dockerfile=text))
        record = await team.versions.get("demo", 3)
        await validate(site.repository("demo"), record.digest, site.scratch)


async def test_archived_environments_are_built_by_name_and_refreshed_with_nobody(
    define: Define, tmp_path: Path
) -> None:
    team = Team.on(tmp_path / "images", tmp_path / "versions")
    async with open_site(team, cache=tmp_path / "cache") as site:
        wanted = [define("beta", name="a"), define("gamma", name="b")]
        assert [one.status for one in await build_environments(site, wanted)] == ["built", "built"]
        await archive.archive(team.versions, "a")
        assert [one.status for one in await build_environments(site, wanted)] == ["ready", "ready"]
        assert [(one.name, one.status) for one in await find_drift(site)] == [("b", "unchanged")]
        assert "a" not in [record.name for record in await steps.newest_versions(team)]
        (changed,) = await build_environments(site, [define("beta", "gamma", name="a")])
        assert (changed.status, changed.version) == ("built", 2)
        assert [record.name for record in await team.versions.names()] == ["b"]
