"""What the tests of building share: targets, wheels with a twist, images written by tarfile."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from prefect_environments.core.build.base import BaseImage, load_base
from prefect_environments.core.build.layer import LayerBlob, Overlap, write_wheels
from prefect_environments.core.build.wheel import Wheel
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import Layout

TARGET = Target("3.11.4", "/usr/bin/python3.11", "glibc", "2.36")
SITE = "opt/env/lib/python3.11/site-packages"
NAME = "demo-1.0-py3-none-any.whl"
INFO = "demo-1.0.dist-info"
BASICS = {
    f"{INFO}/METADATA": b"Metadata-Version: 2.2\nName: demo\nVersion: 1.0\n",
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/RECORD": b"",
}


@dataclass
class Member:
    """A member of a zip archive, field by field, so that each can lie. `local` overrides fields of the local header."""

    name: bytes
    content: bytes = b"content"
    method: int = 0
    flags: int = 0
    mode: int = 0o100644
    packed: bytes | None = None
    size: int | None = None
    crc: int | None = None
    packed_size: int | None = None
    extra: bytes = b""
    offset: int | None = None
    local: Mapping[str, int | bytes] = field(default_factory=dict)


def pack(members: Sequence[Member], *, before: bytes = b"", after: bytes = b"", total: int | None = None) -> bytes:
    """A zip archive of exactly these bytes (APPNOTE, 4.3)."""
    import zlib

    out, directory = io.BytesIO(), io.BytesIO()
    out.write(before)
    for member in members:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        deflated = squeeze.compress(member.content) + squeeze.flush() if member.method == 8 else member.content
        packed = deflated if member.packed is None else member.packed
        fields: dict[str, int | bytes] = {
            "flags": member.flags,
            "method": member.method,
            "crc": zlib.crc32(member.content) if member.crc is None else member.crc,
            "packed": len(packed) if member.packed_size is None else member.packed_size,
            "size": len(member.content) if member.size is None else member.size,
            "name": member.name,
        }
        order = ("flags", "method", "crc", "packed", "size")
        start = out.tell() if member.offset is None else member.offset
        if member.offset is None:
            local = {**fields, **member.local}
            name = local["name"]
            assert isinstance(name, bytes)
            numbers = [local[key] for key in order]
            out.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, *numbers[:2], 0, 33, *numbers[2:], len(name), 0))
            out.write(name + packed)
        numbers = [fields[key] for key in order]
        head = struct.pack(
            "<4s6H3L5H2L",
            b"PK\1\2",
            3 << 8 | 20,
            20,
            *numbers[:2],
            0,
            33,
            *numbers[2:],
            len(member.name),
            len(member.extra),
            0,
            0,
            0,
            member.mode << 16,
            start,
        )
        directory.write(head + member.name + member.extra)
    begin, listed = out.tell(), directory.getvalue()
    count = len(members) if total is None else total
    out.write(listed + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(listed), begin, 0) + after)
    return out.getvalue()


def write_members(folder: Path, files: Mapping[str, bytes | tuple[bytes, int]], name: str = NAME) -> Path:
    """An ordinary archive with these files and nothing else; a pair gives content and mode."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, given in files.items():
            content, mode = given if isinstance(given, tuple) else (given, 0o644)
            entry = zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = mode << 16
            archive.writestr(entry, content)
    return path


def demo(folder: Path, files: Mapping[str, bytes | tuple[bytes, int]] = {}, **changed: bytes | None) -> Path:
    """A wheel `demo 1.0`; `METADATA=`, `WHEEL=`, `RECORD=` or `entry_points=` replace a file, None leaves it out."""
    basics: dict[str, bytes | tuple[bytes, int]] = dict(BASICS)
    for key, content in changed.items():
        name = f"{INFO}/{'entry_points.txt' if key == 'entry_points' else key}"
        basics.pop(name, None)
        if content is not None:
            basics[name] = content
    return write_members(folder, {**files, **basics})


def read_content(wheel: Wheel, path: str) -> bytes:
    """What would be at `path` of the image."""
    data = wheel.contents[path].data
    return data if isinstance(data, bytes) else b"".join(content for _, content in wheel.archive.stream(data))


def make_layer(out: Path, wheels: Sequence[Path]) -> tuple[LayerBlob, list[Overlap]]:
    """The layer of some wheel files, written to `out`."""
    with ExitStack() as stack, out.open("wb") as file:
        opened = []
        for path in wheels:
            wheel = Wheel.open(path, path.name, TARGET)
            stack.callback(wheel.close)
            opened.append((path.name.split("-")[0], wheel))
        return write_wheels(opened, file)


def tar_of(entries: Mapping[str, bytes | str | tuple[str, str] | None], *, mode: str = "w:gz") -> bytes:
    """A layer by path: bytes are a file, a string a symlink, `("hard", target)` a hard link, None a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            elif isinstance(content, tuple):
                info.type, info.linkname = tarfile.LNKTYPE, content[1]
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


async def put_image(
    folder: Path, layers: Sequence[bytes], environment: Sequence[str] = (), *, media_type: str = types.LAYER_GZIP
) -> BaseImage:
    """An image of these layers, bottom first, in a layout of its own, loaded as a base."""
    repository = Layout(folder).repository("base")
    described = []
    for layer in layers:
        descriptor = Descriptor(media_type, digests.of(layer), len(layer))
        await repository.write_blob(descriptor, layer)
        described.append(descriptor)
    config = json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": {"Env": list(environment)},
            "rootfs": {"type": "layers", "diff_ids": [digests.of(layer) for layer in layers]},
        }
    ).encode()
    named = Descriptor(types.IMAGE_CONFIG, digests.of(config), len(config))
    await repository.write_blob(named, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": types.IMAGE_MANIFEST,
        "config": named.to_json(),
        "layers": [layer.to_json() for layer in described],
    }
    await repository.put_manifest(json.dumps(manifest).encode(), types.IMAGE_MANIFEST, tag="latest")
    return await load_base(repository, "latest", "example.com/base:1", Platform())
