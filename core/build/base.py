"""The base image: loaded by reference, pinned by digest, for one platform."""

from dataclasses import dataclass

from prefect_environments.core.errors import BaseImageError, ImageError, NotFound
from prefect_environments.core.lock.model import LockedBase
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import (
    CONFIG_LIMIT,
    INDEX_DEPTH,
    ImageConfig,
    ImageManifest,
    select_platform,
)
from prefect_environments.core.oci.repository import Manifest, Repository

KnownBases = dict[str, tuple[ImageManifest, ImageConfig]]
"""Base images that were read, by `repository@digest` of their manifest."""


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A base with all that an image on top of it needs but its layers' bytes."""

    locked: LockedBase
    manifest: ImageManifest
    config: ImageConfig
    repository: Repository


async def load_base(
    repository: Repository, reference: str, name: str, platform: Platform, known: KnownBases | None = None
) -> BaseImage:
    """Read a base image's manifest and config; an index gives its image for `platform`.

    What `known` has is not read again, and what was read is added to it.
    Raises `BaseImageError` where there is none for the platform, `NotFound` where there is no such image.
    """
    known = {} if known is None else known
    if found := known.get(f"{repository.name}@{reference}"):
        return _checked(BaseImage(LockedBase(name, reference), *found, repository), platform)
    try:
        manifest = await repository.get_manifest(reference)
    except NotFound as error:
        raise NotFound(f"the base image {name} does not exist: {error}", status=error.status) from error
    for _ in range(INDEX_DEPTH + 1):
        if manifest.descriptor.media_type not in types.INDEXES:
            break
        chosen = select_platform(manifest.content, platform, name)
        manifest = await repository.get_manifest(chosen.digest)
    else:
        raise ImageError(f"the base image {name} is an index of indexes, more than {INDEX_DEPTH} deep")
    digest = manifest.descriptor.digest
    place = f"{repository.name}@{digest}"
    if place not in known:
        known[place] = await _read(repository, manifest)
    return _checked(BaseImage(LockedBase(name, digest), *known[place], repository), platform)


async def _read(repository: Repository, manifest: Manifest) -> tuple[ImageManifest, ImageConfig]:
    image = ImageManifest.from_bytes(manifest.content)
    return image, ImageConfig.from_bytes(await read_all(repository, image.config, CONFIG_LIMIT))


def _checked(base: BaseImage, platform: Platform) -> BaseImage:
    name, layers, diff_ids = base.locked.name, len(base.manifest.layers), len(base.config.diff_ids)
    if base.config.platform != (platform.os, platform.architecture):
        raise BaseImageError(f"the base image {name} is for {'/'.join(base.config.platform)}, not for {platform}")
    if layers != diff_ids:
        raise ImageError(f"the base image {name} lists {layers} layers and {diff_ids} diff ids")
    return base


async def read_all(repository: Repository, descriptor: Descriptor, limit: int) -> bytes:
    """A small blob in memory, verified; `ImageError` for one over `limit` bytes."""
    if descriptor.size > limit:
        raise ImageError(f"{descriptor.digest} of {repository.name} has {descriptor.size} bytes; {limit} are read")
    return b"".join([chunk async for chunk in repository.read_blob(descriptor)])
