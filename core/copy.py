"""An image from one place to another, with what is attached to it; nothing is unpacked, and the digest stays."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from prefect_environments.core.build.transfer import copy_blob
from prefect_environments.core.concurrency import gather
from prefect_environments.core.errors import ImageError
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest, load_object
from prefect_environments.core.oci.repository import Manifest, Repository
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretStore
from prefect_environments.core.site import default_cache
from prefect_environments.core.stores import open_store, reference_of

_AT_ONCE = 8
"""Blobs in work: what was fetched and is not sent yet lies on the disk."""
_DEEPEST = 4
"""Attachments of attachments: a signature of an SBOM is two deep."""
_SIGNED = (".sig", ".att", ".sbom")
"""Endings of the tags under which signing tools without referrers keep what belongs to an image."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Copier:
    """Copies manifests with all that they name from one repository to another."""

    origin: Repository
    goal: Repository
    scratch: Path
    lenders: Callable[[Descriptor], Iterable[str]] = lambda _: ()
    """Paths of more repositories of the goal's store that may have a blob."""
    on_bytes: Callable[[int], None] = lambda _: None
    on_blob: Callable[[Descriptor, bool], None] = lambda _blob, _sent: None
    """Called for each blob that is where it belongs, and whether its bytes were sent."""
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def manifest(self, manifest: Manifest, *, tag: str | None = None) -> None:
        """A manifest, after its blobs, or after the manifests of an index. Interrupted, it leaves no manifest behind
        but finished ones, and blobs that the next try finds."""
        if manifest.descriptor.media_type in types.INDEXES:
            for digest in _listed(manifest):
                await self.manifest(await self.origin.get_manifest(digest))
        else:
            await self.blobs(ImageManifest.from_bytes(manifest.content))
        await self.goal.put_manifest(manifest.content, manifest.descriptor.media_type, tag=tag)

    async def blobs(self, manifest: ImageManifest) -> None:
        """All that a manifest names."""
        await gather(map(self._blob, blobs_of(manifest)))

    async def _blob(self, blob: Descriptor) -> None:
        async with self._turns:
            lenders = self.lenders(blob)
            sent = await copy_blob(blob, self.origin, self.goal, self.scratch, self.on_bytes, lenders=lenders)
        self.on_blob(blob, sent)

    async def attachments(self, digest: str, *, _depth: int = 0) -> list[Descriptor]:
        """What is attached to a manifest: its referrers, theirs, and what stands under the tags of signing tools."""
        listed = await self.origin.referrers(digest) if _depth < _DEEPEST else []
        there = {known.digest for known in await self.goal.referrers(digest)} if listed else set()
        found = list[Descriptor]()
        for referrer in listed:
            if referrer.media_type not in (*types.MANIFESTS, *types.INDEXES):
                logger.warning(
                    "%s, attached to %s, is a %s: left out", referrer.digest, digest[:19], referrer.media_type
                )
                continue
            # a list that is a tag may name what was deleted
            if referrer.digest not in there or await self.goal.find_manifest(referrer.digest) is None:
                await self.manifest(await self.origin.get_manifest(referrer.digest))
            found += [referrer, *await self.attachments(referrer.digest, _depth=_depth + 1)]
        if not _depth:
            await self._signatures(digest)
        return found

    async def _signatures(self, digest: str) -> None:
        """Those that the goal has are its own, as whoever takes an image over may have signed it anew."""
        for tag in (f"{digest.replace(':', '-')}{ending}" for ending in _SIGNED):
            found = await self.origin.find_manifest(tag)
            if found is not None and await self.goal.find_manifest(tag) is None:
                await self.manifest(await self.origin.get_manifest(found.digest), tag=tag)


def blobs_of(manifest: ImageManifest) -> list[Descriptor]:
    """Config and layers, each once."""
    return list({blob.digest: blob for blob in (manifest.config, *manifest.layers)}.values())


def _listed(index: Manifest) -> list[str]:
    """Digests of the manifests in an index (image-spec, image-index.md)."""
    listed = load_object(index.content, "an image index").get("manifests")
    if not isinstance(listed, list):
        raise ImageError(f"the index {index.descriptor.digest} lists no manifests; push it again")
    return [Descriptor.from_json(item).digest for item in listed]


async def copy_image(
    reference: str, source: RegistrySettings, target: RegistrySettings, path: str, secrets: SecretStore
) -> str:
    """Copy `repository@sha256:…` or `repository:tag` of `source` to the repository `path` of `target`.

    Raises `NotFound` where the source has no such image, and the errors of either store.
    """
    here, identifier = _split(reference, source)
    giver, taker = await open_store(source, secrets), await open_store(target, secrets)
    try:
        origin, goal = giver.repository(here), taker.repository(path)
        copier = Copier(origin, goal, default_cache() / "scratch")
        manifest = await origin.get_manifest(identifier)
        await copier.manifest(manifest, tag=None if ":" in identifier else identifier)
        await copier.attachments(manifest.descriptor.digest)
        return reference_of(goal, manifest.descriptor.digest)
    finally:
        await giver.close()
        await taker.close()


def _split(reference: str, source: RegistrySettings) -> tuple[str, str]:
    """`(repository, tag or digest)`; a full reference of the source is accepted, too."""
    text = reference.removeprefix(source.address).lstrip("/:")
    path, at, digest = text.partition("@")
    if at:
        return path.rpartition(":")[0] or path, digest
    path, _, tag = text.rpartition(":")
    return (path, tag) if path else (tag, "latest")
