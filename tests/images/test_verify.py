"""A registered version is verified against a real registry; whatever somebody changed there is found and named."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from prefect_environments.core import attachments
from prefect_environments.core.build.catalog import DIFF_ID
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import RegistryUnreachable, VerificationError, VersionNotFound
from prefect_environments.core.findings import failures
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.artifact import TITLE, artifact_manifest
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.verify import Verification, verify_version
from prefect_environments.core.version_record import VersionRecord, canonical
from tests.images.conftest import Define
from tests.images.parts import Outcome, Team, build, read_image, repository_of
from tests.support.base import BaseLayout
from tests.support.registry import Registry

DEEP = ["contents", "rebuild"]


@dataclass(frozen=True)
class Scene:
    """A registered image, and where what belongs to it is stored."""

    team: Team
    registry: Registry
    folder: Path
    built: Outcome

    @property
    def digest(self) -> str:
        return self.built.ready.digest

    @property
    def lock(self) -> Lock:
        assert self.built.lock is not None
        return self.built.lock

    def blob(self, digest: str) -> Path:
        """A blob's file in the registry's storage folder."""
        sha = digests.hex_of(digest)
        return self.registry.folder / "docker/registry/v2/blobs/sha256" / sha[:2] / sha / "data"

    async def manifest(self) -> ImageManifest:
        async with repository_of(self.built.ready.reference) as (repository, digest):
            return (await read_image(repository, digest))[0]

    async def verify(self, **options: bool) -> Verification:
        return await verified(self.team, self.folder / "verify-cache", **options)

    async def wrong(self, **options: bool) -> dict[str, str]:
        """What each failed check found; the task's error names all of them."""
        found = await self.verify(**options)
        wrong = {one.name: one.found for one in failures(found.findings)}
        assert not found.ok
        with pytest.raises(VerificationError) as error:
            found.raise_for_failures()
        assert all(f"{name}: {said}" in str(error.value) for name, said in wrong.items())
        assert all(one.advice for one in failures(found.findings))
        return wrong


async def verified(team: Team, cache: Path, **options: bool) -> Verification:
    async with open_site(team, cache=cache) as site:
        return await verify_version(site, "demo", **options)


@pytest.fixture
async def scene(team: Team, open_registry: Registry, open_base: str, define: Define, tmp_path: Path) -> Scene:
    """In repositories of the test's own; blobs are shared with other tests."""
    built = await build(team, define("alpha", "gamma", base_image=open_base), tmp_path / "cache")
    return Scene(team, open_registry, tmp_path, built)


@pytest.fixture
async def alone(fresh_registry: Registry, base_layout: BaseLayout, define: Define, tmp_path: Path) -> Scene:
    """In a registry of the test's own, whose storage may be changed."""
    base = fresh_registry.repository_url("base/python:1")
    base_layout.push(base)
    team = Team.on(fresh_registry, tmp_path / "versions")
    built = await build(team, define("alpha", "gamma", base_image=base), tmp_path / "cache")
    return Scene(team, fresh_registry, tmp_path, built)


async def layer_of(scene: Scene, package: str) -> Descriptor:
    found = [layer for layer in (await scene.manifest()).layers if layer.annotations.get(TITLE, "").startswith(package)]
    assert len(found) == 1
    return found[0]


async def test_what_was_registered_is_found_as_it_is(scene: Scene) -> None:
    """Every check passes, the deep ones too, from a worker with an empty cache; no layer is read by the quick way."""
    found = await scene.verify(full=True, rebuild=True)
    assert found.ok and not found.skipped, str(found)
    assert all(scene.digest in one.found for one in found.findings if one.name in ("image", "tag", "rebuild"))
    before = len(scene.registry.requests())
    quick = await scene.verify()
    assert quick.ok and [name for name, _ in quick.skipped] == DEEP
    layers = {layer.digest for layer in (await scene.manifest()).layers}
    seen = scene.registry.requests()[before:]
    own = [line for line in seen if f"/{scene.team.repository_prefix}/demo/" in line]
    assert own and not [line for line in own if line.startswith("GET") and line.rpartition("/")[2] in layers]
    assert json.loads(json.dumps(quick.to_dict()))["ok"] and "| blobs | ok |" in quick.to_markdown()
    quick.raise_for_failures()


