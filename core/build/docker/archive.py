"""What an engine gives for an image (`docker save`): its parts unpacked to files, in the two forms that there are.

Engines before Docker 25 give `manifest.json` with plain tars; later ones an OCI image layout (image-spec,
image-layout.md), whose layers are compressed where the engine keeps its images in containerd.
"""

import json
import posixpath
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

from prefect_environments.core.errors import ImageError
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import (
    CONFIG_LIMIT,
    INDEX_DEPTH,
    LAYERS_MAX,
    ImageConfig,
    ImageManifest,
    load_object,
    select_platform,
)

_CHUNK = 1024 * 1024
_LINKS_MAX = 16


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """One layer: the digest of its tar, its file (absent if it was not wanted), and how that is stored."""

    diff_id: str
    path: Path | None
    media_type: str


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image as an engine gave it."""

    config: bytes
    layers: tuple[SavedLayer, ...]


def read_saved(chunks: Iterable[bytes], folder: Path, platform: Platform, wanted: Callable[[str], bool]) -> SavedImage:
    """Unpack a saved image into `folder` as it comes in. Layers whose diff id is not `wanted` are not kept, as far as
    the archive names them so. Raises `ImageError` for what is no saved image."""
    members = _Members(folder)
    try:
        with tarfile.open(fileobj=_Reader(chunks), mode="r|") as archive:
            for member in archive:
                members.take(archive, member, wanted)
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(f"the Docker engine's image is not a whole archive ({error}); save it again") from error
    return _layout(members, platform) if members.find("index.json") else _manifest_json(members)


class _Members:
    """The files of an archive by their names in it. They lie in a folder under numbers: no name leads out of there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._links: dict[str, str] = {}

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, wanted: Callable[[str], bool]) -> None:
        name = posixpath.normpath(member.name)
        if member.issym():
            self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            self._links[name] = posixpath.normpath(member.linkname)
        elif member.isfile() and self._is_kept(name, member.size, wanted):
            source = archive.extractfile(member)
            assert source is not None  # noqa: S101
            path = self._folder / str(len(self._files))
            with path.open("wb") as out:
                while chunk := source.read(_CHUNK):
                    out.write(chunk)
            self._files[name] = path

    def find(self, name: str) -> Path | None:
        for _ in range(_LINKS_MAX):
            if name not in self._links:
                break
            name = self._links[name]
        return self._files.get(name)

    def read(self, name: str, limit: int = CONFIG_LIMIT) -> bytes:
        path = self.find(posixpath.normpath(name))
        if path is None or path.stat().st_size > limit:
            raise ImageError(f"the Docker engine's image has no {name!r:.200} of at most {limit} bytes")
        return path.read_bytes()

    def blob(self, digest: str) -> Path | None:
        return self.find(_blob_name(digest))

    @staticmethod
    def _is_kept(name: str, size: int, wanted: Callable[[str], bool]) -> bool:
        """Small ones always: a config can be that, and a layer that is one costs nothing."""
        if size <= _CHUNK:
            return True
        if name.startswith("blobs/sha256/"):
            return wanted(f"sha256:{posixpath.basename(name)}")
        return name.endswith(".json") or wanted("")


def _blob_name(digest: str) -> str:
    return f"blobs/{digests.check(digest).replace(':', '/', 1)}"


def _layout(members: _Members, platform: Platform) -> SavedImage:
    """An OCI image layout with one image, perhaps in indexes for several platforms."""
    content = members.read("index.json")
    for _ in range(INDEX_DEPTH + 1):
        chosen = select_platform(_without_attestations(content), platform, "the built image")
        content = members.read(_blob_name(chosen.digest))
        if "manifests" not in load_object(content, "a manifest"):
            break
    else:
        raise ImageError(f"the Docker engine's image is an index of indexes, more than {INDEX_DEPTH} deep")
    manifest = ImageManifest.from_bytes(content)
    config = members.read(_blob_name(manifest.config.digest))
    diff_ids = ImageConfig.from_bytes(config).diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise ImageError(f"the Docker engine's image lists {len(manifest.layers)} layers and {len(diff_ids)} diff ids")
    pairs = zip(diff_ids, manifest.layers, strict=True)
    return SavedImage(config, tuple(SavedLayer(d, members.blob(x.digest), x.media_type) for d, x in pairs))


def _without_attestations(index: bytes) -> bytes:
    """An index without the manifests of no platform that BuildKit adds for provenance."""
    data = load_object(index, "an image index")
    manifests = data.get("manifests")
    if not isinstance(manifests, list):
        raise ImageError("an image index must list its manifests")
    kept = [item for item in manifests if (Descriptor.from_json(item).platform or {}).get("os") != "unknown"]
    return json.dumps({**data, "manifests": kept}).encode()


def _manifest_json(members: _Members) -> SavedImage:
    """Docker's own form: a list of images, each with its config's and its layers' names."""
    try:
        listed = json.loads(members.read("manifest.json"))
        config, names = listed[0]["Config"], listed[0]["Layers"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ImageError(f"the Docker engine's manifest.json cannot be read ({type(error).__name__})") from None
    if not isinstance(names, list) or len(names) > LAYERS_MAX or not all(isinstance(n, str) for n in (config, *names)):
        raise ImageError("the Docker engine's manifest.json must name a config and a list of layers")
    content = members.read(config)
    diff_ids = ImageConfig.from_bytes(content).diff_ids
    if len(diff_ids) != len(names):
        raise ImageError(f"the Docker engine's image lists {len(names)} layers and {len(diff_ids)} diff ids")
    found = [members.find(posixpath.normpath(name)) for name in names]
    layers = [SavedLayer(diff_id, path, types.LAYER_TAR) for diff_id, path in zip(diff_ids, found, strict=True)]
    return SavedImage(content, tuple(layers))


class _Reader(RawIOBase):
    """Chunks as a file that can only be read on."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__()
        self._chunks = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, missing = [self._rest], size - len(self._rest)
        while missing > 0 and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            missing -= len(chunk)
        whole = b"".join(parts)
        self._rest = whole[size:]
        return whole[:size]
