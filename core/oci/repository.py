"""What a place that holds images can do. A registry's repository and an image-layout folder both do it."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from prefect_environments.core.oci.descriptor import Descriptor

MANIFEST_LIMIT = 4 * 1024 * 1024
"""Largest manifest that is read, in bytes (distribution-spec, "Pushing Manifests")."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's bytes as stored, with the descriptor that names them."""

    content: bytes
    descriptor: Descriptor


@dataclass(slots=True)
class Traffic:
    """What went over the wire, for reports and tests: counts of requests, bytes of blobs and manifests."""

    requests: int = 0
    token_requests: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@runtime_checkable
class Repository(Protocol):
    """One repository: blobs and manifests by digest, manifests also by tag (distribution-spec, "Definitions").

    Every read is verified against its digest and size before it is handed out or kept. Methods raise `NotFound`
    for what is not there, `DigestMismatch` for wrong bytes, and other `RegistryError`s or `StorageError`.
    """

    @property
    def name(self) -> str:
        """`host/path` of a registry's repository; `oci:<folder>:<path>` of a layout's."""

    @property
    def address(self) -> str:
        """The store's address: `host[:port]`, or `oci:<folder>`."""

    @property
    def path(self) -> str:
        """The repository's path in its store."""

    @property
    def traffic(self) -> Traffic: ...

    async def find_manifest(self, reference: str) -> Descriptor | None:
        """The manifest's descriptor by tag or digest without its content; `None` only if the store says so."""

    async def get_manifest(self, reference: str) -> Manifest:
        """A manifest or index by tag or digest, verified, at most `MANIFEST_LIMIT` bytes."""

    async def put_manifest(self, content: bytes, media_type: str, *, tag: str | None = None) -> Descriptor:
        """Store a manifest by digest, and under `tag` if given. Its blobs must be there. Handles `subject`:
        where the store has no referrers API, the fallback tag is kept up to date."""

    async def delete_manifest(self, digest: str) -> bool:
        """Delete a manifest with all its tags in this repository; `False` if it was not there. Blobs that nothing
        needs any more are the store's to remove. Raises `RegistryError` where the registry does not allow it."""

    async def delete_tag(self, tag: str) -> bool:
        """Delete a tag and leave its manifest; `False` if there was none, or the store cannot (distribution-spec,
        "Deleting tags")."""

    async def has_blob(self, digest: str) -> bool: ...

    def read_blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """The blob's bytes in chunks. Digest and size are verified: the error comes before the last chunk is
        handed out, so a consumer must not publish what it has before the iteration ends."""

    async def write_blob(
        self, descriptor: Descriptor, content: Path | bytes, *, on_bytes: Callable[[int], None] | None = None
    ) -> bool:
        """Store a blob from a file or from memory; `False` if it was there already. The file stays."""

    async def mount_blob(self, descriptor: Descriptor, source: str) -> bool:
        """Take a blob over from the repository path `source` of the same store without sending it; `False`
        if the store cannot (then send it)."""

    async def tags(self) -> list[str]:
        """All tags, every page, in the store's order; empty for a repository that does not exist yet."""

    async def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Manifests whose `subject` is `digest` (distribution-spec, "Listing Referrers")."""


class Store(Protocol):
    """A registry or an image-layout folder: repositories by path."""

    @property
    def address(self) -> str:
        """`host[:port]`, or `oci:<folder>`."""

    def repository(self, path: str) -> Repository: ...

    async def close(self) -> None: ...