async def test_the_record_says_what_built_it(scene: Scene) -> None:
    """Tools with their versions and the machine, in the record and in what verification shows."""
    found = await scene.verify()
    assert {"prefect-environments", "uv", "python", "platform", "recipe"} <= found.built_by.keys()
    assert f"| uv | {found.built_by['uv']} |" in found.to_markdown()


async def test_a_new_version_of_the_same_image_is_verified_and_says_who_built_the_image(
    scene: Scene, define: Define
) -> None:
    """A changed variable makes a version without building; the attached definition is the first one's."""
    wanted = EnvironmentDefinition(**(await scene.team.versions.get("demo", 1)).definition)
    changed = wanted.model_copy(update={"environment_variables": {"A": "1"}, "description": "new"})
    again = await build(scene.team, changed, scene.folder / "cache")
    assert again.ready.version == 2 and again.ready.digest == scene.digest
    found = await scene.verify(full=True)
    assert found.version == 2 and found.ok, str(found)
    assert found.built_by["image_by"]["version"] == 1


async def test_a_layer_that_was_replaced_in_the_registrys_storage_is_found_by_reading_it(alone: Scene) -> None:
    """Whole and sound in itself, but with other bytes: the quick way cannot know, and says that it did not look."""
    layer = await layer_of(alone, "alpha")
    shutil.copy(alone.blob((await layer_of(alone, "gamma")).digest), alone.blob(layer.digest))
    assert (await alone.verify()).ok
    wrong = await alone.wrong(full=True)
    assert wrong.keys() == {"contents"} and f"alpha 1.0 ({layer.digest})" in wrong["contents"]


async def test_a_blob_that_is_gone_is_named_and_building_by_force_brings_it_back(alone: Scene) -> None:
    layer = await layer_of(alone, "alpha")
    shutil.rmtree(alone.blob(layer.digest).parent)
    wrong = await alone.wrong()
    assert wrong.keys() == {"blobs"} and f"alpha 1.0 ({layer.digest}) is missing" in wrong["blobs"]
    wanted = EnvironmentDefinition(**(await alone.team.versions.get("demo", 1)).definition)
    await build(alone.team, wanted, alone.folder / "cache", force=True)
    assert (await alone.verify(full=True)).ok


async def altered(scene: Scene, alter: Callable[[dict[str, object]], None]) -> str:
    """The image with another config, stored and tagged as builds find it; gives its digest."""
    async with repository_of(scene.built.ready.reference) as (repository, digest):
        manifest, config = await read_image(repository, digest)
        data = json.loads(json.dumps(dict(config.data)))
        alter(data["config"])
        blob = json.dumps(data).encode()
        described = Descriptor(types.IMAGE_CONFIG, digests.of(blob), len(blob))
        await repository.write_blob(described, blob)
        tag = digests.hex_of(scene.built.ready.image_hash)
        content = replace(manifest, config=described).to_bytes()
        return (await repository.put_manifest(content, types.IMAGE_MANIFEST, tag=tag)).digest


def backdoor(settings: dict[str, object]) -> None:
    settings["Entrypoint"] = ["/bin/sh", "-c", "something else"]


async def test_another_image_under_the_tag_that_builds_look_for_is_found(scene: Scene) -> None:
    """The registered image is as it was, but the next build of this lock would take the other one."""
    other = await altered(scene, backdoor)
    wrong = await scene.wrong()
    assert wrong.keys() == {"tag"} and other in wrong["tag"] and scene.digest in wrong["tag"]


def rewrite(scene: Scene, *, sealed: bool, **fields: str | int) -> None:
    """Change the stored record; `sealed`, with a digest that fits, as one would who knows how."""
    path = scene.folder / "versions/demo/1.json"
    stored = json.loads(path.read_text())
    stored["record"] |= fields
    if sealed:
        stored["record_digest"] = digests.of(canonical(stored["record"]))
    path.write_bytes(canonical(stored))


async def test_an_altered_record_is_found_and_nothing_that_it_says_is_believed(scene: Scene) -> None:
    rewrite(scene, sealed=False, reference=f"registry.example.com/evil@{scene.digest}")
    wrong = await scene.wrong(full=True)
    assert wrong.keys() == {"record"} and "was altered" in wrong["record"]
    assert "registry.example.com" not in str(await scene.verify())


