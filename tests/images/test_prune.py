"""Pruning in real stores: what goes and what stays, deletes that are refused, interruptions, and builds and pulls at
the same time."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core import labels, steps
from prefect_environments.core.attachments import read_lock
from prefect_environments.core.build.base import read_all
from prefect_environments.core.build.catalog import Catalog
from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import RegistryError, VersionPruned
from prefect_environments.core.history import Entry
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci import layout as layouts
from prefect_environments.core.oci.artifact import put_artifact
from prefect_environments.core.oci.collect import GRACE, collect
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.prune import claims, removal
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.report import PruneReport
from prefect_environments.core.prune.run import prune_environments
from prefect_environments.core.site import Site, open_site
from prefect_environments.core.stores import reference_of
from prefect_environments.core.version_record import VersionRecord, canonical
from prefect_environments.core.versions import FolderVersionStore
from tests.core.test_versions import draft
from tests.images.conftest import Define
from tests.images.parts import Team
from tests.support.registry import Registry, start_registry
from tests.support.session import Session, end

LONG_AGO = "2020-01-01T00:00:00+00:00"
KEEP_ONE = PrunePolicy(keep=1, older_than_days=30, unused_days=2)


async def put(site: Site, text: str, name: str = "train", **fields: Any) -> VersionRecord:
    """A version that was registered long ago, whose image is a small manifest of its own with an attachment."""
    repository = site.repository(name)
    blob = Descriptor("text/plain", digests.of(text.encode()), len(text))
    tag = digests.hex_of(digests.of(text.encode()))
    image = await put_artifact(repository, blob, text.encode(), tag=tag)
    note = f"lock of {text}".encode()
    lock = await put_artifact(repository, Descriptor("text/lock", digests.of(note), len(note)), note, subject=image)
    given = {
        "reference": reference_of(repository, image.digest),
        "digest": image.digest,
        "image_hash": f"sha256:{tag}",
        "lock_digest": lock.digest,
        "created": LONG_AGO,
        "definition": EnvironmentDefinition(name=name, base_image="debian:13").model_dump(mode="json"),
    }
    draft_ = replace(draft(name=name, record_hash=text), **{**given, **fields})
    return await site.workspace.versions.register(draft_)


@pytest.fixture(params=["registry", "layout"])
async def site(request: pytest.FixtureRequest, tmp_path: Path, test_session: Any) -> AsyncIterator[Site]:
    """A workspace with three versions of `train`."""
    place: Registry | Path = tmp_path / "images"
    if request.param == "registry":
        place = request.getfixturevalue("fresh_registry")
    async with open_site(Team.on(place, tmp_path / "versions"), cache=tmp_path / "cache") as site:
        for text in ("one", "two", "three"):
            await put(site, text)
        yield site


async def there(site: Site, digest: str, name: str = "train") -> bool:
    return await site.repository(name).find_manifest(digest) is not None


def actions(report: PruneReport) -> dict[tuple[str, int], str]:
    return {(row.name, row.version): row.action for row in report.rows if row.version}


async def test_a_dry_run_says_what_goes_and_changes_nothing_and_the_run_then_does_it(site: Site) -> None:
    one, two, three = await site.workspace.versions.versions("train")
    dry = await prune_environments(site, KEEP_ONE)
    assert dry.dry_run and actions(dry) == {("train", 1): "prune", ("train", 2): "prune", ("train", 3): "keep"}
    assert all([await there(site, record.digest) for record in (one, two, three)])
    assert (await site.workspace.versions.book("train")).entries == ()

    done = await prune_environments(site, KEEP_ONE, dry_run=False, created_by={"flow_run_id": "x"})
    assert actions(done) == {("train", 1): "pruned", ("train", 2): "pruned", ("train", 3): "keep"}
    assert done.bytes == dry.bytes > 0
    assert [await there(site, record.digest) for record in (one, two, three)] == [False, False, True]
    assert await site.repository("train").referrers(one.digest) == []
    assert not await there(site, one.lock_digest) and await there(site, three.lock_digest)
    assert set(await site.repository("train").tags()) <= {digests.hex_of(three.image_hash), _fallback(three)}
    with pytest.raises(VersionPruned, match="was pruned on"):
        await site.workspace.versions.get("train", 1)
    entries = (await site.workspace.versions.book("train")).entries
    assert [(one.kind, one.version) for one in entries] == [
        ("pruning", 1),
        ("pruned", 1),
        ("pruning", 2),
        ("pruned", 2),
    ]
    assert entries[1].details["digest"] == one.digest and entries[1].created_by == {"flow_run_id": "x"}
    again = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(again) == {("train", 3): "keep"}


def _fallback(record: VersionRecord) -> str:
    return record.digest.replace(":", "-")


async def test_an_image_goes_only_with_the_last_living_version_that_has_it(site: Site) -> None:
    one = await site.workspace.versions.get("train", 1)
    await put(site, "one", record_hash="one, with a variable")
    report = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(report) == {
        ("train", 1): "pruned",
        ("train", 2): "pruned",
        ("train", 3): "pruned",
        ("train", 4): "keep",
    }
    assert await there(site, one.digest) and len(await site.repository("train").referrers(one.digest)) == 1
    (row,) = [row for row in report.rows if row.version == 1]
    assert row.bytes == 0


async def test_what_living_versions_of_other_environments_extend_stays(site: Site) -> None:
    definition = {**EnvironmentDefinition(name="top", extends="train:1").model_dump(mode="json")}
    await put(site, "top", name="top", definition=definition)
    report = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(report)["train", 1] == "keep" and actions(report)["train", 2] == "pruned"
    assert [row.reason for row in report.rows if (row.name, row.version) == ("train", 1)] == ["top:1 extends it"]


async def test_another_workspace_in_the_same_repositories_loses_no_image(site: Site, tmp_path: Path) -> None:
    one = await site.workspace.versions.get("train", 1)
    other = FolderVersionStore(tmp_path / "other", "other")
    await other.register(replace(one, workspace="other", version=0, nonce=""))
    report = await prune_environments(site, KEEP_ONE, dry_run=False, neighbours=[other])
    assert actions(report)["train", 1] == "pruned" and await there(site, one.digest)


async def test_labels_and_flow_runs_hold_what_they_name_and_archived_environments_may_go_whole(site: Site) -> None:
    two = await site.workspace.versions.get("train", 2)
    await labels.set_label(site, "train", "production", 1)

    async def in_use() -> frozenset[str]:
        return frozenset({two.digest})

    report = await prune_environments(site, KEEP_ONE, dry_run=False, protection=in_use)
    assert set(actions(report).values()) == {"keep"}
    await labels.remove_label(site, "train", "production")
    await site.workspace.versions.append("train", lambda _book: Entry("team", "train", "archived"))
    all_go = KEEP_ONE.model_copy(update={"keep_archived": 0})
    assert set(actions(await prune_environments(site, all_go, dry_run=False)).values()) == {"pruned"}
    assert (await put(site, "four")).version == 4  # no number is given twice


async def test_a_version_that_is_used_between_plan_and_deletion_is_spared(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions, real = site.workspace.versions, FolderVersionStore.append
    one = await versions.get("train", 1)

    async def used_right_after(self: FolderVersionStore, name: str, decide: Callable[[Any], Entry | None]) -> Any:
        entry = await real(self, name, decide)
        if entry is not None and (entry.kind, entry.version) == ("pruning", 1):
            # by somebody who had looked at the history just before
            await self._shelf.mark_used("train", 1, datetime.now(UTC).date())
        return entry

    monkeypatch.setattr(FolderVersionStore, "append", used_right_after)
    report = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(report)["train", 1] == "spared" and await there(site, one.digest)
    assert (await versions.get("train", 1)) == one


async def test_an_image_that_is_registered_again_while_it_goes_is_put_back_with_all_that_belongs_to_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, real = await site.workspace.versions.get("train", 1), removal.take_away

    async def register_meanwhile(site: Site, repository: Any, known: removal.Remembered, **options: Any) -> None:
        await real(site, repository, known, **options)
        if known.digest == one.digest:
            assert not await there(site, one.digest)
            await site.workspace.versions.register(replace(one, version=0, record_hash="again", nonce=""))

    monkeypatch.setattr(removal, "take_away", register_meanwhile)
    await prune_environments(site, KEEP_ONE, dry_run=False)
    assert await there(site, one.digest) and await there(site, digests.hex_of(one.image_hash))
    assert [found.digest for found in await site.repository("train").referrers(one.digest)] == [one.lock_digest]
    assert (await site.workspace.versions.get("train", 4)).digest == one.digest


async def test_a_registry_that_forbids_deletion_is_told_before_anything_is_written(
    tmp_path: Path, test_session: Session
) -> None:
    registry = start_registry(test_session, f"registry-no-delete-{os.getpid()}")
    config = registry.folder.with_suffix(".yml")
    end(registry.pid)
    config.write_text(
        config.read_text().replace("enabled: true", "enabled: false").replace("127.0.0.1:0", registry.address)
    )
    process = test_session.spawn("docker-registry", "serve", config, log=f"{registry.log.stem}-2.log")
    try:
        team = Team.on(registry, tmp_path / "versions")
        async with open_site(team, cache=tmp_path / "cache") as site:
            for text in ("one", "two"):
                await put(site, text)
            assert actions(await prune_environments(site, KEEP_ONE))["train", 1] == "prune"
            with pytest.raises(
                RegistryError, match=r"does not allow manifests to be deleted.*storage\.delete\.enabled"
            ):
                await prune_environments(site, KEEP_ONE, dry_run=False)
            assert (await team.versions.book("train")).entries == ()
    finally:
        end(process.pid)


DYING = """
import asyncio, os, signal, sys
from pathlib import Path
from prefect_environments.core.prune import removal
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.run import prune_environments
from prefect_environments.core.site import open_site
from tests.images.parts import Team
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.versions import FolderVersionStore

