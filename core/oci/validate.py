"""Whether an image is sound: digests, sizes, diff ids, media types and the tars themselves."""

import asyncio
import hashlib
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prefect_environments.core import files
from prefect_environments.core.errors import DigestMismatch, ImageError
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import CONFIG_LIMIT, LAYER_TYPES, ImageConfig, ImageManifest, told_layers
from prefect_environments.core.oci.repository import Repository

ENGINE_LAYERS_MAX = 127
_CHUNK = 1024 * 1024


def check_image(manifest: ImageManifest, config: bytes) -> ImageConfig:
    """Check manifest and config against each other, without the layers. Raises `ImageError`."""
    described = manifest.config
    if (described.digest, described.size) != (digests.of(config), len(config)):
        raise DigestMismatch(f"the config is not the one that the manifest names ({described.digest})")
    if described.media_type not in (types.IMAGE_CONFIG, types.DOCKER_CONFIG):
        raise ImageError(f"the config has media type {described.media_type}, which is none of an image")
    read = ImageConfig.from_bytes(config)
    if len(read.diff_ids) != len(manifest.layers):
        raise ImageError(f"the manifest has {len(manifest.layers)} layers, the config {len(read.diff_ids)} diff ids")
    if len(manifest.layers) > ENGINE_LAYERS_MAX:
        raise ImageError(f"{len(manifest.layers)} layers; engines mount at most {ENGINE_LAYERS_MAX}")
    for layer in manifest.layers:
        if layer.media_type not in (*LAYER_TYPES, types.DOCKER_LAYER_GZIP, types.DOCKER_LAYER_TAR):
            raise ImageError(f"the layer {layer.digest} has media type {layer.media_type}, which is none of a layer")
    history = read.data.get("history")
    if isinstance(history, list) and history and told_layers(history) != len(manifest.layers):
        raise ImageError(f"the history tells of {told_layers(history)} layers, the manifest of {len(manifest.layers)}")
    return read


async def validate(repository: Repository, reference: str, scratch: Path) -> ImageManifest:
    """Read a whole image back and check every byte of it. Raises `ImageError` naming the first thing wrong."""
    stored = await repository.get_manifest(reference)
    manifest = ImageManifest.from_bytes(stored.content)
    if manifest.config.size > CONFIG_LIMIT:
        raise ImageError(f"the config of {reference} has {manifest.config.size} bytes")
    config = check_image(manifest, b"".join([c async for c in repository.read_blob(manifest.config)]))
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        with files.storage("validating an image", scratch), files.temporary_file(scratch) as file:
            async for chunk in repository.read_blob(layer):
                await asyncio.to_thread(file.write, chunk)
            file.flush()
            await asyncio.to_thread(check_layer, Path(file.name), layer, diff_id)
    return manifest


def check_layer(path: Path, layer: Descriptor, diff_id: str) -> None:
    """Check a layer's compressed file: one whole tar with that digest, every entry in its place."""
    if layer.media_type == types.LAYER_ZSTD:
        raise ImageError(f"the layer {layer.digest} is zstd, which this version does not read")
    packed = layer.media_type not in (types.LAYER_TAR, types.DOCKER_LAYER_TAR)
    try:
        found = _tar_digest(path, packed)
        if found != diff_id:
            raise DigestMismatch(f"the layer {layer.digest} unpacks to {found}; the config says {diff_id}")
        with tarfile.open(path, "r:gz" if packed else "r:") as archive:
            _check_entries(archive, layer)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ImageError(f"the layer {layer.digest} is not a sound archive ({error})") from error


def _tar_digest(path: Path, packed: bool) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _unpacked(file) if packed else iter(lambda: file.read(_CHUNK), b""):
            hasher.update(chunk)
    return f"sha256:{hasher.hexdigest()}"


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """The content of gzip members, whole to the last one's trailer, in chunks of bounded size (RFC 1952, 2.2)."""
    inflate, begun = zlib.decompressobj(31), False
    while chunk := file.read(_CHUNK):
        while chunk:
            begun = True
            yield inflate.decompress(chunk, _CHUNK)
            chunk = inflate.unconsumed_tail
            if inflate.eof:
                chunk, inflate, begun = inflate.unused_data, zlib.decompressobj(31), False
    while begun and (rest := inflate.decompress(b"", _CHUNK)):
        yield rest
    if begun and not inflate.eof:
        raise EOFError("the last gzip member is cut short")


def _check_entries(archive: tarfile.TarFile, layer: Descriptor) -> None:
    seen: set[str] = set()
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every entry that it has seen
        name = member.name
        if name.startswith("/") or ".." in [*name.split("/"), *(member.linkname.split("/") if member.islnk() else ())]:
            raise ImageError(f"the layer {layer.digest} has an entry outside the image: {name!r}")
        normal = posixpath.normpath(name)
        if normal in seen:
            raise ImageError(f"the layer {layer.digest} has two entries {normal!r}")
        seen.add(normal)
    check_end(archive)


def check_end(archive: tarfile.TarFile) -> None:
    """Check that only zeros follow the last entry, after a walk over all of them; raises `tarfile.ReadError`.

    tarfile takes a broken header for the end of the archive, and does not read on to the checksum of gzip.
    """
    file = archive.fileobj
    assert file is not None  # noqa: S101
    file.seek(archive.offset)
    while chunk := file.read(_CHUNK):
        if chunk.count(0) != len(chunk):
            raise tarfile.ReadError("bytes that are no entry at its end")
