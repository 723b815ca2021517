"""A wheel's zip archive, read without trust: every name, range and size is checked before a byte is used.

Follows PKWARE's APPNOTE for the format and the Python packaging "binary distribution format" for what may be in it.
"""

import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from zlib_ng import zlib_ng

from prefect_environments.core.build.tar import parents
from prefect_environments.core.errors import PackageError

CHUNK = 64 * 1024
"""Bytes that are read at once, and half of what is unpacked at once: buffers that malloc takes from what it has."""
MEMBERS_MAX = 200_000
UNPACKED_FREE = 64 * 1024 * 1024
UNPACKED_RATIO = 200
"""A wheel may unpack to `UNPACKED_FREE` bytes plus this many times its own size; more is taken for a bomb."""

NAME_MAX = 255
"""Bytes of one part of a path that Linux file systems take."""

_LOCAL = struct.Struct("<4s2xHHxxxxLLLHH")
_END = struct.Struct("<4s6xHLLH")
_BAD_NAME = re.compile(r"[\0-\x1f\x7f-\x9f\\]|^/|^[A-Za-z]:|(^|/)(\.{1,2})?(/|$)")
_UNICODE_PATH = 0x7075
_ZIP64 = 0xFFFFFFFF
_FLAG_ENCRYPTED, _FLAG_DESCRIPTOR, _FLAG_UTF8 = 0x1, 0x8, 0x800


