"""Job images: an environment's layers, the runtime that talks to Prefect, and the source on top.

A worker needs nothing but such an image: no shared storage, no Docker where it is put together, and the environment's
packages are the ones that its lock names, with nothing of ours among them.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prefect_environments.core import canonical, files
from prefect_environments.core.build import recipe
from prefect_environments.core.build.assemble import BASE_DIGEST, BASE_NAME
from prefect_environments.core.build.base import BaseImage, load_base
from prefect_environments.core.build.inspect import inspect_base
from prefect_environments.core.build.transfer import copy_blob
from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BaseImageError, DefinitionError, NotFound, RegistryError
from prefect_environments.core.jobs import runtime, source_layer
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.append import AddedLayer, Image, append
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageConfig, ImageManifest, oci_layer
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.oci.validate import check_image
from prefect_environments.core.site import Site, open_repository
from prefect_environments.core.stores import ImageLocation, reference_of
from prefect_environments.core.versions import VersionRecord

LAYERS_MAX = 127
"""The most that engines can mount."""

_BLOB_MISSING = {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_INVALID"}
_DROPPED = ("Entrypoint", "Cmd", "Healthcheck", "ArgsEscaped")
"""Settings of the environment's image that are about the program that it was made for."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobImage:
    """A job's image in the workspace's registry. Sizes are in bytes, as stored."""

    reference: str
    reused: bool
    source_size: int
    bytes_sent: int


def check_registry(site_address: str) -> None:
    """Raise `DefinitionError` where images are kept in a folder, out of which no work pool can pull."""
    if site_address.startswith("oci:"):
        raise DefinitionError(
            "a work pool pulls images from a registry, and this workspace keeps them in a folder: use a workspace with "
            "a registry that the pool's workers reach, or run the job on this machine (compute_target local)"
        )


async def ensure_job_image(
    site: Site, record: VersionRecord, lock: Lock, source: Path, extra: Sequence[str] = ()
) -> JobImage:
    """The image of a job: a version's image, the runtime (with the requirements `extra`), and the files in `source`.

    Found by its hash, else put together from layers that the registry has. Raises `DefinitionError`, `BaseImageError`
    for an image that cannot host the runtime, and the errors of resolving and of the registry.
    """
    check_registry(site.store.address)
    source_layer.warn_of_secrets(source)
    repository = site.store.repository(f"{site.workspace.repository_prefix}-jobs")
    async with _environment(site, record) as base:
        target = await _target(site, base, record, lock)
        runtime.check_host(target, f"the environment {record.name} version {record.version}")
        if len(base.manifest.layers) + runtime.LAYERS_MAX + 1 > LAYERS_MAX:
            raise BaseImageError(
                f"the image of {record.name} version {record.version} has {len(base.manifest.layers)} layers; at most "
                f"{LAYERS_MAX - runtime.LAYERS_MAX - 1} leave room for a job's. Flatten it, or choose another"
            )
        with files.storage("writing the source's layer", site.scratch), files.temporary_file(site.scratch) as file:
            blob = await asyncio.to_thread(source_layer.write_source, source, file)
            file.flush()
            layer = AddedLayer(Descriptor(blob.media_type, blob.digest, blob.size), blob.diff_id, "source of the job")
            work = _Work(site, repository, base, target, tuple(extra), layer, Path(file.name))
            return await work.ensure()


@asynccontextmanager
async def _environment(site: Site, record: VersionRecord) -> AsyncIterator[BaseImage]:
    """The version's image as a base, wherever it is."""
    definition = EnvironmentDefinition(**record.definition)
    name, platform = record.reference.partition("@")[0], Platform.parse(record.platform)
    if not definition.stays_where_it_is:
        yield await load_base(site.repository(record.name), record.digest, name, platform)
        return
    async with open_repository(site, definition, ImageLocation.parse(record.reference)) as repository:
        yield await load_base(repository, record.digest, name, platform)


