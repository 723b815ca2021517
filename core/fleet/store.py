"""A registry whose repositories know of each other's blobs: what one of them got, the others mount."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.repository import Manifest, Repository, Store, Traffic

_CONFIGS = (types.IMAGE_CONFIG, "application/vnd.docker.container.image.v1+json")


@dataclass(slots=True)
class _Known:
    """What a run has seen of a registry."""

    places: dict[str, str] = field(default_factory=dict)
    """Path of a repository that has the blob, by digest."""
    sending: dict[str, asyncio.Lock] = field(default_factory=dict)
    reading: dict[tuple[str, str], asyncio.Lock] = field(default_factory=dict)
    manifests: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    configs: dict[str, bytes] = field(default_factory=dict)


class SharedStore:
    """A registry for builds that run at the same time. A blob is sent once; manifests and configs of images outside
    of `own` (path prefixes), such as base images, are read once. Whoever opened the registry closes it."""

    def __init__(self, store: Store, own: tuple[str, ...]) -> None:
        self._store = store
        self._own = own
        self._known = _Known()

    @property
    def address(self) -> str:
        return self._store.address

    def repository(self, path: str) -> "SharedRepository":
        return SharedRepository(self._store.repository(path), self._known, remember=not path.startswith(self._own))

    async def close(self) -> None:
        """Nothing: see above."""


class SharedRepository:
    """One repository of a `SharedStore`; see `Repository` for what the methods promise."""

    def __init__(self, repository: Repository, known: _Known, *, remember: bool) -> None:
        self._repository = repository
        self._known = known
        self._remember = remember

    @property
    def name(self) -> str:
        return self._repository.name

    @property
    def address(self) -> str:
        return self._repository.address

    @property
    def path(self) -> str:
        return self._repository.path

    @property
    def traffic(self) -> Traffic:
        return self._repository.traffic

    async def find_manifest(self, reference: str) -> Descriptor | None:
        return await self._repository.find_manifest(reference)

    async def get_manifest(self, reference: str) -> Manifest:
        if not self._remember:
            return await self._repository.get_manifest(reference)
        place, known = (self.path, reference), self._known
        async with known.reading.setdefault(place, asyncio.Lock()):
            if place not in known.manifests:
                known.manifests[place] = await self._repository.get_manifest(reference)
        return known.manifests[place]

    async def put_manifest(self, content: bytes, media_type: str, *, tag: str | None = None) -> Descriptor:
        return await self._repository.put_manifest(content, media_type, tag=tag)

    async def has_blob(self, digest: str) -> bool:
        """Whether it is there, or is now, because another repository of the registry has it."""
        if await self._mounted(Descriptor(types.LAYER_GZIP, digest, 0)):
            return True
        found = await self._repository.has_blob(digest)
        if found:
            self._known.places.setdefault(digest, self.path)
        return found

    async def read_blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        if not self._remember or descriptor.media_type not in _CONFIGS:
            async for chunk in self._repository.read_blob(descriptor):
                yield chunk
            return
        known = self._known
        async with known.reading.setdefault((self.path, descriptor.digest), asyncio.Lock()):
            if descriptor.digest not in known.configs:
                chunks = [chunk async for chunk in self._repository.read_blob(descriptor)]
                known.configs[descriptor.digest] = b"".join(chunks)
        yield known.configs[descriptor.digest]

    async def write_blob(
        self, descriptor: Descriptor, content: Path | bytes, *, on_bytes: Callable[[int], None] | None = None
    ) -> bool:
        known = self._known
        async with known.sending.setdefault(descriptor.digest, asyncio.Lock()):
            if await self._mounted(descriptor):
                return False
            sent = await self._repository.write_blob(descriptor, content, on_bytes=on_bytes)
            known.places.setdefault(descriptor.digest, self.path)
            return sent

    async def mount_blob(self, descriptor: Descriptor, source: str) -> bool:
        mounted = await self._repository.mount_blob(descriptor, source)
        if mounted:
            self._known.places.setdefault(descriptor.digest, self.path)
        return mounted

    async def delete_manifest(self, digest: str) -> bool:
        return await self._repository.delete_manifest(digest)

    async def delete_tag(self, tag: str) -> bool:
        return await self._repository.delete_tag(tag)

    async def tags(self) -> list[str]:
        return await self._repository.tags()

    async def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        return await self._repository.referrers(digest, artifact_type)

    async def _mounted(self, descriptor: Descriptor) -> bool:
        place = self._known.places.get(descriptor.digest)
        if place is None or place == self.path:
            return False
        return await self._repository.mount_blob(descriptor, place)