class Archive:
    """A checked zip archive. `members` maps names to their entries, folders left out; in the archive's order."""

    def __init__(self, path: Path, label: str) -> None:
        self.label = label
        self._file = path.open("rb")
        try:
            self._offsets: dict[int, int] = {}
            self._zip = zipfile.ZipFile(self._file)
            self.members = self._checked(path.stat().st_size)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
            self._file.close()
            raise self.refused(f"not a readable zip archive ({error})") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()
        self._file.close()

    def refused(self, why: str) -> PackageError:
        return PackageError(f"the wheel {self.label} is refused: {why}")

    def read(self, name: str, limit: int = 64 * 1024 * 1024) -> bytes:
        """One member's content in memory, verified; refused over `limit` bytes."""
        member = self.members.get(name)
        if member is None:
            raise self.refused(f"it has no {name}")
        if member.file_size > limit:
            raise self.refused(f"its {name} has {member.file_size} bytes, more than the {limit} that are read")
        return b"".join(content for _, content in self.stream(member))

    def stream(self, member: zipfile.ZipInfo) -> Iterator[tuple[bytes, bytes]]:
        """Pairs of (bytes as stored, bytes unpacked) of a member; size and CRC are verified at the end."""
        size, crc = 0, 0
        pairs = self._inflated(member) if member.compress_type == zipfile.ZIP_DEFLATED else self._plain(member)
        for raw, content in pairs:
            size += len(content)
            if size > member.file_size:
                raise self.refused(f"{member.filename} unpacks to more than the {member.file_size} bytes it declares")
            crc = zlib_ng.crc32(content, crc)
            yield raw, content
        if size != member.file_size or crc != member.CRC:
            raise self.refused(f"{member.filename} does not have the size and CRC that the archive declares")

    def _plain(self, member: zipfile.ZipInfo) -> Iterator[tuple[bytes, bytes]]:
        for chunk in self._raw(member):
            yield chunk, chunk

    def _inflated(self, member: zipfile.ZipInfo) -> Iterator[tuple[bytes, bytes]]:
        # refuses what zlib refuses, and so what engines do; isal, which is faster still, takes more than they
        inflate = zlib_ng.decompressobj(-15)
        try:
            for chunk in self._raw(member):
                yield chunk, inflate.decompress(chunk, 2 * CHUNK)
                while inflate.unconsumed_tail:
                    yield b"", inflate.decompress(inflate.unconsumed_tail, 2 * CHUNK)
            while not inflate.eof and (rest := inflate.decompress(b"", 2 * CHUNK)):
                yield b"", rest
        except zlib_ng.error as error:  # type: ignore[misc]  # its stub says that the class is an instance
            raise self.refused(f"{member.filename} is not a valid DEFLATE stream ({error})") from error
        if not inflate.eof or inflate.unused_data:
            raise self.refused(f"{member.filename} is not exactly one DEFLATE stream")

    def _raw(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        position, left = self._offsets[member.header_offset], member.compress_size
        while left:
            chunk = os.pread(self._file.fileno(), min(left, CHUNK), position)
            if not chunk:
                raise self.refused(f"{member.filename} is cut short")
            position += len(chunk)
            left -= len(chunk)
            yield chunk

    def _data_offset(self, member: zipfile.ZipInfo) -> int:
        """Where the member's bytes start. Its local header must say what the central directory says: readers that
        look at the one or the other must see the same wheel."""
        named = _raw_name(member)
        read = os.pread(self._file.fileno(), _LOCAL.size + len(named), member.header_offset)
        block, name = read[: _LOCAL.size], read[_LOCAL.size :]
        if len(block) < _LOCAL.size:
            raise self.refused(f"{member.filename} is cut short")
        magic, flags, method, crc, packed, size, name_length, extra_length = _LOCAL.unpack(block)
        if magic != b"PK\3\4":
            raise self.refused(f"{member.filename} has no local header")
        same = method == member.compress_type and not flags & _FLAG_ENCRYPTED
        same = same and name_length == len(named) and name == named
        if not flags & _FLAG_DESCRIPTOR:  # else these three follow the member's bytes
            same = same and crc == member.CRC
            same = same and packed in (member.compress_size, _ZIP64) and size in (member.file_size, _ZIP64)
        if not same:
            raise self.refused(f"the local header of {member.filename!r} differs from the archive's directory")
        offset: int = member.header_offset + _LOCAL.size + name_length + extra_length
        return offset

    def _checked(self, archive_size: int) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        infos = self._zip.infolist()
        if len(infos) > MEMBERS_MAX:
            raise self.refused(f"it has {len(infos)} members, more than {MEMBERS_MAX}")
        self._check_end(archive_size, len(infos))
        for member in infos:
            self._check_member(member)
            name = member.filename
            if name in found:
                raise self.refused(f"it holds {name!r} twice")
            if not name.endswith("/"):
                found[name] = member
        folders = parents(member.filename for member in infos)
        if clash := sorted(folders & found.keys()):
            raise self.refused(f"{clash[0]!r} is a file and a folder")
        self._check_ranges(found)
        unpacked = sum(member.file_size for member in found.values())
        if unpacked > UNPACKED_FREE + UNPACKED_RATIO * archive_size:
            raise self.refused(f"its {archive_size} bytes would unpack to {unpacked}, which looks like a bomb")
        return found

    def _check_end(self, archive_size: int, members: int) -> None:
        """The archive ends with its directory and starts with its first member: no second archive before or after."""
        self._file.seek(max(0, archive_size - _END.size - len(self._zip.comment)))
        block = self._file.read(_END.size)
        if len(block) < _END.size or not block.startswith(b"PK\5\6"):
            raise self.refused("bytes follow the end of the archive")
        _, total, _, start, comment = _END.unpack(block)
        if comment != len(self._zip.comment) or total not in (members, 0xFFFF):
            raise self.refused("the end of the archive does not fit its directory")
        first = min((member.header_offset for member in self._zip.infolist()), default=0)
        if first != 0 or start not in (self._zip.start_dir, _ZIP64):
            raise self.refused("bytes stand before the start of the archive")

    def _check_member(self, member: zipfile.ZipInfo) -> None:
        name = member.filename
        if member.orig_filename != name or _BAD_NAME.search(name.removesuffix("/")):
            raise self.refused(f"the member {member.orig_filename!r:.200} has an unsafe name")
        if len(name.encode()) > NAME_MAX and any(len(part.encode()) > NAME_MAX for part in name.split("/")):
            raise self.refused(f"the member {name!r:.80}… has a name that is longer than {NAME_MAX} bytes")
        if _UNICODE_PATH in _extra_fields(member.extra):
            raise self.refused(f"the member {name!r} has a second name, which only some readers see")
        if ".wh." in name and any(part.startswith(".wh.") for part in name.split("/")):
            raise self.refused(f"the member {name!r} would be read as a whiteout, which deletes files of the image")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > name.endswith("/"):
            raise self.refused(f"the member {name!r} is a link or a special file")
        if member.flag_bits & _FLAG_ENCRYPTED:
            raise self.refused(f"the member {name!r} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.refused(f"the member {name!r} uses compression method {member.compress_type}, not 0 or 8")
        if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            raise self.refused(f"the stored member {name!r} declares two sizes")

    def _check_ranges(self, members: dict[str, zipfile.ZipInfo]) -> None:
        """No two members may share bytes: overlapping ones are how small archives unpack to huge ones."""
        end = 0
        for member in sorted(members.values(), key=lambda m: m.header_offset):
            if member.header_offset < end:
                raise self.refused(f"the member {member.filename!r} overlaps another one")
            self._offsets[member.header_offset] = self._data_offset(member)
            end = self._offsets[member.header_offset] + member.compress_size
        if end > self._zip.start_dir:
            raise self.refused("a member reaches into the archive's directory")


def _raw_name(member: zipfile.ZipInfo) -> bytes:
    return member.orig_filename.encode("utf-8" if member.flag_bits & _FLAG_UTF8 else "cp437")


def _extra_fields(extra: bytes) -> set[int]:
    """The kinds of a member's extra fields (APPNOTE, 4.5)."""
    found = set()
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        found.add(kind)
        extra = extra[4 + length :]
    return found
