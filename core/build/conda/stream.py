"""The tars in a conda package as streams: nothing is unpacked to disk or held in memory, whatever its headers claim.

`.conda` is a zip of two Zstandard tars (CEP 19), `.tar.bz2` one tar.
"""

import bz2
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from prefect_environments.core.build.archive import CHUNK, UNPACKED_FREE, UNPACKED_RATIO, Archive
from prefect_environments.core.errors import PackageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HEADER_MAX = 1024 * 1024
"""Bytes of one long name or set of pax records: every reader holds them in memory, some several times."""

_OPTIONS = {
    int(zstd.DecompressionParameter.window_log_max): 27
}  # 128 MiB: what conda's highest compression level takes


def refused(label: str, why: str) -> PackageError:
    return PackageError(f"the conda package {label} is refused: {why}")


class _Zip(Archive):
    def refused(self, why: str) -> PackageError:
        return refused(self.label, why)


def members(path: Path, label: str) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """Every member of the package, with a way to read it that is good until the next one is asked for.

    Raises `PackageError` for an archive that is damaged, cut short, or unpacks to far more than it weighs.
    """
    limit = UNPACKED_FREE + UNPACKED_RATIO * path.stat().st_size
    try:
        if label.endswith(".tar.bz2"):
            with bz2.open(path) as file:
                yield from _tar(iter(lambda: file.read(CHUNK), b""), label, limit)
        else:
            with _Zip(path, label) as archive:
                for name in _parts(archive, label):
                    raw = (chunk for chunk, _ in archive.stream(archive.members[name]))
                    yield from _tar(_unpacked(raw), label, limit)
    except (EOFError, OSError, tarfile.TarError, zstd.ZstdError) as error:
        raise refused(label, f"its archive is damaged or cut short ({error})") from error


def _parts(archive: Archive, label: str) -> list[str]:
    """The two tars of a `.conda` file, info first."""
    stem = label.removesuffix(".conda")
    expected = [f"info-{stem}.tar.zst", f"pkg-{stem}.tar.zst"]
    if set(archive.members) != {*expected, "metadata.json"}:
        raise refused(label, f"it must hold metadata.json and {' and '.join(expected)}, has {[*archive.members]}")
    return expected


def _unpacked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The content of Zstandard frames (RFC 8878), whole to the last one's end, in chunks of bounded size."""
    frame, begun = zstd.ZstdDecompressor(options=_OPTIONS), False
    for chunk in chunks:
        data = chunk
        while data or (begun and not frame.needs_input):
            if frame.eof:
                frame, begun = zstd.ZstdDecompressor(options=_OPTIONS), False
            yield frame.decompress(data, CHUNK)
            begun, data = not frame.eof, frame.unused_data if frame.eof else b""
    if begun:
        raise EOFError("the last Zstandard frame is cut short")


def _tar(chunks: Iterator[bytes], label: str, limit: int) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    stream = _Stream(chunks, label, limit)
    with tarfile.open(fileobj=cast("BinaryIO", stream), mode="r:") as archive:
        while member := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            yield member, lambda size=member.size: stream.take(size)  # type: ignore[misc]
    stream.check_end()


class _Stream:
    """A forward-only file for tarfile."""

    def __init__(self, chunks: Iterator[bytes], label: str, limit: int) -> None:
        self._chunks, self._label, self._limit = chunks, label, limit
        self._buffer = memoryview(b"")
        self._position = self._received = 0
        self._header = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        while self._position < position and self._some(position - self._position):
            pass
        return self._position

    def read(self, size: int) -> bytes:
        """A header, which tarfile reads whole."""
        if size > HEADER_MAX:
            raise refused(self._label, f"a header of {size} bytes, more than {HEADER_MAX}, looks like a bomb")
        self._header = self.take(size)
        return self._header

    def take(self, size: int) -> bytes:
        parts = []
        while size and (part := self._some(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def check_end(self) -> None:
        """Only zeros may follow the last member. tarfile takes a broken header for the end of the archive, and other
        readers might see members behind it."""
        rest = bytes(self._header)
        while rest:
            if rest.count(0) != len(rest):
                raise refused(self._label, "bytes that are no member stand at the end of its tar")
            rest = self._some(CHUNK)

    def _some(self, size: int) -> bytes:
        while not self._buffer:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._received += len(chunk)
            if self._received > self._limit:
                raise refused(self._label, f"it unpacks to more than {self._limit} bytes, which looks like a bomb")
            self._buffer = memoryview(chunk)
        part = bytes(self._buffer[:size])
        self._buffer = self._buffer[size:]
        self._position += len(part)
        return part