async def _target(site: Site, base: BaseImage, record: VersionRecord, lock: Lock) -> Target:
    """What the environment offers: of a user-managed image it is found in its layers, once."""
    if lock.managed:
        return lock.target
    platform = Platform.parse(record.platform)
    found = await site.catalog.find_base(base.locked.digest)
    if found is None or found.platform != platform:
        found = await inspect_base(base, platform, site.scratch)
        await site.catalog.keep_base(base.locked.digest, found)
    return found


@dataclass(slots=True)
class _Work:
    site: Site
    repository: Repository
    base: BaseImage
    target: Target
    extra: tuple[str, ...]
    source: AddedLayer
    file: Path
    _sent: int = field(default=0, init=False)

    async def ensure(self) -> JobImage:
        layers = await runtime.ensure_runtime(self.site, self.repository, self.target, self.extra)
        image = self._image(layers)
        tag = digests.hex_of(self._hash(layers))
        found = await self.repository.find_manifest(tag)
        if found is not None and found.digest == image.descriptor.digest:
            return self._done(image, reused=True)
        try:
            await self._store(image, tag, anew=False)
        except RegistryError as error:
            if not (isinstance(error, NotFound) or error.code in _BLOB_MISSING):
                raise
            logger.warning("a layer is missing in %s, looking at each one: %s", self.repository.name, error)
            image = self._image(
                await runtime.ensure_runtime(self.site, self.repository, self.target, self.extra, anew=True)
            )
            await self._store(image, tag, anew=True)
        return self._done(image, reused=False)

    def _hash(self, layers: tuple[AddedLayer, ...]) -> str:
        return canonical.digest(
            {
                "kind": "job-image",
                "recipe": recipe.VERSION,
                "environment": self.base.locked.digest,
                "runtime": [layer.descriptor.digest for layer in layers],
                "source": self.source.descriptor.digest,
            }
        )

    def _image(self, layers: tuple[AddedLayer, ...]) -> Image:
        kept = {name: value for name, value in self.base.config.settings.items() if name not in _DROPPED}
        settings = {**kept, "WorkingDir": source_layer.FOLDER}
        image = append(
            self.base.manifest,
            ImageConfig({**self.base.config.data, "config": settings}),
            [*layers, self.source],
            environment={},
            annotations={BASE_NAME: self.base.locked.name, BASE_DIGEST: self.base.locked.digest},
        )
        check_image(image.manifest, image.config)
        return image

    async def _store(self, image: Image, tag: str, *, anew: bool) -> None:
        pointer = f"environment-{digests.hex_of(self.base.locked.digest)}"
        known = frozenset() if anew else await self._known(pointer)
        missing = [layer for layer in map(oci_layer, self.base.manifest.layers) if layer.digest not in known]
        scratch = self.site.scratch
        await gather(
            [
                *(copy_blob(layer, self.base.repository, self.repository, scratch, self._count) for layer in missing),
                self.repository.write_blob(self.source.descriptor, self.file, on_bytes=self._count),
                self.repository.write_blob(image.manifest.config, image.config, on_bytes=self._count),
            ]
        )
        for name in [tag] if known else [tag, pointer]:
            await self.repository.put_manifest(image.content, types.IMAGE_MANIFEST, tag=name)

    async def _known(self, pointer: str) -> frozenset[str]:
        """The layers of an earlier job in the same environment."""
        try:
            manifest = ImageManifest.from_bytes((await self.repository.get_manifest(pointer)).content)
        except NotFound:
            return frozenset()
        return frozenset(layer.digest for layer in manifest.layers)

    def _done(self, image: Image, *, reused: bool) -> JobImage:
        reference = reference_of(self.repository, image.descriptor.digest)
        return JobImage(reference, reused, self.source.descriptor.size, self._sent)

    def _count(self, size: int) -> None:
        self._sent += size
        self.site.progress.sent(size)