async def test_a_record_that_was_altered_with_its_digest_does_not_fit_what_is_attached(scene: Scene) -> None:
    """Another image of the same lock, under its tag; then a description that was never registered."""
    other = await altered(scene, backdoor)
    repository = scene.built.ready.reference.partition("@")[0]
    rewrite(scene, sealed=True, reference=f"{repository}@{other}", digest=other)
    wrong = await scene.wrong()
    assert wrong.keys() == {"lock", "definition"}
    assert f"is not attached to {other}" in wrong["lock"]
    rewrite(scene, sealed=True, reference=scene.built.ready.reference, digest=scene.digest, description="other")
    assert (await scene.wrong()).keys() == {"record", "tag"}


async def test_a_config_that_base_and_lock_do_not_give_is_found(scene: Scene) -> None:
    """Somebody went all the way: image, tag, attachments and record fit each other."""
    other = await altered(scene, backdoor)
    await register_other(scene, other)
    wrong = await scene.wrong(rebuild=True)
    assert wrong.keys() == {"base and config", "rebuild"}
    assert "its config is not what the base's config and the lock give" in wrong["base and config"]
    assert "with the same layers: its config differs" in wrong["rebuild"]


async def register_other(scene: Scene, digest: str) -> VersionRecord:
    """Attach what belongs to the lock to another image, and register that in place of the first."""
    record = await scene.team.versions.get("demo", 1)
    definition = EnvironmentDefinition(**record.definition)
    async with repository_of(f"{record.reference.partition('@')[0]}@{digest}") as (repository, _):
        image = (await repository.get_manifest(digest)).descriptor
        attached = await attachments.attach(repository, image, definition, scene.lock)
    reference = f"{record.reference.partition('@')[0]}@{digest}"
    rewrite(scene, sealed=True, reference=reference, digest=digest, lock_digest=attached.lock)
    return await scene.team.versions.get("demo", 1)


async def with_layer(scene: Scene, package: str, content: bytes, diff_id: str) -> str:
    """The image with other bytes in a package's layer, which says of itself what the right one says."""
    old = await layer_of(scene, package)
    notes = {**old.annotations, DIFF_ID: diff_id}
    new = Descriptor(old.media_type, digests.of(content), len(content), notes)
    async with repository_of(scene.built.ready.reference) as (repository, digest):
        manifest, config = await read_image(repository, digest)
        place = [layer.digest for layer in manifest.layers].index(old.digest)
        data = json.loads(json.dumps(dict(config.data)))
        data["rootfs"]["diff_ids"][place] = diff_id
        blob = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        described = Descriptor(types.IMAGE_CONFIG, digests.of(blob), len(blob))
        await repository.write_blob(described, blob)
        await repository.write_blob(new, content)
        layers = tuple(new if layer == old else layer for layer in manifest.layers)
        tag = digests.hex_of(scene.built.ready.image_hash)
        image = replace(manifest, config=described, layers=layers).to_bytes()
        return (await repository.put_manifest(image, types.IMAGE_MANIFEST, tag=tag)).digest


async def layer_bytes(scene: Scene, package: str) -> bytes:
    layer = await layer_of(scene, package)
    async with repository_of(scene.built.ready.reference) as (repository, _):
        return b"".join([chunk async for chunk in repository.read_blob(layer)])


def diff_id_of(content: bytes) -> str:
    return digests.of(gzip.decompress(content))


async def test_a_layer_with_another_packages_files_is_found_by_its_metadata_and_by_building_it(scene: Scene) -> None:
    """Keys, digests, diff ids, tag, attachments and record all fit; only what is in the layer does not."""
    content = await layer_bytes(scene, "beta")
    await register_other(scene, await with_layer(scene, "alpha", content, diff_id_of(content)))
    assert (await scene.verify()).ok
    wrong = await scene.wrong(full=True, rebuild=True)
    assert wrong.keys() == {"contents", "rebuild"}
    assert "alpha 1.0 of the lock is not in it" in wrong["contents"] and "it has beta 1.0" in wrong["contents"]
    right = (await layer_of(scene, "alpha")).digest
    assert f"is alpha 1.0 ({digests.of(content)}), the lock gives alpha 1.0 ({right})" in wrong["rebuild"]


