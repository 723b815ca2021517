"""Images without a daemon: base layers + the empty environment + package layers + config. Nothing is executed.

Layers that the registry has are taken by descriptor: not downloaded, not built, not sent.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from prefect_environments.core import files
from prefect_environments.core.build import catalog as catalogs
from prefect_environments.core.build import recipe, tar
from prefect_environments.core.build.base import BaseImage
from prefect_environments.core.build.bytecode import Compiler
from prefect_environments.core.build.catalog import Catalog
from prefect_environments.core.build.converters import Converters
from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.build.inspect import DEFAULT_PATH
from prefect_environments.core.build.layer import LayerBlob, Overlap
from prefect_environments.core.build.plan import PlannedLayer, plan_layers, size_of, skeleton_key
from prefect_environments.core.build.skeleton import write_skeleton
from prefect_environments.core.build.transfer import copy_blob, shared_path
from prefect_environments.core.concurrency import both, gather
from prefect_environments.core.errors import NotFound, RegistryError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci.append import AddedLayer, Image, append
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest, oci_layer
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.oci.validate import check_image
from prefect_environments.core.progress import SILENT, Progress

BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"

_BLOB_MISSING = {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_INVALID"}
"""What registries answer to a manifest that names a blob they don't have (distribution-spec, "Error Codes")."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer of a build: what is in it, its size as stored, whether its bytes had to be sent."""

    title: str
    size: int
    reused: bool
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Assembled:
    """An assembled image, stored and tagged, with what it took. `bytes_sent` counts blobs only."""

    image: Image
    layers: tuple[LayerReport, ...]
    overlaps: tuple[Overlap, ...]
    bytes_sent: int
    not_run: tuple[str, ...] = ()
    """Scripts of conda packages in layers that were built now, as `package: path`. Nothing runs them in an image."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """The paths in a layer by package, the overlaps among these packages, and the scripts that are not run."""

    overlaps: list[Overlap]
    paths: dict[str, list[str]]
    not_run: tuple[str, ...] = ()


@dataclass(slots=True)
class Assembler:
    """Puts images together in one repository.

    `known` are layers of earlier images in the same repository, by layer key; `catalog` knows those of all others.
    """

    base: BaseImage
    target: Repository
    wheels: WheelCache
    scratch: Path
    catalog: Catalog | None = None
    known: Mapping[str, AddedLayer] = field(default_factory=dict)
    known_base: frozenset[str] = frozenset()
    """Digests of base layers that the target repository is known to have."""
    progress: Progress = SILENT
    converters: Converters = field(default_factory=lambda: Converters(0))
    _built: dict[str, _Contents] = field(default_factory=dict)
    """What is in the layers that were built now, by layer key."""
    _unchecked: set[str] = field(default_factory=set)
    """Keys of the layers whose wheels are not checked yet."""
    _compiler: Compiler | None = None
    _wanted: int = 0
    """Bytes of the wheels that may have to be converted: what only the catalog knows counts."""
    _all_checked: asyncio.Event = field(default_factory=asyncio.Event)
    _sent: int = 0

    async def assemble(self, lock: Lock, tag: str) -> Assembled:
        """Build, store and tag the image of a lock; every error leaves the repository without that tag.

        Raises `PackageError` for a wheel that is refused, `BaseImageError` for a base with too many layers,
        `BuildError` where bytecode cannot be compiled, and the errors of the registry.
        """
        with Compiler(lock.bytecode) if lock.bytecode else nullcontext() as self._compiler:
            return await self._assembled(lock, tag)

    async def _assembled(self, lock: Lock, tag: str) -> Assembled:
        try:
            return await self._assemble(lock, tag)
        except RegistryError as error:
            if not self.known or not (isinstance(error, NotFound) or error.code in _BLOB_MISSING):
                raise
            # a layer of an earlier image is gone (pruned, or another registry behind the same name)
            logger.warning("a known layer is missing in %s, looking at each one: %s", self.target.name, error)
            self.known, self.known_base = {}, frozenset()
            return await self._assemble(lock, tag)

    async def _assemble(self, lock: Lock, tag: str) -> Assembled:
        planned = plan_layers(lock, len(self.base.manifest.layers))
        self._announce(planned)
        self._unchecked = {layer.key for layer in planned}
        if planned:
            self._all_checked.clear()
        else:  # a lock may be empty: there is nothing to wait for
            self._all_checked.set()
        with files.storage("assembling an image", self.scratch):
            files.sweep(self.scratch)
        bases, (skeleton, *layers) = await both(
            gather(self._base_layer(oci_layer(layer)) for layer in self.base.manifest.layers),
            gather([self._skeleton(lock), *(self._package_layer(lock, layer) for layer in planned)]),
        )
        image = append(
            self.base.manifest,
            self.base.config,
            [skeleton[0], *(layer for layer, _ in layers)],
            environment=environment(self.base, conda=bool(lock.conda)),
            annotations={BASE_NAME: lock.base.name, BASE_DIGEST: lock.base.digest},
        )
        check_image(image.manifest, image.config)
        await self._send_bytes(image.manifest.config, image.config)
        await self.target.put_manifest(image.content, types.IMAGE_MANIFEST, tag=tag)
        reports = (*bases, skeleton[1], *(report for _, report in layers))
        not_run = tuple(told for x in planned if x.key in self._built for told in self._built[x.key].not_run)
        for told in not_run:
            logger.warning("%s is not run: an image neither installs nor activates its conda packages", told)
        return Assembled(image, reports, self._overlaps(planned), self._sent, not_run)

    def _announce(self, planned: list[PlannedLayer]) -> None:
        wanted = [p for layer in planned if layer.key not in self.known for p in layer.contents]
        missing = [p for p in wanted if not self.wheels.has(p)]
        self.progress.planned(len(planned), sum(p.size or 0 for p in missing))
        self._wanted = sum(size_of(p) for layer in planned if layer.key not in self.known for p in layer.packages)

    async def _base_layer(self, layer: Descriptor) -> LayerReport:
        sent = False
        if layer.digest not in self.known_base:
            sent = await copy_blob(layer, self.base.repository, self.target, self.scratch, self._count)
        return LayerReport(f"base {layer.digest[7:19]}", layer.size, not sent)

    async def _skeleton(self, lock: Lock) -> tuple[AddedLayer, LayerReport]:
        title = "empty conda environment" if lock.conda else f"empty environment for Python {lock.target.python}"
        key = skeleton_key(lock)
        if key in self.known:
            return self.known[key], LayerReport(title, self.known[key].descriptor.size, True)
        with files.storage("writing a layer", self.scratch), files.temporary_file(self.scratch) as file:
            blob = write_skeleton(lock.target, file, conda=bool(lock.conda))
            file.flush()
            layer = catalogs.annotated(key, blob, title)
            await self._all_checked.wait()
            sent = await self.target.write_blob(layer.descriptor, Path(file.name), on_bytes=self._count)
        return layer, LayerReport(title, blob.size, not sent)

    async def _package_layer(self, lock: Lock, planned: PlannedLayer) -> tuple[AddedLayer, LayerReport]:
        names = tuple(f"{p.name} {p.version}" for p in planned.contents)
        layer = self.known.get(planned.key) or await self._from_catalog(planned)
        reused = layer is not None
        if reused:
            self._checked(planned)
        if layer is None:
            layer = await self._build_layer(lock, planned)
        self.progress.layer(planned.title, layer.descriptor.size, reused)
        return layer, LayerReport(planned.title, layer.descriptor.size, reused, names)

    async def _from_catalog(self, planned: PlannedLayer) -> AddedLayer | None:
        if self.catalog is None:
            return None
        layer = await self.catalog.find_layer(planned.key)
        if layer is None:
            return None
        plain = Descriptor(layer.descriptor.media_type, layer.descriptor.digest, layer.descriptor.size)
        try:
            await copy_blob(plain, self.catalog.repository, self.target, self.scratch, self._count)
        except NotFound:
            return None  # the registry lost the blob and kept its name: build it again
        return layer

    async def _build_layer(self, lock: Lock, planned: PlannedLayer) -> AddedLayer:
        if self._compiler is not None and planned.packages:
            await asyncio.to_thread(self._compiler.prepare)  # before anything is downloaded
        if planned.packages and self._compiler is None:
            self.converters.start(self._wanted)
        paths = await gather(self.wheels.get(package) for package in planned.contents)
        with files.storage("writing a layer", self.scratch), files.temporary_file(self.scratch) as file:
            blob, self._built[planned.key] = await self._convert(planned, paths, lock, file)
            file.flush()
            self._checked(planned)
            layer = catalogs.annotated(planned.key, blob, planned.title)
            await self.target.write_blob(layer.descriptor, Path(file.name), on_bytes=self._count)
        await self._all_checked.wait()
        if self.catalog is not None:
            await self._remember(self.catalog, planned.key, layer)
        return layer

    async def _convert(
        self, planned: PlannedLayer, paths: list[Path], lock: Lock, file: BinaryIO
    ) -> tuple[LayerBlob, _Contents]:
        if planned.conda:
            return await self.converters.in_thread(partial(_convert_conda, planned, paths, lock, file, self.scratch))
        given = list(zip(planned.packages, paths, strict=True))
        blob, overlaps, own_paths = await self.converters.convert(
            given, lock.target, file, self.scratch, compiler=self._compiler
        )
        return blob, _Contents(overlaps, own_paths)

    def _checked(self, planned: PlannedLayer) -> None:
        """A layer is sent as soon as its own wheels are there, have the lock's hash and were read to their ends; it
        is remembered for other images when those of all layers were: an image that is refused leaves blobs without a
        name, which the registry's garbage collection takes."""
        self._unchecked.discard(planned.key)
        if not self._unchecked:
            self._all_checked.set()

    async def _remember(self, catalog: Catalog, key: str, layer: AddedLayer) -> None:
        source = shared_path(self.target, catalog.repository)
        if source is None:
            return
        await catalog.keep_layer(key, layer, source)

    async def _send_bytes(self, descriptor: Descriptor, content: bytes) -> None:
        await self.target.write_blob(descriptor, content, on_bytes=self._count)

    def _overlaps(self, planned: list[PlannedLayer]) -> tuple[Overlap, ...]:
        """Files of several packages, within a layer and among the layers that were built now; the upper layer wins."""
        owners: dict[str, str] = {}
        found: list[Overlap] = []
        for built in (self._built[layer.key] for layer in planned if layer.key in self._built):
            found += built.overlaps
            own = [(path, name) for name, paths in built.paths.items() for path in paths]
            found += [Overlap(path, owners[path], name) for path, name in own if path in owners]
            found += _below(owners, built.paths)
            owners |= own
        return tuple(found)

    def _count(self, size: int) -> None:
        self._sent += size
        self.progress.sent(size)


