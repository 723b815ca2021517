"""A built image out of its engine and into a repository. Layers that the registry has are not sent, and those that were
sent before are not even compressed: the `layers` repository remembers them by diff id and codec."""

import asyncio
import hashlib
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from prefect_environments.core import canonical, files
from prefect_environments.core.build import deflate, recipe
from prefect_environments.core.build.catalog import DIFF_ID, LAYER_KEY, Catalog
from prefect_environments.core.build.docker.archive import SavedImage, SavedLayer, read_saved
from prefect_environments.core.build.docker.engine import LABEL, EngineImage
from prefect_environments.core.build.transfer import copy_blob, shared_path
from prefect_environments.core.concurrency import gather
from prefect_environments.core.errors import DigestMismatch, ImageError, NotFound
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.append import AddedLayer
from prefect_environments.core.oci.artifact import TITLE
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageConfig, ImageManifest, load_object, oci_layer
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.oci.validate import check_image, check_layer
from prefect_environments.core.progress import SILENT, Progress

_MEMBER = 1024 * 1024  # bytes of tar in one gzip member: they decide the blob's digest
_OF_THE_ENGINE = (
    "container",
    "container_config",
    "docker_version",
    "id",
    "parent",
    "moby.buildkit.buildinfo.v1",
    "moby.buildkit.cache.v0",
)
"""Keys of a config that say how it was built, not what it is."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownLayer:
    """A layer of an image that a Dockerfile starts from, and where its blob is."""

    descriptor: Descriptor
    repository: Repository


async def push_built(
    image: EngineImage,
    repository: Repository,
    tag: str | None,
    scratch: Path,
    *,
    catalog: Catalog | None = None,
    known: Mapping[str, KnownLayer] | None = None,
    progress: Progress = SILENT,
) -> Descriptor:
    """Store a built image in `repository`, under `tag` if given; gives its manifest's descriptor.

    `known` are the layers of the images that it starts from, by diff id: they are mounted or copied as they are.
    Raises `ImageError` for an image that is not sound, `EngineUnavailable`, and the registry's errors.
    """
    deflate.check()
    push = Push(repository, scratch, catalog, known or {}, progress)
    found = await push.find(await asyncio.to_thread(_diff_ids, image))
    with files.storage("taking an image out of the Docker engine", scratch), files.temporary_folder(scratch) as folder:
        saved = await asyncio.to_thread(_save, image, folder, found.keys())
        return await push.store(saved, found, tag)


def known_layers(manifest: ImageManifest, config: ImageConfig, repository: Repository) -> dict[str, KnownLayer]:
    """The layers of an image in a registry by diff id, for `push_built`."""
    pairs = zip(config.diff_ids, manifest.layers, strict=True)
    return {diff_id: KnownLayer(oci_layer(layer), repository) for diff_id, layer in pairs}


def layer_key(diff_id: str) -> str:
    """What a compressed layer of an engine is remembered by; also a tag."""
    counted = {"kind": "engine-layer", "diff-id": diff_id, "codec": recipe.CODEC, "member": _MEMBER}
    return f"engine-{digests.hex_of(canonical.digest(counted))}"


@dataclass(slots=True)
class Push:
    """One image on its way into one repository."""

    repository: Repository
    scratch: Path
    catalog: Catalog | None = None
    known: Mapping[str, KnownLayer] = field(default_factory=dict)
    progress: Progress = SILENT

    async def store(self, saved: SavedImage, found: Mapping[str, Descriptor], tag: str | None) -> Descriptor:
        """Send what of an image is not in `found`, then its config and manifest."""
        unique = {layer.diff_id: layer for layer in saved.layers}
        sent = await gather(self.layer(layer, found.get(diff_id)) for diff_id, layer in unique.items())
        placed = dict(zip(unique, sent, strict=True))
        config = _own_config(saved.config)
        described = Descriptor(types.IMAGE_CONFIG, digests.of(config), len(config))
        manifest = ImageManifest(described, tuple(placed[layer.diff_id] for layer in saved.layers))
        check_image(manifest, config)
        await self.repository.write_blob(described, config, on_bytes=self.progress.sent)
        return await self.repository.put_manifest(manifest.to_bytes(), types.IMAGE_MANIFEST, tag=tag)

    async def find(self, diff_ids: list[str]) -> dict[str, Descriptor]:
        """The layers that the repository has now, without a byte from the engine."""
        wanted = list(dict.fromkeys(diff_ids))
        found = await gather(self._find(diff_id) for diff_id in wanted)
        return {diff_id: layer for diff_id, layer in zip(wanted, found, strict=True) if layer is not None}

    async def _find(self, diff_id: str) -> Descriptor | None:
        if base := self.known.get(diff_id):
            return await self._taken_over(base.descriptor, base.repository)
        if self.catalog is None:
            return None
        layer = await self.catalog.find_layer(layer_key(diff_id))
        if layer is None or layer.diff_id != diff_id:
            return None
        plain = Descriptor(layer.descriptor.media_type, layer.descriptor.digest, layer.descriptor.size)
        return await self._taken_over(plain, self.catalog.repository)

    async def _taken_over(self, layer: Descriptor, source: Repository) -> Descriptor | None:
        try:
            await copy_blob(layer, source, self.repository, self.scratch, self.progress.sent)
        except NotFound:
            return None  # the registry lost the blob and kept its name
        return layer

    async def layer(self, saved: SavedLayer, found: Descriptor | None) -> Descriptor:
        """The layer in the repository, sent only if it was not found there."""
        title = f"layer {saved.diff_id[7:19]}"
        if found is not None:
            self.progress.layer(title, found.size, True)
            return found
        if saved.path is None:
            raise ImageError(f"the Docker engine's image has no file for its layer {saved.diff_id}; build it again")
        if saved.media_type in (types.LAYER_TAR, types.DOCKER_LAYER_TAR):
            descriptor, sent = await self._compressed(saved.path, saved.diff_id, title)
        else:
            descriptor, sent = await self._as_it_is(saved.path, saved)
        self.progress.layer(title, descriptor.size, not sent)
        return descriptor

    async def _compressed(self, path: Path, diff_id: str, title: str) -> tuple[Descriptor, bool]:
        with files.temporary_file(self.scratch) as out:
            descriptor = await asyncio.to_thread(_compress, path, diff_id, out)
            sent = await self.repository.write_blob(descriptor, Path(out.name), on_bytes=self.progress.sent)
        await self._remember(descriptor, diff_id, title)
        return descriptor, sent

    async def _as_it_is(self, path: Path, saved: SavedLayer) -> tuple[Descriptor, bool]:
        """A layer that the engine keeps compressed."""
        digest = await asyncio.to_thread(digests.of_file, path)
        descriptor = oci_layer(Descriptor(saved.media_type, digest, path.stat().st_size))
        if descriptor.media_type != types.LAYER_ZSTD:
            await asyncio.to_thread(_check, path, descriptor, saved.diff_id)
        return descriptor, await self.repository.write_blob(descriptor, path, on_bytes=self.progress.sent)

    async def _remember(self, descriptor: Descriptor, diff_id: str, title: str) -> None:
        source = None if self.catalog is None else shared_path(self.repository, self.catalog.repository)
        if self.catalog is None or source is None:
            return
        key = layer_key(diff_id)
        notes = {LAYER_KEY: key, DIFF_ID: diff_id, TITLE: title}
        noted = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, notes)
        await self.catalog.keep_layer(key, AddedLayer(noted, diff_id, title), source)


def _diff_ids(image: EngineImage) -> list[str]:
    with image.engine.client() as api:
        layers = api.inspect_image(image.id)["RootFS"].get("Layers") or []
    return [digests.check(layer) for layer in layers]


def _save(image: EngineImage, folder: Path, found: Collection[str]) -> SavedImage:
    """Unpack what the engine gives, without the layers that are `found`.

    Old engines' archives name their layers by nothing that is known before: they are left out all or none.
    """
    with image.engine.client(None) as api:
        diff_ids = set(api.inspect_image(image.id)["RootFS"].get("Layers") or [])
        needs_any = bool(diff_ids - set(found))
        return read_saved(
            api.get_image(image.id), folder, image.platform, lambda digest: digest not in found if digest else needs_any
        )


def _check(path: Path, layer: Descriptor, diff_id: str) -> None:
    """A layer must be the one that the config names; what else is odd in it, the engine has run with."""
    try:
        check_layer(path, layer, diff_id)
    except DigestMismatch:
        raise
    except ImageError as error:
        logger.warning("pushed as it is: %s", error)


def _compress(source: Path, diff_id: str, out: BinaryIO) -> Descriptor:
    """Write a layer's tar as gzip members of one size each; raises `DigestMismatch` for another tar."""
    packed, plain, size = hashlib.sha256(), hashlib.sha256(), 0
    with source.open("rb") as tar:
        while chunk := tar.read(_MEMBER):
            plain.update(chunk)
            member = deflate.member(chunk)
            packed.update(member)
            size += len(member)
            out.write(member)
    out.flush()
    if (found := f"sha256:{plain.hexdigest()}") != diff_id:
        raise DigestMismatch(f"the Docker engine gave a layer of {found}; its config says {diff_id}. Build it again")
    return Descriptor(types.LAYER_GZIP, f"sha256:{packed.hexdigest()}", size)


def _own_config(content: bytes) -> bytes:
    """The engine's config as canonical JSON, without what names this build and the engine."""
    ImageConfig.from_bytes(content)
    data = {key: value for key, value in load_object(content, "an image config").items() if key not in _OF_THE_ENGINE}
    settings = dict(data.get("config") or {})
    labels = {name: value for name, value in (settings.get("Labels") or {}).items() if name != LABEL}
    settings["Labels"] = labels
    if not labels:
        del settings["Labels"]
    data["config"] = settings
    with suppress(KeyError):
        data["history"] = [line for line in data["history"] if not _tells_the_label(line)]
    return canonical.dumps(data)


def _tells_the_label(line: Any) -> bool:
    """The classic builder writes our label down as one more step."""
    return isinstance(line, dict) and bool(line.get("empty_layer")) and f"LABEL {LABEL}=" in str(line.get("created_by"))