address, versions, cache = sys.argv[1:]
real = removal.take_away

async def half(site, repository, known, **options):
    await repository.delete_manifest(known.digest)
    os.kill(os.getpid(), signal.SIGKILL)

removal.take_away = half

async def main():
    team = Team(RegistrySettings(address), FolderVersionStore(versions, "team"))
    async with open_site(team, cache=Path(cache)) as site:
        await prune_environments(site, PrunePolicy(keep=1, older_than_days=30, unused_days=2), dry_run=False)

asyncio.run(main())
"""


async def test_what_a_killed_run_left_half_done_is_finished_by_the_next(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await site.workspace.versions.get("train", 1)
    address = site.workspace.registry_settings.address
    command = [sys.executable, "-c", DYING, address, str(tmp_path / "versions"), str(tmp_path / "cache")]
    done = await asyncio.to_thread(subprocess.run, command, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (await site.workspace.versions.book("train")).life.pruning == {1}
    assert not await there(site, one.digest) and await site.repository("train").referrers(one.digest)

    soon = await prune_environments(site, KEEP_ONE, dry_run=False)  # for all it knows the other run still works
    assert actions(soon)["train", 1] == "keep"
    monkeypatch.setattr(claims, "LEASE", 0.0)
    later = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(later)["train", 1] == "pruned"
    assert await site.repository("train").referrers(one.digest) == [] and not await there(site, one.lock_digest)
    assert (await site.workspace.versions.book("train")).life.pruning == frozenset()


async def test_an_interrupted_run_that_had_deleted_nothing_spares_what_was_used_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await site.workspace.versions.get("train", 1)
    await site.workspace.versions.append("train", lambda _book: Entry("team", "train", "pruning", version=1))
    with pytest.raises(VersionPruned):
        await site.workspace.versions.mark_used(one)
    await site.workspace.versions._shelf.mark_used("train", 1, datetime.now(UTC).date())  # type: ignore[attr-defined]
    monkeypatch.setattr(claims, "LEASE", 0.0)
    report = await prune_environments(site, KEEP_ONE, dry_run=False)
    assert actions(report)["train", 1] == "spared" and await there(site, one.digest)


async def test_layer_tags_and_locks_that_nothing_needs_go_when_they_were_seen_so_for_long(site: Site) -> None:
    today = datetime.now(UTC).date()
    layers, locks = (site.store.repository(f"environments-{name}") for name in ("layers", "locks"))
    for text, place in (("one", layers), ("nobody", layers), ("nobody", locks)):
        blob = Descriptor("text/plain", digests.of(text.encode()), len(text))
        await put_artifact(place, blob, text.encode(), tag=digests.hex_of(digests.of(f"key {text}".encode())))
    await put_artifact(layers, Descriptor("text/plain", digests.of(b"facts"), 5), b"facts", tag="base-facts")
    keep = KEEP_ONE.model_copy(update={"keep": 9})

    async def run(day: date, *, dry_run: bool = False) -> list[tuple[str, str, str]]:
        report = await prune_environments(site, keep, dry_run=dry_run, today=day)
        return [(row.name, row.action, row.reason) for row in report.rows if not row.version]

    waiting = [("package layers", "keep", "1 unneeded, known for less than 2 days")]
    waiting += [("locks", "keep", "1 unneeded, known for less than 2 days")]
    assert await run(today, dry_run=True) == waiting
    assert await run(today) == waiting
    assert await run(today + timedelta(days=2), dry_run=True) == [
        ("package layers", "prune", "1 that nothing needs"),
        ("locks", "prune", "1 that nothing needs"),
    ]
    assert [row[1] for row in await run(today + timedelta(days=2))] == ["pruned", "pruned"]
    assert await locks.tags() == []
    assert set(await layers.tags()) == {digests.hex_of(digests.of(b"key one")), "base-facts", "unneeded"}
    assert await run(today + timedelta(days=9)) == []


def time_passes(folder: Path) -> None:
    """Let every version in a folder have been registered long ago, and be used by nobody since."""
    for path in folder.glob("*/[0-9]*.json"):
        document = json.loads(path.read_bytes())
        document["record"]["created"] = LONG_AGO
        document["record_digest"] = digests.of(canonical(document["record"]))
        path.write_bytes(canonical(document))
    for mark in folder.glob("*/used/*"):
        mark.unlink()


async def build_again(site: Site, definition: EnvironmentDefinition) -> None:
    """The steps of a build, as the flow takes them."""
    if await steps.find_registered(site, definition):
        return
    lock = await steps.resolve(site, definition)
    image = await steps.build(site, definition, lock)
    await steps.register(site, definition, image)


async def pull(site: Site, version: int, folder: Path) -> bool:
    """What a job does: note that the version is used, then pull its image, by another tool."""
    try:
        record = await site.workspace.versions.get("demo", version)
        await site.workspace.versions.mark_used(record)
    except VersionPruned:
        return False
    if record.reference.startswith("oci:"):
        assert await site.repository("demo").find_manifest(record.digest)  # with all of its layers
    else:
        target = folder / f"pulled-{version}-{record.nonce}"
        command = [
            "skopeo",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            f"docker://{record.reference}",
            f"dir:{target}",
        ]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(target)
    await read_lock(site.repository("demo"), record.lock_digest)
    return True


@pytest.mark.parametrize("kind", ["registry", "layout"])
async def test_pulls_and_builds_go_on_unhurt_while_versions_are_pruned(
    kind: str, request: pytest.FixtureRequest, define: Define, tmp_path: Path
) -> None:
    place = request.getfixturevalue("fresh_registry") if kind == "registry" else tmp_path / "images"
    team, versions = Team.on(place, tmp_path / "versions"), tmp_path / "versions"
    wanted = [define(name) for name in ("beta", "gamma", "delta")]
    delays, reports, pulled = random.Random(4), [], 0
    async with open_site(team, cache=tmp_path / "cache") as site:
        for definition in wanted:
            await build_again(site, definition)

        async def later(work: Awaitable[Any]) -> Any:
            await asyncio.sleep(delays.uniform(0, 1.5))
            return await work

        for turn in range(3):
            time_passes(versions)
            records = await team.versions.versions("demo")
            work = [later(pull(site, record.version, tmp_path)) for record in records]
            work += [later(build_again(site, wanted[(turn + shift) % 3])) for shift in range(2)]
            *done, report = await gather([*work, later(prune_environments(site, KEEP_ONE, dry_run=False))])
            reports.append(report)
            pulled += sum(one is True for one in done)
        for record in await team.versions.versions("demo"):
            await validate(site.repository("demo"), record.digest, site.scratch)
            await read_lock(site.repository("demo"), record.lock_digest)
    found = [action for report in reports for action in actions(report).values()]
    assert found.count("pruned") >= 2 and pulled >= 2 and "failed" not in found


async def test_a_builder_whose_layer_tag_goes_before_it_mounts_the_layer_builds_it_again(
    fresh_registry: Registry, define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = Team.on(fresh_registry, tmp_path / "versions")
    async with open_site(team, cache=tmp_path / "cache") as site:
        await build_again(site, define("beta"))
        layers, real = site.catalog.repository, Catalog.find_layer
        links = fresh_registry.folder / "docker/registry/v2/repositories/environments-layers/_layers/sha256"
        assert len(list(links.iterdir())) > 1

        async def found_and_gone(self: Catalog, key: str) -> Any:
            layer = await real(self, key)
            if layer is not None:  # the tag goes, and the registry's garbage collection takes the blob
                await layers.delete_manifest((await layers.get_manifest(key)).descriptor.digest)
                shutil.rmtree(links / layer.descriptor.digest[7:], ignore_errors=True)
            return layer

        monkeypatch.setattr(Catalog, "find_layer", found_and_gone)
        await build_again(site, define("beta", name="other"))
        record = await team.versions.get("other", 1)
        await validate(site.repository("other"), record.digest, site.scratch)


async def test_a_layout_frees_what_nothing_leads_to_and_keeps_what_is_young_or_asked_for(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images")
    repository = layout.repository("a/b")
    old = time.time() - 3 * GRACE
    blobs = {}
    for text in ("kept", "old", "young", "asked"):
        blobs[text] = Descriptor("text/plain", digests.of(text.encode()), len(text))
        await repository.write_blob(blobs[text], text.encode())
    kept = await put_artifact(repository, blobs["kept"], b"kept", tag="1")
    gone = await put_artifact(repository, blobs["old"], b"old")
    named = await put_artifact(repository, blobs["old"], b"old", subject=kept)
    await repository.delete_manifest(gone.digest)
    await repository.delete_manifest(named.digest)
    for text in ("kept", "old", "asked"):
        os.utime(layout.blob_path(blobs[text].digest), (old, old))
    os.utime(layout.blob_path(kept.digest), (old, old))
    assert await repository.mount_blob(blobs["asked"], "somewhere")  # a writer that relies on it
    assert collect(layout) == len("old")
    assert [layout.has(blob) for blob in blobs.values()] == [True, False, True, True]
    assert (await repository.get_manifest("1")).descriptor == kept


async def test_a_manifest_that_loses_its_last_tag_is_not_collected(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images")
    found = []
    for text in ("1", "2"):
        blob = Descriptor("text/plain", digests.of(text.encode()), len(text))
        found.append(await put_artifact(layout.repository("a"), blob, text.encode(), tag="t"))
        for path in (layout.folder / "blobs").glob("*/*"):
            os.utime(path, (0, 0))
    assert collect(layout) == 0
    for digest in (one.digest for one in found):
        await validate_artifact(layout, digest)
    await layout.repository("a").delete_manifest(found[1].digest)
    for path in (layout.folder / "blobs").glob("*/*"):
        os.utime(path, (0, 0))
    assert collect(layout) == 1
    await validate_artifact(layout, found[0].digest)


async def validate_artifact(layout: Layout, digest: str) -> None:
    """Every blob of a manifest is there, with its bytes."""
    manifest = ImageManifest.from_bytes((await layout.repository("a").get_manifest(digest)).content)
    for blob in manifest.layers:
        assert digests.of(await read_all(layout.repository("a"), blob, 100)) == blob.digest


async def test_pushes_into_a_layout_that_is_collected_all_the_time_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "TOUCH", 60.0)
    layout = Layout(tmp_path / "images")
    repository, stop, freed = layout.repository("a"), asyncio.Event(), 0

    async def collecting() -> None:
        nonlocal freed
        while not stop.is_set():
            freed += await asyncio.to_thread(collect, layout, older_than=120.0)

    async def push(number: int) -> str:
        text = f"shared {number % 3}"
        blob = Descriptor("text/plain", digests.of(text.encode()), len(text))
        await asyncio.sleep(number % 8 / 100)
        image = await put_artifact(repository, blob, text.encode(), tag=f"t{number}")
        await validate_artifact(layout, image.digest)
        return image.digest

    tasks = [asyncio.create_task(collecting()) for _ in range(2)]
    for start in range(0, 80, 8):
        pushed = await gather(push(number) for number in range(start, start + 8))
        for digest in set(pushed):
            await repository.delete_manifest(digest)
        for path in (layout.folder / "blobs").glob("*/*"):
            with suppress(FileNotFoundError):
                os.utime(path, (0, 0))
    stop.set()
    await asyncio.wait(tasks)
    assert freed and [task.exception() for task in tasks] == [None, None]
