"""An image layout as a store: what is put in comes out, whole or not at all, also under several writers."""

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest

from prefect_environments.core.errors import DigestMismatch, ImageError, NotFound, StorageError
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import Layout, LayoutRepository
from prefect_environments.core.oci.repository import MANIFEST_LIMIT, Repository
from tests.core.oci.parts import LAYERS, blob_path, manifest_of, put_blob, put_image

CONTENT = bytes(range(256)) * 10_000
BLOB = Descriptor(types.LAYER_GZIP, digests.of(CONTENT), len(CONTENT))


async def _read(repository: LayoutRepository, descriptor: Descriptor) -> bytes:
    return b"".join([chunk async for chunk in repository.read_blob(descriptor)])


async def _artifact(
    repository: LayoutRepository, subject: Descriptor | None, kind: str = "", tag: str = ""
) -> Descriptor:
    """A small artifact; without `kind` its config's type says what it is."""
    config = await put_blob(repository, b"{}", "application/example+json")
    data = {"schemaVersion": 2, "config": config.to_json(), "layers": [], "annotations": {"kind": kind}}
    if subject:
        data["subject"] = subject.to_json()
    if kind:
        data["artifactType"] = kind
    return await repository.put_manifest(json.dumps(data).encode(), types.IMAGE_MANIFEST, tag=tag or None)


@pytest.mark.parametrize("from_file", [True, False])
async def test_a_blob_comes_back_as_it_was_given(from_file: bool, tmp_path: Path) -> None:
    repository = Layout(tmp_path / "layout").repository("a")
    assert isinstance(repository, Repository)
    (tmp_path / "file").write_bytes(CONTENT)
    given, sent = tmp_path / "file" if from_file else CONTENT, list[int]()
    assert not await repository.has_blob(BLOB.digest)
    assert await repository.write_blob(BLOB, given, on_bytes=sent.append)
    assert not await repository.write_blob(BLOB, given, on_bytes=sent.append), "it was there already"
    assert sent == [len(CONTENT)] and repository.traffic.bytes_sent == len(CONTENT)
    assert await _read(repository, BLOB) == CONTENT and await repository.has_blob(BLOB.digest)
    assert (tmp_path / "file").read_bytes() == CONTENT, "the file stays"
    assert await _read(repository.layout.repository("another"), BLOB) == CONTENT, "blobs are shared"


async def test_a_blob_given_by_a_link_is_the_file_behind_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to("file")
    repository = Layout(tmp_path / "layout").repository("a")
    await repository.write_blob(BLOB, tmp_path / "link")
    assert not blob_path(tmp_path / "layout", CONTENT).is_symlink()
    assert await _read(repository, BLOB) == CONTENT


@pytest.mark.parametrize("from_file", [True, False])
async def test_a_blob_that_is_not_what_was_announced_is_not_stored(from_file: bool, tmp_path: Path) -> None:
    repository = Layout(tmp_path / "layout").repository("a")
    (tmp_path / "file").write_bytes(CONTENT + b"!")
    with pytest.raises(DigestMismatch, match="announced as"):
        await repository.write_blob(BLOB, tmp_path / "file" if from_file else CONTENT + b"!")
    assert not await repository.has_blob(BLOB.digest)
    assert list(repository.layout.scratch.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT + b"!", b"!" + CONTENT[1:], CONTENT[:-1] + b"!"])
async def test_a_corrupt_blob_is_never_handed_out_whole(damage: bytes, tmp_path: Path) -> None:
    repository = Layout(tmp_path).repository("a")
    await repository.write_blob(BLOB, CONTENT)
    blob_path(tmp_path, CONTENT).write_bytes(damage)
    received = b""
    with pytest.raises(DigestMismatch, match="is not what its name says; remove it"):
        async for chunk in repository.read_blob(BLOB):
            received += chunk
    assert len(received) < len(CONTENT)


