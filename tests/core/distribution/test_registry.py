"""The client against a real docker-registry that is open: every method of a repository."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_environments.core.distribution.listings import fallback_tag
from prefect_environments.core.distribution.registry import Registry, RegistryRepository
from prefect_environments.core.errors import DigestMismatch, NotFound, RegistryUnreachable, StorageError
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import IMAGE_CONFIG, IMAGE_INDEX, IMAGE_MANIFEST, Descriptor
from prefect_environments.core.oci.repository import Repository, Traffic
from tests.support.registry import Registry as Running

Blob = Callable[[bytes], Descriptor]


def path() -> str:
    """A repository path that no other test uses."""
    return f"dist/{uuid4().hex}"


def manifest(**more: object) -> bytes:
    """A small manifest whose only blob is the config `{}`."""
    config = {"mediaType": IMAGE_CONFIG, "digest": digests.of(b"{}"), "size": 2}
    whole = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": config, "layers": [], **more}
    return json.dumps(whole).encode()


async def put_image(repository: RegistryRepository, tag: str | None = None, **more: object) -> Descriptor:
    await repository.write_blob(Descriptor(IMAGE_CONFIG, digests.of(b"{}"), 2), b"{}")
    return await repository.put_manifest(manifest(**more), IMAGE_MANIFEST, tag=tag)


async def read(repository: RegistryRepository, descriptor: Descriptor) -> bytes:
    return b"".join([chunk async for chunk in repository.read_blob(descriptor)])


async def test_a_blob_from_a_file_comes_back_as_it_was(open_registry: Running, tmp_path: Path, blob: Blob) -> None:
    content = os.urandom(3_500_000)
    (tmp_path / "layer").write_bytes(content)
    sent: list[int] = []
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        assert isinstance(repository, Repository)
        assert not await repository.has_blob(digests.of(content))
        assert await repository.write_blob(blob(content), tmp_path / "layer", on_bytes=sent.append) is True
        assert sum(sent) == len(content)
        assert await repository.has_blob(digests.of(content))
        assert await read(repository, blob(content)) == content
        assert (tmp_path / "layer").exists()


async def test_a_blob_that_is_there_is_not_sent(open_registry: Running, blob: Blob) -> None:
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        assert await repository.write_blob(blob(b"abc"), b"abc") is True
        before = repository.traffic.requests
        assert await repository.write_blob(blob(b"abc"), b"abc") is False
        assert repository.traffic == Traffic(before + 1, 0, 3, 0)


async def test_an_empty_blob_is_stored_and_read(open_registry: Running, blob: Blob) -> None:
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        assert await repository.write_blob(blob(b""), b"") is True
        assert await read(repository, blob(b"")) == b""


async def test_a_blob_that_is_not_what_its_descriptor_says_is_not_stored(
    open_registry: Running, tmp_path: Path, blob: Blob
) -> None:
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        with pytest.raises(DigestMismatch, match="computed another digest"):
            await repository.write_blob(blob(b"abc"), b"abd")
        with pytest.raises(DigestMismatch, match="4 bytes"):
            await repository.write_blob(blob(b"abc"), b"abcd")
        with pytest.raises(StorageError, match="gone"):
            await repository.write_blob(blob(b"abc"), tmp_path / "gone")
        assert not await repository.has_blob(digests.of(b"abc"))


async def test_many_blobs_go_at_once_and_each_arrives(open_registry: Running, blob: Blob) -> None:
    contents = [os.urandom(50_000) for _ in range(30)]
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        assert all(await asyncio.gather(*(repository.write_blob(blob(c), c) for c in contents)))
        assert await asyncio.gather(*(read(repository, blob(c)) for c in contents)) == contents
        assert registry.traffic == repository.traffic


async def test_a_missing_blob_is_not_found(open_registry: Running, blob: Blob) -> None:
    async with Registry(open_registry.address) as registry:
        with pytest.raises(NotFound, match="download of blob sha256:"):
            await read(registry.repository(path()), blob(b"never sent"))


async def test_a_mount_takes_over_a_blob_and_says_no_for_one_that_is_not_there(
    open_registry: Running, blob: Blob
) -> None:
    source, content = path(), os.urandom(1000)
    async with Registry(open_registry.address) as registry:
        await registry.repository(source).write_blob(blob(content), content)
        target = registry.repository(path())
        assert await target.mount_blob(blob(content), source) is True
        assert target.traffic.bytes_sent == 0
        assert await read(target, blob(content)) == content
        assert await target.mount_blob(blob(b"never sent"), source) is False


async def test_nothing_to_do_costs_one_request(open_registry: Running) -> None:
    name = path()
    async with Registry(open_registry.address) as registry:
        stored = await put_image(registry.repository(name), "t1")
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(name)
        assert await repository.find_manifest("t1") == stored
        assert await repository.find_manifest(stored.digest) == stored
        assert await repository.find_manifest("t2") is None
        assert await registry.repository(path()).find_manifest("t1") is None
        assert repository.traffic == Traffic(requests=3)
        assert registry.traffic == Traffic(requests=4)


async def test_a_manifest_is_read_by_tag_and_by_digest(open_registry: Running) -> None:
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        stored = await put_image(repository, "t1")
        for reference in ("t1", stored.digest):
            found = await repository.get_manifest(reference)
            assert (found.content, found.descriptor) == (manifest(), stored)
        with pytest.raises(NotFound) as caught:
            await repository.get_manifest("t2")
        assert caught.value.status == 404 and caught.value.code == "MANIFEST_UNKNOWN"
        assert repository.name in str(caught.value) and "t2" in str(caught.value)


async def test_a_deleted_manifest_is_gone(open_registry: Running) -> None:
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        stored = await put_image(repository, "t1")
        assert await repository.delete_manifest(stored.digest) is True
        assert await repository.find_manifest("t1") is None
        assert await repository.delete_manifest(stored.digest) is False


async def test_tags_are_listed_and_none_where_there_is_no_repository(open_registry: Running) -> None:
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        assert await repository.tags() == []
        for tag in ("a", "b"):
            await put_image(repository, tag)
        assert sorted(await repository.tags()) == ["a", "b"]


async def test_referrers_are_kept_at_the_fallback_tag_where_there_is_no_api(open_registry: Running) -> None:
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        subject = await put_image(repository, "t1")
        assert await repository.referrers(subject.digest) == []
        kinds = [f"application/x.kind{n}" for n in range(6)]
        await asyncio.gather(
            *(put_image(repository, artifactType=k, subject=subject.to_json(), annotations={"k": k}) for k in kinds)
        )
        found = await repository.referrers(subject.digest)
        assert sorted(str(item.artifact_type) for item in found) == kinds
        [one] = await repository.referrers(subject.digest, kinds[2])
        assert one.annotations == {"k": kinds[2]}
        index = await repository.get_manifest(fallback_tag(subject.digest))
        assert index.descriptor.media_type == IMAGE_INDEX


async def test_writing_a_referrer_again_lists_it_once(open_registry: Running) -> None:
    async with Registry(open_registry.address) as registry:
        repository = registry.repository(path())
        subject = await put_image(repository)
        for _ in range(2):
            await put_image(repository, artifactType="application/x.y", subject=subject.to_json())
        assert len(await repository.referrers(subject.digest)) == 1


async def test_a_registry_pings_and_closes_twice(open_registry: Running) -> None:
    registry = Registry(open_registry.address)
    await registry.ping()
    await registry.close()
    await registry.close()
    assert registry.traffic == Traffic(requests=1)


async def test_a_plain_registry_that_is_asked_by_tls_names_the_switch(open_registry: Running) -> None:
    async with Registry(open_registry.address, plain_http=False) as registry:
        with pytest.raises(RegistryUnreachable, match="plain_http=True"):
            await registry.repository("a").find_manifest("t")
        assert registry.traffic.requests == 1


async def test_a_refused_connection_is_told_after_few_tries() -> None:
    async with Registry("127.0.0.1:1") as registry:
        with pytest.raises(RegistryUnreachable, match=r"127\.0\.0\.1:1/a: manifest check of t got no answer"):
            await registry.repository("a").find_manifest("t")
        assert registry.traffic.requests == 3
