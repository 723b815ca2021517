"""From a lock to an image in the workspace's registry: found there by its hash, else assembled, or copied as it is."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefect_environments.core import attachments, hashes
from prefect_environments.core.bases import open_base
from prefect_environments.core.build.assemble import Assembler, known_layers
from prefect_environments.core.build.base import BaseImage
from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.build.layer import Overlap
from prefect_environments.core.build.transfer import copy_blob
from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import ImageError, NotFound
from prefect_environments.core.extend import effective
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.prune.claims import claim
from prefect_environments.core.site import Site
from prefect_environments.core.steps import BuiltImage
from prefect_environments.core.stores import reference_of

logger = logging.getLogger(__name__)


async def build(site: Site, definition: EnvironmentDefinition, lock: Lock, *, force: bool) -> BuiltImage:
    """See `steps.build`."""
    wanted = (await effective(site, definition)).definition
    repository = site.repository(definition.name)
    image_hash = hashes.image_hash(lock)
    tag = digests.hex_of(image_hash)
    await claim(site.workspace.versions, definition.name, image_hash)
    # a copy that was made for `mirror` is not the image that stays where it is
    existing = None if force or wanted.stays_where_it_is else await repository.find_manifest(tag)
    if existing is not None:
        found = await repository.get_manifest(existing.digest)  # verified: its size is told to others
        size = _size(ImageManifest.from_bytes(found.content))
        reference = reference_of(repository, existing.digest)
        built = BuiltImage(found.descriptor, image_hash, lock, True, size, reference)
    elif not lock.managed:
        built = await _as_it_is(site, wanted, lock, repository, tag)
    else:
        built = await _assemble(site, wanted, lock, repository, tag)
    attached = await attachments.attach(repository, built.descriptor, definition, lock)
    return replace(built, attached=attached)


async def _as_it_is(
    site: Site, definition: EnvironmentDefinition, lock: Lock, repository: Repository, tag: str
) -> BuiltImage:
    """A user-managed image where it is; one that a Dockerfile made, or that is to be mirrored, beside the others."""
    async with open_base(site, definition, lock=lock) as base:
        manifest = await base.repository.get_manifest(lock.base.digest)
        size, sent, copied = _size(base.manifest), 0, False
        reference = reference_of(base.repository, lock.base.digest)
        if definition.mirror or definition.dockerfile or definition.build_context:
            site.progress.step("mirror")
            sent, copied = await _copy(site, base, repository), True
            await repository.put_manifest(manifest.content, manifest.descriptor.media_type, tag=tag)
            reference = reference_of(repository, lock.base.digest)
            logger.info("copied %s to %s, %d bytes sent", lock.base.name, reference, sent)
    # what is copied is new here even where its blobs were there: its Dockerfile may have been built just now
    return BuiltImage(manifest.descriptor, hashes.image_hash(lock), lock, not copied, size, reference, bytes_sent=sent)


async def _copy(site: Site, base: BaseImage, repository: Repository) -> int:
    sent = 0

    def count(size: int) -> None:
        nonlocal sent
        sent += size
        site.progress.sent(size)

    blobs = {blob.digest: blob for blob in (base.manifest.config, *base.manifest.layers)}
    await gather(copy_blob(blob, base.repository, repository, site.scratch, count) for blob in blobs.values())
    return sent


async def _assemble(
    site: Site, definition: EnvironmentDefinition, lock: Lock, repository: Repository, tag: str
) -> BuiltImage:
    known, known_base = await _known_layers(site, definition.name, repository)
    site.progress.step("assemble")
    async with (
        open_base(site, definition, lock=lock) as base,
        WheelCache(
            site.cache / "wheels",
            store=site.wheel_store,
            credentials=site.index_credentials,
            on_bytes=site.progress.downloaded,
        ) as wheels,
    ):
        assembler = Assembler(
            base,
            repository,
            wheels,
            site.scratch,
            site.catalog,
            known,
            known_base,
            progress=site.progress,
            converters=site.converters,
        )
        done = await assembler.assemble(lock, tag)
    new = sum(not layer.reused for layer in done.layers)
    logger.info(
        "assembled %d layers: %d new, %d reused, %d bytes sent",
        len(done.layers),
        new,
        len(done.layers) - new,
        done.bytes_sent,
    )
    for overlap in done.overlaps:
        logger.warning("/%s comes from both %s and %s; %s's is used", *_told(overlap))
    return BuiltImage(
        done.image.descriptor,
        hashes.image_hash(lock),
        lock,
        reused=False,
        size=done.image.size,
        reference=reference_of(repository, done.image.descriptor.digest),
        layers=done.layers,
        overlaps=done.overlaps,
        bytes_sent=done.bytes_sent,
        not_run=done.not_run,
    )


def _told(overlap: Overlap) -> tuple[str, str, str, str]:
    return overlap.path, overlap.loser, overlap.winner, overlap.winner


def _size(manifest: ImageManifest) -> int:
    return manifest.config.size + sum(layer.size for layer in manifest.layers)


async def _known_layers(site: Site, name: str, repository: Repository) -> tuple[Mapping[str, Any], frozenset[str]]:
    """The layers of the newest version's image, by one request."""
    newest = await site.workspace.versions.newest(name)
    if newest is None or not newest.reference.startswith(f"{repository.name}@"):
        return {}, frozenset()
    try:
        manifest = ImageManifest.from_bytes((await repository.get_manifest(newest.digest)).content)
        if newest.definition.get("user_managed"):  # somebody else's: its annotations are no word of ours
            return {}, frozenset(layer.digest for layer in manifest.layers)
        return known_layers(manifest)
    except (NotFound, ImageError) as error:
        logger.info("the newest version's image cannot be reused: %s", error)
        return {}, frozenset()
