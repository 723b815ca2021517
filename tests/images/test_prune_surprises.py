"""Pruning where it could hurt: images that two names share, neighbours, moved repositories, failures half-way, and
builds that meet a prune at every step."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core import attachments, steps
from prefect_environments.core.attachments import read_lock
from prefect_environments.core.build.assemble import BASE_DIGEST
from prefect_environments.core.errors import RegistryAuthError, RegistryUnreachable
from prefect_environments.core.history import Entry
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.artifact import EMPTY, EMPTY_DESCRIPTOR, artifact_manifest, put_artifact
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import LayoutRepository
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.prune import versions as pruner
from prefect_environments.core.prune.run import prune_environments
from prefect_environments.core.site import Site, open_site
from prefect_environments.core.stores import reference_of
from prefect_environments.core.versions import FolderVersionStore
from tests.core.test_versions import draft
from tests.images.conftest import Define
from tests.images.parts import Team
from tests.images.test_prune import KEEP_ONE, LONG_AGO, actions, build_again, put, time_passes
from tests.support.registry import Registry
from tests.support.session import Session

LATER = datetime.now(UTC).date() + timedelta(days=400)


@pytest.fixture
async def folder_site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(Team.on(tmp_path / "images", tmp_path / "versions"), cache=tmp_path / "cache") as site:
        yield site


@pytest.fixture(params=["registry", "layout"])
async def any_site(request: pytest.FixtureRequest, tmp_path: Path, test_session: Session) -> AsyncIterator[Site]:
    place = request.getfixturevalue("fresh_registry") if request.param == "registry" else tmp_path / "images"
    async with open_site(Team.on(place, tmp_path / "versions"), cache=tmp_path / "cache") as site:
        yield site


async def test_two_names_with_one_image_in_a_folder_lose_nothing_of_each_other(
    folder_site: Site, define: Define, tmp_path: Path
) -> None:
    site, versions = folder_site, folder_site.workspace.versions
    await build_again(site, define("beta", name="a"))
    await build_again(site, define("beta", name="b"))
    await build_again(site, define("gamma", name="a"))
    kept, gone = await versions.get("b", 1), await versions.get("a", 1)
    assert kept.digest == gone.digest
    time_passes(tmp_path / "versions")
    report = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(report) == {("a", 1): "pruned", ("a", 2): "keep", ("b", 1): "keep"}
    await validate(site.repository("b"), kept.digest, site.scratch)
    assert len((await read_lock(site.repository("b"), kept.lock_digest)).packages) == 2
    assert len(await site.repository("b").referrers(kept.digest)) >= 3
    (row,) = [row for row in report.rows if (row.name, row.version) == ("a", 1)]
    assert row.bytes < 5000


async def test_what_a_neighbour_stands_on_beside_the_environments_stays(
    fresh_registry: Registry, tmp_path: Path
) -> None:
    async with open_site(Team.on(fresh_registry, tmp_path / "versions"), cache=tmp_path / "cache") as site:
        other = FolderVersionStore(tmp_path / "other", "other")
        builds = site.store.repository("environments-builds")
        base = await put_artifact(builds, Descriptor("text/plain", digests.of(b"base"), 4), b"base", tag="1" * 64)
        layers = site.store.repository("environments-layers")
        await put_artifact(layers, Descriptor("text/plain", digests.of(b"n"), 1), b"n", tag="2" * 64)
        blob = Descriptor("text/plain", digests.of(b"n"), 1)
        bert = site.repository("bert")
        await bert.write_blob(EMPTY_DESCRIPTOR, EMPTY)
        await bert.write_blob(blob, b"n")
        manifest = artifact_manifest(blob, "text/plain", annotations={BASE_DIGEST: base.digest}).to_bytes()
        image = await bert.put_manifest(manifest, types.IMAGE_MANIFEST, tag="3" * 64)
        await other.register(
            replace(
                draft(name="bert", workspace="other"),
                digest=image.digest,
                reference=reference_of(site.repository("bert"), image.digest),
                image_hash="sha256:" + "3" * 64,
            )
        )
        for day in (LATER, LATER + timedelta(days=40)):
            await prune_environments(site, KEEP_ONE, dry_run=False, neighbours=[other], today=day)
        assert await builds.find_manifest(base.digest)
        assert "2" * 64 in await layers.tags()


async def test_an_image_in_repositories_of_yesterday_is_not_given_up_for_lost(
    fresh_registry: Registry, tmp_path: Path
) -> None:
    old = Team.on(fresh_registry, tmp_path / "versions", repository_prefix="yesterday")
    async with open_site(old, cache=tmp_path / "cache") as site:
        for text in ("one", "two"):
            await put(site, text)
    team = Team.on(fresh_registry, tmp_path / "versions")
    async with open_site(team, cache=tmp_path / "cache") as site:
        for dry_run in (True, False):
            report = await prune_environments(site, KEEP_ONE, dry_run=dry_run)
            assert actions(report)["train", 1] == "keep"
            assert "yesterday/train" in report.rows[0].reason
        assert (await team.versions.get("train", 1)).version == 1


async def test_a_version_that_the_registry_lets_nobody_delete_stays_usable(
    folder_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = folder_site
    one, _ = [await put(site, text) for text in ("one", "two")]
    real = LayoutRepository.delete_manifest

    async def refused(self: LayoutRepository, digest: str) -> bool:
        if digest == one.digest:
            raise RegistryAuthError("the registry refused the deletion", status=403)
        return await real(self, digest)

    monkeypatch.setattr(LayoutRepository, "delete_manifest", refused)
    report = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(report)["train", 1] == "failed" and "refused" in report.failed[0].reason
    assert (await site.workspace.versions.get("train", 1)) == one


async def test_a_version_about_which_somebody_could_not_be_asked_stays_usable(
    folder_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, asked = folder_site, 0
    one, _ = [await put(site, text) for text in ("one", "two")]

    async def protection() -> frozenset[str]:
        nonlocal asked
        asked += 1
        if asked > 2:
            raise RegistryUnreachable("gone")
        return frozenset()

    monkeypatch.setattr(pruner, "_FRESH", -1.0)
    report = await prune_environments(site, KEEP_ONE, dry_run=False, protection=protection)
    assert actions(report)["train", 1] == "failed"
    assert (await site.workspace.versions.get("train", 1)) == one


async def test_what_goes_wrong_with_leftovers_does_not_hide_what_was_pruned(
    folder_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = folder_site
    for text in ("one", "two"):
        await put(site, text)
    layers = site.store.repository("environments-layers")
    await put_artifact(layers, Descriptor("text/plain", digests.of(b"n"), 1), b"n", tag="2" * 64)
    real = LayoutRepository.put_manifest

    async def refused(self: LayoutRepository, content: bytes, media_type: str, *, tag: str | None = None) -> Any:
        if tag == "unneeded":
            raise RegistryAuthError("may not write there", status=403)
        return await real(self, content, media_type, tag=tag)

    monkeypatch.setattr(LayoutRepository, "put_manifest", refused)
    report = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(report)["train", 1] == "pruned"
    assert [row.reason for row in report.failed] == ["may not write there"]


@pytest.mark.parametrize("step", ["find", "attach", "register"])
async def test_a_build_that_a_prune_meets_at_any_step_has_its_image(
    step: str, any_site: Site, define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The definitions differ, their locks do not: the image is found by its hash, which only the claim protects."""
    site, reports = any_site, list[Any]()
    await build_again(site, define("beta"))
    await build_again(site, define("gamma"))
    time_passes(tmp_path / "versions")

    def meeting(place: Any, name: str) -> None:
        real = getattr(place, name)

        async def met(*arguments: Any, **options: Any) -> Any:
            if not reports:
                reports.append(None)
                reports[0] = await prune_environments(site, KEEP_ONE, dry_run=False)
            return await real(*arguments, **options)

        monkeypatch.setattr(place, name, met)

    place = {"find": (attachments, "attach"), "attach": (steps, "register"), "register": (steps, "inherited_variables")}
    definition = define("beta>=0")
    assert await steps.find_registered(site, definition) is None
    lock = await steps.resolve(site, definition)
    meeting(*place[step])
    built = await steps.build(site, definition, lock)
    assert built.reused
    record = await steps.register(site, definition, built)
    assert reports and actions(reports[0])["demo", 1] in ("keep", "spared")
    await validate(site.repository("demo"), record.digest, site.scratch)
    await read_lock(site.repository("demo"), record.lock_digest)


@pytest.mark.parametrize("left", ["announced", "image deleted"])
async def test_a_build_of_what_a_dead_prune_left_is_not_undone_by_the_prune_that_finishes_it(
    left: str, any_site: Site, define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, versions = any_site, any_site.workspace.versions
    await build_again(site, define("beta"))
    await build_again(site, define("gamma"))
    time_passes(tmp_path / "versions")
    one = await versions.get("demo", 1)
    await versions.append("demo", lambda _book: Entry("team", "demo", "pruning", version=1, created=LONG_AGO))
    if left == "image deleted":
        await site.repository("demo").delete_manifest(one.digest)
    real, reports = attachments.attach, []

    async def met(*arguments: Any, **options: Any) -> Any:
        reports.append(await prune_environments(site, KEEP_ONE, dry_run=False))
        return await real(*arguments, **options)

    definition = define("beta")
    lock = await steps.resolve(site, definition)
    monkeypatch.setattr(attachments, "attach", met)
    built = await steps.build(site, definition, lock)
    record = await steps.register(site, definition, built)
    monkeypatch.undo()
    await validate(site.repository("demo"), record.digest, site.scratch)
    await read_lock(site.repository("demo"), record.lock_digest)
    assert (await versions.get("demo", record.version)).digest == one.digest
