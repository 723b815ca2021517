"""Wheels become a layer: one deterministic tar, spliced together from the wheels' own compressed streams.

Memory stays bounded by the chunk size, whatever the size of a member.
"""

import hashlib
import posixpath
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from prefect_environments.core.build import gzip, tar
from prefect_environments.core.build.archive import Archive
from prefect_environments.core.build.wheel import Bytecode, Content, Wheel
from prefect_environments.core.oci.descriptor import LAYER_GZIP

_PENDING_MAX = 1024 * 1024
_READY_MAX = 64 * 1024  # bytes that are hashed and written at once: thousands of pieces are a dozen bytes long
_MEMBER_COST = 48  # bytes that a gzip member of its own costs, with the one that it splits


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A finished layer. `digest` and `size` are of the compressed bytes, `diff_id` and `unpacked` of the tar."""

    digest: str
    diff_id: str
    size: int
    unpacked: int
    files: int
    media_type: str = LAYER_GZIP


@dataclass(frozen=True, slots=True)
class Overlap:
    """A path that two packages bring; `winner`'s file is the one in the image."""

    path: str
    loser: str
    winner: str


class LayerWriter:
    """Writes a tar as gzip members to a file, hashing both sides.

    `encode` makes a member of content: by default without a compressor (`gzip.member`), else `deflate.member`.
    """

    def __init__(self, out: BinaryIO, encode: Callable[[bytes], bytes] = gzip.member) -> None:
        self._out = out
        self._encode = encode
        self._compressed, self._tar = hashlib.sha256(), hashlib.sha256()
        self._size = self._unpacked = self._files = 0
        self._pending, self._ready = bytearray(), bytearray()

    def add(self, entry: tar.Entry, data: bytes = b"") -> None:
        """An entry with content from memory; directories and links have none."""
        self._plain(tar.header(entry, len(data)))
        if data:
            self._plain(data)
            self._plain(bytes(tar.padding(len(data))))
        self._files += 1

    def add_stream(self, entry: tar.Entry, size: int, chunks: Iterable[bytes]) -> None:
        """An entry of `size` bytes that come in chunks."""
        self._plain(tar.header(entry, size))
        for chunk in chunks:
            self._plain(chunk)
        self._plain(bytes(tar.padding(size)))
        self._files += 1

    def add_member(self, entry: tar.Entry, archive: Archive, member: zipfile.ZipInfo) -> None:
        """An entry whose content is a member of a wheel, taken over without unpacking it to disk."""
        size = member.file_size
        self._plain(tar.header(entry, size))
        if size <= member.compress_size + _MEMBER_COST:
            for _, content in archive.stream(member):
                self._plain(content)
        else:
            self._flush()
            self._emit(gzip.HEADER)
            for raw, content in archive.stream(member):
                self._emit(raw)
                self._hash(content)
            self._emit(gzip.trailer(member.CRC, size))
        self._plain(bytes(tar.padding(size)))
        self._files += 1

    def finish(self) -> LayerBlob:
        self._plain(tar.END)
        self._flush()
        self._write()
        return LayerBlob(
            f"sha256:{self._compressed.hexdigest()}",
            f"sha256:{self._tar.hexdigest()}",
            self._size,
            self._unpacked,
            self._files,
        )

    def _plain(self, content: bytes) -> None:
        self._hash(content)
        self._pending += content
        while len(self._pending) >= _PENDING_MAX:  # cut at fixed places: zlib versions hand out other chunks
            self._emit(self._encode(bytes(self._pending[:_PENDING_MAX])))
            del self._pending[:_PENDING_MAX]

    def _flush(self) -> None:
        if self._pending:
            self._emit(self._encode(bytes(self._pending)))
            self._pending.clear()

    def _hash(self, content: bytes) -> None:
        self._tar.update(content)
        self._unpacked += len(content)

    def _emit(self, content: bytes) -> None:
        self._ready += content
        if len(self._ready) >= _READY_MAX:
            self._write()

    def _write(self) -> None:
        self._compressed.update(self._ready)
        self._out.write(self._ready)
        self._size += len(self._ready)
        self._ready.clear()


def write_entries(entries: Iterable[tuple[tar.Entry, bytes]], out: BinaryIO) -> LayerBlob:
    """A layer of the given entries and their parent directories."""
    given = {entry.path: (entry, data) for entry, data in entries}
    folders = {path: (tar.Entry(path, 0o755, tar.DIRECTORY), b"") for path in tar.parents(given)}
    writer = LayerWriter(out)
    for _, (entry, data) in sorted((folders | given).items()):
        writer.add(entry, data)
    return writer.finish()


def write_wheels(
    wheels: Sequence[tuple[str, Wheel]], out: BinaryIO, encode: Callable[[bytes], bytes] = gzip.member
) -> tuple[LayerBlob, list[Overlap]]:
    """A layer of one or more named wheels; where two bring one path, the later one wins and it is reported.
    Bytecode comes from the wheel whose module it is.

    A folder of one wheel wins over a file of another, whatever their order. The order of the members in the wheels'
    archives does not count.
    """
    owners: dict[str, tuple[str, Wheel]] = {}
    overlaps = []
    for name, wheel in wheels:
        for path in wheel.contents:
            if path in owners:
                overlaps.append(Overlap(path, owners[path][0], name))
            owners[path] = (name, wheel)
    folders = tar.parents(owners)
    overlaps += [_below(path, owners) for path in sorted(folders & owners.keys())]
    bytecode = _bytecode(owners)
    folders |= tar.parents(bytecode)
    writer = LayerWriter(out, encode)
    for path in sorted(folders | owners.keys() | bytecode.keys()):
        if path in folders:  # also where another wheel has a file of that name
            writer.add(tar.Entry(path, 0o755, tar.DIRECTORY))
        elif path in bytecode:
            writer.add_stream(bytecode[path].entry, bytecode[path].size, bytecode[path].read())
        else:
            wheel = owners[path][1]
            _add_content(writer, wheel, wheel.contents[path])
    return writer.finish(), overlaps


def _bytecode(owners: dict[str, tuple[str, Wheel]]) -> dict[str, Bytecode]:
    """The bytecode of the modules that are in the layer, by its own path; none in what another wheel has as a file."""
    found = [wheel.bytecode[path] for path, (_, wheel) in owners.items() if path in wheel.bytecode]
    return {one.entry.path: one for one in found if posixpath.dirname(one.entry.path) not in owners}


def _below(path: str, owners: dict[str, tuple[str, Wheel]]) -> Overlap:
    """The overlap of a file with the folder of that name; the winner is who has the first file in it."""
    first = min(other for other in owners if other.startswith(f"{path}/"))
    return Overlap(path, owners[path][0], owners[first][0])


def _add_content(writer: LayerWriter, wheel: Wheel, content: Content) -> None:
    if isinstance(content.data, bytes):
        writer.add(content.entry, content.data)
    else:
        writer.add_member(content.entry, wheel.archive, content.data)