def changed_files(content: bytes, change: Callable[[str, bytes], bytes], *, more: dict[str, bytes]) -> bytes:
    """A layer with other bytes in its files, and more files."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as old,
        tarfile.open(fileobj=out, mode="w:gz") as new,
    ):
        for member in old:
            data = change(member.name, old.extractfile(member).read()) if member.isreg() else b""  # type: ignore[union-attr]
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
        for name, data in more.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return out.getvalue()


async def test_a_file_that_record_does_not_know_is_found(scene: Scene) -> None:
    """One module has other bytes, and there is one more file."""
    evil = "opt/env/lib/evil.pth"

    def change(name: str, data: bytes) -> bytes:
        return b"import os\n" + data if name.endswith("gamma.py") else data

    content = changed_files(await layer_bytes(scene, "gamma"), change, more={evil: b"import os"})
    await register_other(scene, await with_layer(scene, "gamma", content, diff_id_of(content)))
    wrong = await scene.wrong(full=True)
    assert "gamma.py is not the file whose sha256 the RECORD gives" in wrong["contents"]
    assert f"/{evil} is in no RECORD" in wrong["contents"]


async def swap_lock(scene: Scene, *, listed: bool) -> str:
    """The lock of another image attached to this one, beside the right lock or in its place in the list."""
    package = replace(scene.lock.packages[0], sha256="0" * 64)
    content = replace(scene.lock, packages=(package, *scene.lock.packages[1:])).to_pylock().encode()
    async with repository_of(scene.built.ready.reference) as (repository, digest):
        image = (await repository.get_manifest(digest)).descriptor
        blob = Descriptor(attachments.LOCK, digests.of(content), len(content))
        await repository.write_blob(blob, content)
        manifest = artifact_manifest(blob, attachments.LOCK, subject=image).to_bytes()
        added = await repository.put_manifest(manifest, types.IMAGE_MANIFEST)
        if not listed:
            return added.digest
        tag = f"sha256-{digests.hex_of(digest)}"
        index = json.loads((await repository.get_manifest(tag)).content)
        right = (await scene.team.versions.get("demo", 1)).lock_digest
        index["manifests"] = [one for one in index["manifests"] if one["digest"] != right]
        await repository.put_manifest(json.dumps(index).encode(), types.IMAGE_INDEX, tag=tag)
        return added.digest


async def test_the_lock_of_another_image_among_the_attachments_is_found(scene: Scene) -> None:
    """Other tools find locks by the list: a foreign one there is named, and so is the right one's absence."""
    foreign = await swap_lock(scene, listed=False)
    wrong = await scene.wrong()
    assert wrong == {"lock": f"the lock {foreign} is attached to the image, and is the lock of another one"}
    await swap_lock(scene, listed=True)
    right = (await scene.team.versions.get("demo", 1)).lock_digest
    assert f"the list of attachments lacks the lock {right}" in (await scene.wrong())["lock"]


async def test_a_record_that_names_the_lock_of_another_image_is_found(scene: Scene) -> None:
    foreign = await swap_lock(scene, listed=False)
    rewrite(scene, sealed=True, lock_digest=foreign)
    wrong = await scene.wrong()
    assert wrong.keys() == {"lock"} and f"the lock {foreign} is of the image hash" in wrong["lock"]


async def test_a_lock_whose_bytes_were_replaced_is_found(alone: Scene) -> None:
    """In the storage of the registry, under the digest of the right one."""
    record = await alone.team.versions.get("demo", 1)
    async with repository_of(alone.built.ready.reference) as (repository, _):
        blob = ImageManifest.from_bytes((await repository.get_manifest(record.lock_digest)).content).layers[0]
    text = alone.blob(blob.digest).read_bytes()
    alone.blob(blob.digest).write_bytes(text.replace(b"alpha", b"alphb"))
    wrong = await alone.wrong()
    assert wrong.keys() == {"lock"} and blob.digest in wrong["lock"]
    assert hashlib.sha256(text).hexdigest() in wrong["lock"]


async def test_an_image_that_is_gone_is_one_failure_not_many(scene: Scene) -> None:
    async with repository_of(scene.built.ready.reference) as (repository, digest):
        await repository.delete_manifest(digest)
    found = await scene.verify(full=True)
    assert [one.name for one in failures(found.findings)] == ["image"]
    assert {"manifest and config", "contents"} <= {name for name, _ in found.skipped}


async def test_a_registry_out_of_reach_and_an_unknown_version_are_errors_not_findings(scene: Scene) -> None:
    with pytest.raises(VersionNotFound, match="no version 7"):
        async with open_site(scene.team, cache=scene.folder / "c") as site:
            await verify_version(site, "demo", 7)
    away = replace(scene.team, registry_settings=RegistrySettings("127.0.0.1:9"))
    with pytest.raises(RegistryUnreachable):
        await verified(away, scene.folder / "c")