def _convert_conda(
    planned: PlannedLayer, paths: list[Path], lock: Lock, file: BinaryIO, scratch: Path
) -> tuple[LayerBlob, _Contents]:
    from prefect_environments.core.build.conda import write_conda  # noqa: PLC0415  # rattler: only for conda

    given = list(zip(planned.conda, paths, strict=True))
    done = write_conda(given, lock.target.python_minor, file, scratch, planned.replaced)
    not_run = tuple(f"{name}: {path}" for name, path in done.not_run)
    return done.blob, _Contents(done.overlaps, done.paths, not_run)


def environment(base: BaseImage, *, conda: bool = False) -> dict[str, str | None]:
    """The variables of the image: the environment first on `PATH`, nothing of the base's Python visible in it.

    With `conda`, it is the active conda environment, and no venv is.
    """
    own = f"{recipe.PREFIX}/bin"
    path = [place for place in base.config.environment.get("PATH", DEFAULT_PATH).split(":") if place != own]
    return {
        "PATH": ":".join([own, *path]),
        "VIRTUAL_ENV": None if conda else recipe.PREFIX,
        "PYTHONPATH": None,
        "PYTHONHOME": None,
        **({"CONDA_PREFIX": recipe.PREFIX, "CONDA_DEFAULT_ENV": recipe.PREFIX} if conda else {}),
    }


def _below(owners: Mapping[str, str], paths: Mapping[str, list[str]]) -> list[Overlap]:
    """Files and links of lower layers that become folders, such as a link that another package's files lie behind."""
    found = [(path, name) for name, own in paths.items() for path in sorted(tar.parents(own) & owners.keys())]
    return [Overlap(path, owners[path], name) for path, name in found]


def known_layers(manifest: ImageManifest) -> tuple[dict[str, AddedLayer], frozenset[str]]:
    """What an earlier image of the same repository tells: package layers by key, and digests of its base layers."""
    added = catalogs.layers_by_key(manifest)
    own = {layer.descriptor.digest for layer in added.values()}
    return added, frozenset(layer.digest for layer in manifest.layers if layer.digest not in own)
