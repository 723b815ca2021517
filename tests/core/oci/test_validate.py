"""Each kind of tampering with a stored image is found, and a sound image passes."""

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.errors import DigestMismatch, ImageError, NotFound
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.validate import check_image, check_layer, validate
from tests.core.oci.parts import (
    LAYERS,
    Layer,
    blob_path,
    config_of,
    layer_of,
    manifest_of,
    put_image,
    raw_layer,
    tar_of,
)
from tests.support.base import BaseLayout

_TAR = tar_of({"a": b"1" * 3000, "b": b"2" * 3000})


async def test_a_sound_image_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    repository = await put_image(tmp_path / "layout")
    manifest = await validate(repository, "latest", tmp_path / "scratch")
    assert [layer.digest for layer in manifest.layers] == [layer.descriptor.digest for layer in LAYERS]
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_the_real_base_image_passes(base_layout: BaseLayout, tmp_path: Path) -> None:
    assert (await validate(Layout(base_layout.folder).repository(""), "base", tmp_path)).layers


@pytest.mark.parametrize("at", [0, 9, 40, -1])
@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
async def test_a_flipped_bit_is_found_wherever_it_is(part: str, at: int, tmp_path: Path) -> None:
    repository = await put_image(tmp_path)
    manifest = (await repository.get_manifest("latest")).content
    config = ImageManifest.from_bytes(manifest).config.digest
    paths = {"layer": blob_path(tmp_path, LAYERS[1].content), "manifest": blob_path(tmp_path, manifest)}
    path = paths.get(part, repository.layout.blob_path(config))
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(DigestMismatch, match="is not what its name says"):
        await validate(repository, "latest", tmp_path / "scratch")


async def test_a_missing_layer_is_found(tmp_path: Path) -> None:
    repository = await put_image(tmp_path)
    blob_path(tmp_path, LAYERS[0].content).unlink()
    with pytest.raises(NotFound, match=LAYERS[0].descriptor.digest):
        await validate(repository, "latest", tmp_path / "scratch")


@pytest.mark.parametrize("change", [-1, 1])
async def test_a_wrong_size_is_found(change: int, tmp_path: Path) -> None:
    first = LAYERS[0].descriptor
    lying = [Descriptor(first.media_type, first.digest, first.size + change), LAYERS[1].descriptor]
    repository = await put_image(tmp_path, described=lying)
    with pytest.raises(DigestMismatch):
        await validate(repository, "latest", tmp_path / "scratch")


async def _refused(tmp_path: Path, layers: Sequence[Layer], reason: str, config: dict[str, Any] | None = None) -> None:
    repository = await put_image(tmp_path, layers, config)
    with pytest.raises(ImageError, match=reason):
        await validate(repository, "latest", tmp_path / "scratch")


async def test_a_wrong_diff_id_is_found(tmp_path: Path) -> None:
    config = config_of(LAYERS, rootfs={"type": "layers", "diff_ids": [LAYERS[1].diff_id, LAYERS[0].diff_id]})
    await _refused(tmp_path, LAYERS, "unpacks to", config)


@pytest.mark.parametrize("name", ["/etc/passwd", "../etc/passwd", "a/../../b", "a/.."])
async def test_an_entry_outside_the_image_is_found(name: str, tmp_path: Path) -> None:
    await _refused(tmp_path, [layer_of({name: b""})], "an entry outside the image")