async def test_sha512_blobs_are_read(tmp_path: Path) -> None:
    repository, digest = Layout(tmp_path).repository("a"), f"sha512:{hashlib.sha512(CONTENT).hexdigest()}"
    path = repository.layout.blob_path(digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert await _read(repository, Descriptor(types.LAYER_TAR, digest, len(CONTENT))) == CONTENT


async def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    repository = Layout(tmp_path / "nothing").repository("a")
    assert await repository.find_manifest("latest") is None
    assert await repository.find_manifest(BLOB.digest) is None
    assert await repository.tags() == [] and await repository.referrers(BLOB.digest) == []
    with pytest.raises(NotFound, match="a has no manifest latest"):
        await repository.get_manifest("latest")
    with pytest.raises(NotFound, match=f"a has no blob {BLOB.digest}"):
        await _read(repository, BLOB)
    assert not (tmp_path / "nothing").exists(), "looking makes nothing"


async def test_a_manifest_comes_back_by_tag_and_by_digest(tmp_path: Path) -> None:
    repository = await put_image(tmp_path, tag="v1")
    manifest = await repository.get_manifest("v1")
    assert await repository.find_manifest("v1") == manifest.descriptor
    assert await repository.get_manifest(manifest.descriptor.digest) == manifest
    assert digests.of(manifest.content) == manifest.descriptor.digest
    assert await repository.tags() == ["v1"]


async def test_a_tag_moves_and_the_old_manifest_stays_by_digest(tmp_path: Path) -> None:
    first = await (await put_image(tmp_path)).get_manifest("latest")
    repository = await put_image(tmp_path, LAYERS[:1])
    second = await repository.get_manifest("latest")
    assert second.descriptor != first.descriptor and await repository.tags() == ["latest"]
    assert await repository.get_manifest(first.descriptor.digest) == first


async def test_repositories_of_one_layout_have_their_own_tags(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for path in ("a", "a/b", "b"):
        await _artifact(layout.repository(path), None, path, tag="t")
    for path in ("a", "a/b", "b"):
        repository = layout.repository(path)
        assert await repository.tags() == ["t"]
        assert json.loads((await repository.get_manifest("t")).content)["artifactType"] == path


async def test_a_manifest_without_a_tag_is_listed_once(tmp_path: Path) -> None:
    repository = Layout(tmp_path).repository("a")
    first = await _artifact(repository, None, "x")
    assert await _artifact(repository, None, "x") == first
    assert await repository.tags() == [] and len(repository.layout.entries()) == 1
    assert (await repository.get_manifest(first.digest)).descriptor == first


async def test_referrers_are_listed_by_subject_and_type(tmp_path: Path) -> None:
    repository = await put_image(tmp_path)
    subject = (await repository.get_manifest("latest")).descriptor
    lock, sbom = await _artifact(repository, subject, "lock"), await _artifact(repository, subject, "sbom", tag="s")
    await _artifact(repository, subject, "sbom")  # once more, without a tag
    typeless = await _artifact(repository, subject)
    await _artifact(repository, lock, "other")
    found = {item.digest: item for item in await repository.referrers(subject.digest)}
    assert found.keys() == {lock.digest, sbom.digest, typeless.digest}
    assert found[lock.digest].annotations == {"kind": "lock"}
    assert found[typeless.digest].artifact_type == "application/example+json", "its config's type"
    assert [item.digest for item in await repository.referrers(subject.digest, "lock")] == [lock.digest]
    assert await repository.referrers(digests.of(b"nobody")) == []


async def test_what_somebody_deletes_while_it_is_read_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a prune: neither a failure of the disk, nor of those who look for something else."""
    repository = await put_image(tmp_path)
    subject = (await repository.get_manifest("latest")).descriptor
    lock, sbom = await _artifact(repository, subject, "lock"), await _artifact(repository, subject, "sbom")
    repository.layout.blob_path(lock.digest).unlink()  # its entry was read just before
    assert [item.digest for item in await repository.referrers(subject.digest)] == [sbom.digest]
    doomed, is_file = repository.layout.blob_path(sbom.digest), Path.is_file

    def there_and_gone(path: Path) -> bool:
        found = is_file(path)
        if path == doomed:
            path.unlink()
        return found

    content = doomed.read_bytes()
    monkeypatch.setattr(Path, "is_file", there_and_gone)
    assert await repository.find_manifest(sbom.digest) is None
    doomed.write_bytes(content)
    with pytest.raises(NotFound, match=f"a has no blob {sbom.digest}"):
        await _read(repository.layout.repository("a"), sbom)


async def test_a_lock_that_cannot_be_taken_is_a_storage_error(tmp_path: Path) -> None:
    """As in a layout that this user may only read, where all blobs of the manifest are there already."""
    repository = await put_image(tmp_path)
    manifest = await repository.get_manifest("latest")
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StorageError, match="writing an image layout"):
        await repository.put_manifest(manifest.content, manifest.descriptor.media_type, tag="new")


async def test_a_manifest_without_its_blobs_is_refused(tmp_path: Path) -> None:
    repository = await put_image(tmp_path)
    gone = Descriptor(types.LAYER_GZIP, digests.of(b"gone"), 4)
    there = LAYERS[0].descriptor
    for content in (
        manifest_of([gone], b"{}"),
        manifest_of([Descriptor(there.media_type, there.digest, there.size + 1)], b"{}"),
        json.dumps({"schemaVersion": 2, "manifests": [gone.to_json()]}).encode(),
    ):
        with pytest.raises(NotFound, match=r"has no blob .* is not stored"):
            await repository.put_manifest(content, types.IMAGE_MANIFEST, tag="new")
    assert await repository.tags() == ["latest"]


@pytest.mark.parametrize(
    "content", [b"text", b"[]", b'{"layers": 5}', b'{"layers": {"a": 1}}', b'{"layers": [5]}', b'{"config": "x"}']
)
async def test_what_is_no_manifest_is_refused(content: bytes, tmp_path: Path) -> None:
    repository = Layout(tmp_path).repository("a")
    with pytest.raises(ImageError):
        await repository.put_manifest(content, types.IMAGE_MANIFEST, tag="new")
    assert await repository.tags() == []


async def test_a_corrupt_manifest_is_never_handed_out(tmp_path: Path) -> None:
    repository = await put_image(tmp_path)
    manifest = await repository.get_manifest("latest")
    path = blob_path(tmp_path, manifest.content)
    path.write_bytes(manifest.content.replace(b"2", b"3", 1))
    for reference in ("latest", manifest.descriptor.digest):
        with pytest.raises(DigestMismatch, match="is not what its name says"):
            await repository.get_manifest(reference)
    path.write_bytes(bytes(MANIFEST_LIMIT + 1))
    with pytest.raises(ImageError, match="larger than a manifest may be"):
        await repository.get_manifest("latest")
    path.unlink()
    assert await repository.find_manifest("latest") is None


async def test_an_index_that_was_damaged_is_said_so(tmp_path: Path) -> None:
    repository = await put_image(tmp_path)
    for damage in (b"", b"{", b'{"manifests": 5}', b'{"manifests": [5]}'):
        (tmp_path / "index.json").write_bytes(damage)
        with pytest.raises(ImageError, match=r"index\.json"):
            await repository.tags()


async def test_a_mount_needs_no_bytes(tmp_path: Path) -> None:
    repository = await put_image(tmp_path)
    other = repository.layout.repository("other")
    assert await other.mount_blob(LAYERS[0].descriptor, "team/image")
    assert not await other.mount_blob(BLOB, "team/image") and other.traffic.bytes_sent == 0


async def test_a_folder_with_other_things_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all my work")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match="is not empty and no image layout; choose another folder"):
        await Layout(tmp_path).repository("a").write_blob(BLOB, CONTENT)
    assert sorted(tmp_path.rglob("*")) == before


async def test_an_empty_folder_becomes_a_layout(tmp_path: Path) -> None:
    await put_image(tmp_path)
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["schemaVersion"], index["mediaType"]) == (2, types.IMAGE_INDEX)
    assert list((tmp_path / ".tmp").iterdir()) == []


async def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    """A layout on a shared disk must be readable by others, though temporary files are not."""
    before = os.umask(0o027)
    try:
        await put_image(tmp_path / "layout")
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "layout").rglob("*") if p.is_file() and p.name != ".lock"}
    assert modes == {0o640}


async def test_many_tasks_may_tag_at_once(tmp_path: Path) -> None:
    repository = Layout(tmp_path).repository("a")
    await asyncio.gather(*(_artifact(repository, None, f"k{n}", tag=f"t{n}") for n in range(40)))
    assert sorted(await repository.tags()) == sorted(f"t{n}" for n in range(40))
