"""`Registry` and its repositories: the store of images behind an OCI registry's address."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from yarl import URL

from prefect_environments.core.distribution import blobs, listings, manifests
from prefect_environments.core.distribution.connection import Limits
from prefect_environments.core.distribution.credentials import Advice, Credentials, CredentialSource
from prefect_environments.core.distribution.http import Transport
from prefect_environments.core.distribution.messages import Request, Scopes
from prefect_environments.core.distribution.place import Place, Shared
from prefect_environments.core.distribution.reference import api_host, check_host, check_path, is_loopback
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.repository import Manifest, Traffic

__all__ = ["Limits", "Registry", "RegistryRepository"]


class Registry:
    """A registry by its `host[:port]`. Connections are opened at first use and shared by all its repositories.

    `plain_http` is for a registry without TLS; by default only this machine's own addresses (localhost,
    127.0.0.0/8, [::1]) are asked so. `ca_file` has further certificate authorities as PEM. Without `credentials`
    access is anonymous; a source is asked only when the registry wants a sign-in. `advice` is what errors say where a
    permission is missing. Use it in one event loop.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: Credentials | CredentialSource | None = None,
        plain_http: bool | None = None,
        ca_file: Path | None = None,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        advice: Advice | None = None,
    ) -> None:
        self._address = check_host(address)
        self._traffic = Traffic()
        use_http = is_loopback(self._address) if plain_http is None else plain_http
        origin = URL(f"{'http' if use_http else 'https'}://{api_host(self._address)}/")
        transport = Transport(
            origin,
            self._address,
            credentials=credentials,
            ca_file=ca_file,
            limits=limits,
            traffic=self._traffic,
            advice=advice,
        )
        uploads, downloads = asyncio.Semaphore(limits.transfers), asyncio.Semaphore(limits.transfers)
        self._shared = Shared(transport, self._address, self._traffic, uploads, downloads)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def address(self) -> str:
        """`host[:port]`."""
        return self._address

    @property
    def traffic(self) -> Traffic:
        """The totals of all repositories."""
        return self._traffic

    def repository(self, path: str) -> "RegistryRepository":
        """The repository at `path`, whether it exists or not; raises `DefinitionError` for a wrong path."""
        return RegistryRepository(Place(self._shared, check_path(path)))

    async def ping(self) -> None:
        """Check that a registry answers and takes the credentials (distribution-spec, "Determining Support").

        Raises `RegistryUnreachable`, `RegistryAuthError` or `RegistryError`.
        """
        transport = self._shared.transport
        request = Request(method="GET", url=transport.origin / "v2/", where=self._address, step="check of the registry")
        await transport.fetch(request)

    @property
    def url(self) -> URL:
        """Where it answers: scheme, host and port."""
        return self._shared.transport.origin

    async def authorization(self, scopes: Scopes) -> str | None:
        """The `Authorization` header for requests to its other interfaces; `None` if there is none to send."""
        return await self._shared.transport.authorization(scopes)

    def advice(self, scopes: Scopes) -> str:
        """What to do where these scopes are refused, for errors about its other interfaces."""
        return self._shared.transport.auth.advice(scopes) or "Check the credentials and the user's rights"

    async def identity_token(self) -> str | None:
        """The token that other tools sign in with in place of a password; `None` if the credentials give none."""
        return await self._shared.transport.identity_token()

    async def close(self) -> None:
        """Close all connections. Harmless when repeated."""
        await self._shared.transport.close()


class RegistryRepository:
    """One repository of a registry: implements `core.oci.repository.Repository`, which says what each method does."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def name(self) -> str:
        """`host/path`."""
        return self._place.name

    @property
    def address(self) -> str:
        """The registry's `host[:port]`."""
        return self._place.shared.address

    @property
    def path(self) -> str:
        """The path without the host."""
        return self._place.path

    @property
    def traffic(self) -> Traffic:
        """What went over the wire for this object."""
        return self._place.traffic

    async def find_manifest(self, reference: str) -> Descriptor | None:
        """By one HEAD request; `None` only for the registry's own 404, `RegistryAuthError` for 401 and 403."""
        return await manifests.find(self._place, reference)

    async def get_manifest(self, reference: str) -> Manifest:
        """By tag or digest, verified, at most 4 MiB; raises `NotFound`, `DigestMismatch` or `ImageError`."""
        return await manifests.get(self._place, reference)

    async def put_manifest(self, content: bytes, media_type: str, *, tag: str | None = None) -> Descriptor:
        """Store a manifest by digest, or under `tag`, which stores it by digest too."""
        descriptor = Descriptor(media_type, digests.of(content), len(content))
        found = listings.subject_of(content, descriptor)  # first, so that a malformed subject stores nothing
        is_listed = await manifests.put(self._place, content, descriptor, tag)
        if found is not None and not is_listed:
            await listings.add_to_fallback(self._place, *found)
        return descriptor

    async def delete_manifest(self, digest: str) -> bool:
        """Delete a manifest with all its tags; `False` if it was not there. Not every registry allows it."""
        return await manifests.delete(self._place, digest)

    async def delete_tag(self, tag: str) -> bool:
        """Delete a tag and leave its manifest; `False` where the registry cannot, or has no such tag."""
        return await manifests.delete_tag(self._place, tag)

    async def has_blob(self, digest: str) -> bool:
        """Whether this repository has the blob."""
        return await blobs.has(self._place, digest)

    def read_blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """The bytes in chunks, verified before the last one; goes on by itself after a dropped connection."""
        return blobs.read(self._place, descriptor)

    async def write_blob(
        self, descriptor: Descriptor, content: Path | bytes, *, on_bytes: Callable[[int], None] | None = None
    ) -> bool:
        """Send a blob, `False` if it was there. `on_bytes` gets each number of bytes sent; a negative one when
        sending starts again."""
        return await blobs.write(self._place, descriptor, content, on_bytes)

    async def check_push(self) -> None:
        """Raise what a push would (`RegistryAuthError` and so on) without storing anything."""
        await blobs.try_upload(self._place)

    async def mount_blob(self, descriptor: Descriptor, source: str) -> bool:
        """Take a blob over from repository path `source` of this registry; `False` if it must be sent."""
        return await blobs.mount(self._place, descriptor, source)

    async def tags(self) -> list[str]:
        """All tags, in the registry's order; empty for a repository that does not exist."""
        return await listings.tags(self._place)

    async def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Manifests whose subject is `digest`, by the API or the fallback tag."""
        return await listings.referrers(self._place, digest, artifact_type)