async def test_a_hard_link_to_the_outside_is_found(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("a")
        info.type, info.linkname = tarfile.LNKTYPE, "../../etc/shadow"
        archive.addfile(info)
    await _refused(tmp_path, [raw_layer(out.getvalue())], "an entry outside the image")


@pytest.mark.parametrize("second", ["a/b", "./a/b", "a//b"])
async def test_two_entries_of_one_path_are_found(second: str, tmp_path: Path) -> None:
    tar = tar_of({"a/b": b"1"})[:1024] + tar_of({second: b"2"})
    await _refused(tmp_path, [raw_layer(tar)], "two entries 'a/b'")


def _broken() -> dict[str, tuple[bytes, bytes]]:
    """Layers by kind: the bytes as stored, and the tar that a careless reader gets out of them."""
    packed, middle = gzip.compress(_TAR, mtime=0), _TAR[:4000] + b"\xff" * 512 + _TAR[4512:]
    header = bytearray(_TAR)
    header[3584 + 3] ^= 1  # the second entry's header: tarfile would take it for the end
    return {
        "bytes after the last member": (packed + b"more", _TAR),
        "zeros after the last member": (packed + bytes(9), _TAR),
        "a second member that is cut short": (packed + gzip.compress(b"", mtime=0)[:12], _TAR),
        "gzip without its trailer": (packed[:-8], _TAR),
        "gzip without half its trailer": (packed[:-4], _TAR),
        "gzip cut short": (packed[: len(packed) // 2], _TAR),
        "a wrong CRC": (packed[:-8] + b"\0\0\0\0" + packed[-4:], _TAR),
        "a wrong length": (packed[:-4] + b"\0\0\0\0", _TAR),
        "a tar that is cut short": (gzip.compress(_TAR[:2000]), _TAR[:2000]),
        "a broken header": (gzip.compress(bytes(header)), bytes(header)),
        "bytes after the tar": (gzip.compress(_TAR + b"x" * 512), _TAR + b"x" * 512),
        "no tar at all": (gzip.compress(b"text" * 999), b"text" * 999),
        "no gzip at all": (_TAR, _TAR),
        "nothing": (b"", b""),
        "a broken entry": (gzip.compress(middle[:3584] + b"\xff" * 512 + middle[4096:]), middle),
    }


@pytest.mark.parametrize("kind", _broken())
async def test_a_layer_that_is_not_one_whole_archive_is_found(kind: str, tmp_path: Path) -> None:
    content, tar = _broken()[kind]
    await _refused(tmp_path, [Layer(content, tar)], "is not a sound archive|unpacks to")


def test_members_after_each_other_are_one_layer(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(b"".join(gzip.compress(_TAR[at : at + 700]) for at in range(0, len(_TAR), 700)))
    layer = Descriptor(types.LAYER_GZIP, digests.of_file(path), path.stat().st_size)
    check_layer(path, layer, digests.of(_TAR))
    path.write_bytes(_TAR)
    check_layer(path, Descriptor(types.LAYER_TAR, digests.of(_TAR), len(_TAR)), digests.of(_TAR))
    with pytest.raises(ImageError, match="is zstd"):
        check_layer(path, Descriptor(types.LAYER_ZSTD, digests.of(_TAR), len(_TAR)), digests.of(_TAR))


def _check(layers: Sequence[Layer] = LAYERS, *, kind: str = "", config_type: str = "", **changed: Any) -> None:
    config = json.dumps(config_of(layers, **changed)).encode()
    described = [Descriptor(kind or x.media_type, x.descriptor.digest, x.descriptor.size) for x in layers]
    data = json.loads(manifest_of(described, config))
    data["config"]["mediaType"] = config_type or types.IMAGE_CONFIG
    check_image(ImageManifest.from_bytes(json.dumps(data).encode()), config)


def test_manifest_and_config_must_fit() -> None:
    _check()
    _check(kind=types.DOCKER_LAYER_GZIP, config_type=types.DOCKER_CONFIG)
    _check([LAYERS[0]] * 127)
    with pytest.raises(ImageError, match="2 layers, the config 1 diff ids"):
        _check(rootfs={"type": "layers", "diff_ids": [LAYERS[0].diff_id]})
    with pytest.raises(ImageError, match="history tells of 1 layers, the manifest of 2"):
        _check(history=[{"created_by": "x"}])
    with pytest.raises(ImageError, match="128 layers; engines mount at most 127"):
        _check([LAYERS[0]] * 128)
    with pytest.raises(ImageError, match="none of a layer"):
        _check(kind="application/octet-stream")
    with pytest.raises(ImageError, match="none of an image"):
        _check(config_type=types.EMPTY)


def test_another_config_than_the_manifest_s_is_found() -> None:
    config = json.dumps(config_of(LAYERS)).encode()
    manifest = ImageManifest.from_bytes(manifest_of([x.descriptor for x in LAYERS], config))
    with pytest.raises(DigestMismatch, match="not the one that the manifest names"):
        check_image(manifest, json.dumps(config_of(LAYERS, os=str(Platform()))).encode())
