"""Deterministic tar headers (POSIX.1-2001 ustar and pax): fixed times and owners, nothing of this machine."""

import struct
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK = 512
END = bytes(2 * BLOCK)
MTIME = 1
"""Seconds since the epoch of every entry; not 0, which some tools read as "missing"."""

REGULAR, SYMLINK, DIRECTORY = b"0", b"2", b"5"
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_LARGEST = 8**11 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a layer: its path without a leading slash, and how it is stored."""

    path: str
    mode: int
    kind: bytes = REGULAR
    link: str = ""


def padding(size: int) -> int:
    """How many zero bytes follow a member of `size` bytes."""
    return -size % BLOCK


def header(entry: Entry, size: int = 0) -> bytes:
    """The header block(s) of an entry; pax records only where ustar has no room for a name or the size."""
    name = entry.path + "/" if entry.kind == DIRECTORY else entry.path
    split = _split(name.encode())
    link = entry.link.encode()
    if split is None or len(link) > 100 or size > _LARGEST or not name.isascii() or not entry.link.isascii():
        return _pax(name, entry, size)
    prefix, base = split
    block = bytearray(
        _HEADER.pack(
            base,
            b"%07o\0" % entry.mode,
            b"0000000\0",
            b"0000000\0",
            b"%011o\0" % size,
            b"%011o\0" % MTIME,
            b" " * 8,
            entry.kind,
            link,
            b"ustar\0",
            b"00",
            b"",
            b"",
            b"0000000\0",
            b"0000000\0",
            prefix,
        )
    )
    # one more than the sum of the bytes, as Adler-32's lower half is below its modulus: 512 ASCII characters
    block[148:156] = b"%06o\0 " % ((zlib.adler32(block) & 0xFFFF) - 1)
    return bytes(block)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """`(prefix, name)` of a ustar header, or None where the name does not fit."""
    if len(name) <= 100:
        return b"", name
    cut = name.find(b"/", len(name) - 101)
    if 0 < cut <= 155 and cut < len(name) - 1:
        return name[:cut], name[cut + 1 :]
    return None


def _pax(name: str, entry: Entry, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime, info.type, info.linkname = size, entry.mode, MTIME, entry.kind, entry.link
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def parents(paths: Iterable[str]) -> set[str]:
    """Every ancestor directory of the paths.

    Each gets an entry of its own: a directory that an engine has to make up has today's time and hides the mode
    of the base's directory of that name.
    """
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found
