"""What the tests of images share: layers, configs and whole images, written into a layout."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import REF_NAME, Layout, LayoutRepository


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@dataclass(frozen=True)
class Layer:
    """A layer as stored, and the tar in it."""

    content: bytes
    tar: bytes
    media_type: str = types.LAYER_GZIP

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, digests.of(self.content), len(self.content))

    @property
    def diff_id(self) -> str:
        return digests.of(self.tar)


def layer_of(files: Mapping[str, bytes]) -> Layer:
    """A gzip layer of regular files."""
    return raw_layer(tar_of(files))


def raw_layer(tar: bytes) -> Layer:
    """A gzip layer of a tar that may be none."""
    return Layer(gzip.compress(tar, mtime=0), tar)


LAYERS = [layer_of({"etc/one": b"1" * 5000}), layer_of({"etc/two": b"2", "usr/bin/three": b"3" * 900})]


def config_of(layers: Sequence[Layer], **changed: Any) -> dict[str, Any]:
    """An image config; keys of `changed` replace, None removes."""
    history = [{"created_by": f"layer {n}"} for n in range(len(layers))]
    data = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": ["PATH=/usr/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [*history, {"created_by": "ENV", "empty_layer": True}],
    }
    return {key: value for key, value in (data | changed).items() if value is not None}


def manifest_of(
    layers: Sequence[Descriptor], config: bytes, *, replaced: Mapping[str, Any] | None = None, **changed: Any
) -> bytes:
    """An image manifest's bytes; `changed` sets other keys, `replaced` becomes the config's descriptor."""
    data = {
        "schemaVersion": 2,
        "mediaType": types.IMAGE_MANIFEST,
        "config": Descriptor(types.IMAGE_CONFIG, digests.of(config), len(config)).to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    if replaced is not None:
        data["config"] = dict(replaced)
    return json.dumps(data | changed).encode()


async def put_blob(repository: LayoutRepository, content: bytes, media_type: str = types.LAYER_GZIP) -> Descriptor:
    descriptor = Descriptor(media_type, digests.of(content), len(content))
    await repository.write_blob(descriptor, content)
    return descriptor


async def put_image(
    folder: Path,
    layers: Sequence[Layer] = LAYERS,
    config: Mapping[str, Any] | None = None,
    *,
    tag: str = "latest",
    described: Sequence[Descriptor] | None = None,
) -> LayoutRepository:
    """An image in a layout of its own; `described` are layer descriptors that may lie, as other tools write them."""
    repository = Layout(folder).repository("team/image")
    for layer in layers:
        await put_blob(repository, layer.content)
    blob = json.dumps(config_of(layers) if config is None else dict(config)).encode()
    await put_blob(repository, blob, types.IMAGE_CONFIG)
    descriptors = [layer.descriptor for layer in layers] if described is None else described
    content = manifest_of(descriptors, blob)
    if described is None:
        await repository.put_manifest(content, types.IMAGE_MANIFEST, tag=tag)
    else:
        await put_blob(repository, content, types.IMAGE_MANIFEST)
        entry = Descriptor(types.IMAGE_MANIFEST, digests.of(content), len(content), {REF_NAME: f"team/image:{tag}"})
        repository.layout.add_entry(entry.to_json())
    return repository


def blob_path(folder: Path, content: bytes) -> Path:
    return folder / "blobs" / "sha256" / hashlib.sha256(content).hexdigest()
