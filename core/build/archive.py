"""A wheel's zip archive, read without trust: every name, range and size is checked before a byte is used.

Follows PKWARE's APPNOTE for the format and the Python packaging "binary distribution format" for what may be in it.
"""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from prefect_environments.core.errors import PackageError

CHUNK = 256 * 1024
MEMBERS_MAX = 200_000
UNPACKED_FREE = 64 * 1024 * 1024
UNPACKED_RATIO = 200
"""A wheel may unpack to `UNPACKED_FREE` bytes plus this many times its own size; more is taken for a bomb."""

_LOCAL = struct.Struct("<4s22xHH")
_BAD_NAME = re.compile(r"[\0-\x1f\x7f\\]|^/|^[A-Za-z]:|(^|/)(\.{1,2})?(/|$)")


class Archive:
    """A checked zip archive. `members` maps names to their entries, folders left out; in the archive's order."""

    def __init__(self, path: Path, label: str) -> None:
        self.label = label
        self._file = path.open("rb")
        try:
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
            crc = zlib.crc32(content, crc)
            yield raw, content
        if size != member.file_size or crc != member.CRC:
            raise self.refused(f"{member.filename} does not have the size and CRC that the archive declares")

    def _plain(self, member: zipfile.ZipInfo) -> Iterator[tuple[bytes, bytes]]:
        for chunk in self._raw(member):
            yield chunk, chunk

    def _inflated(self, member: zipfile.ZipInfo) -> Iterator[tuple[bytes, bytes]]:
        inflate = zlib.decompressobj(-15)
        try:
            for chunk in self._raw(member):
                yield chunk, inflate.decompress(chunk, 4 * CHUNK)
                while inflate.unconsumed_tail:
                    yield b"", inflate.decompress(inflate.unconsumed_tail, 4 * CHUNK)
            while rest := inflate.decompress(b"", 4 * CHUNK):
                yield b"", rest
        except zlib.error as error:
            raise self.refused(f"{member.filename} is not a valid DEFLATE stream ({error})") from error
        if not inflate.eof or inflate.unused_data:
            raise self.refused(f"{member.filename} is not exactly one DEFLATE stream")

    def _raw(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        position, left = self._data_offset(member), member.compress_size
        while left:
            self._file.seek(position)  # other members may have been read between two chunks
            chunk = self._file.read(min(left, CHUNK))
            if not chunk:
                raise self.refused(f"{member.filename} is cut short")
            position += len(chunk)
            left -= len(chunk)
            yield chunk

    def _data_offset(self, member: zipfile.ZipInfo) -> int:
        self._file.seek(member.header_offset)
        block = self._file.read(30)
        if len(block) < 30:
            raise self.refused(f"{member.filename} is cut short")
        magic, name, extra = _LOCAL.unpack(block)
        offset: int = member.header_offset + 30 + name + extra
        if magic != b"PK\3\4":
            raise self.refused(f"{member.filename} has no local header")
        return offset

    def _checked(self, archive_size: int) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        infos = self._zip.infolist()
        if len(infos) > MEMBERS_MAX:
            raise self.refused(f"it has {len(infos)} members, more than {MEMBERS_MAX}")
        for member in infos:
            self._check_member(member)
            name = member.filename
            if name in found:
                raise self.refused(f"it holds {name!r} twice")
            if not name.endswith("/"):
                found[name] = member
        self._check_ranges(found)
        unpacked = sum(member.file_size for member in found.values())
        if unpacked > UNPACKED_FREE + UNPACKED_RATIO * archive_size:
            raise self.refused(f"its {archive_size} bytes would unpack to {unpacked}, which looks like a bomb")
        return found

    def _check_member(self, member: zipfile.ZipInfo) -> None:
        name = member.filename
        if member.orig_filename != name or _BAD_NAME.search(name.removesuffix("/")):
            raise self.refused(f"the member {member.orig_filename!r:.200} has an unsafe name")
        if any(part.startswith(".wh.") for part in name.split("/")):
            raise self.refused(f"the member {name!r} would be read as a whiteout, which deletes files of the image")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > name.endswith("/"):
            raise self.refused(f"the member {name!r} is a link or a special file")
        if member.flag_bits & 0x1:
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
            end = self._data_offset(member) + member.compress_size
