"""Hostile and broken archives: each is refused with the wheel's name and the reason, and an ordinary one is read."""

import random
import struct
import zipfile
import zlib
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zlib_ng import zlib_ng

from prefect_environments.core.build import archive as archives
from prefect_environments.core.build.archive import Archive
from prefect_environments.core.errors import PackageError
from tests.core.build.parts import NAME, Member, pack, write_members

_ZEROS = bytes(10_000)
_BLOCK = zlib.compressobj(9, zlib.DEFLATED, -15)
_DEFLATED = _BLOCK.compress(_ZEROS) + _BLOCK.flush()
_UNICODE_PATH = struct.pack("<HHBL", 0x7075, 5 + 6, 1, zlib.crc32(b"name.py")) + b"other2"

HOSTILE: dict[str, tuple[bytes, str]] = {
    "absolute path": (pack([Member(b"/etc/passwd")]), "unsafe name"),
    "parent folder": (pack([Member(b"a/../../etc/passwd")]), "unsafe name"),
    "parent folder first": (pack([Member(b"../a")]), "unsafe name"),
    "same folder": (pack([Member(b"./a")]), "unsafe name"),
    "empty part": (pack([Member(b"a//b")]), "unsafe name"),
    "empty name": (pack([Member(b"")]), "unsafe name"),
    "backslash": (pack([Member(b"a\\..\\b")]), "unsafe name"),
    "drive letter": (pack([Member(b"C:/windows")]), "unsafe name"),
    "NUL in a name": (pack([Member(b"good.py\0.txt")]), "unsafe name"),
    "line feed in a name": (pack([Member(b"a\nb")]), "unsafe name"),
    "escape in a name": (pack([Member(b"a\x1b[31m")]), "unsafe name"),
    "C1 control in a name": (pack([Member("a\x85b".encode(), flags=0x800)]), "unsafe name"),
    "name too long": (pack([Member(b"a" * 256)]), "longer than 255"),
    "name that is no UTF-8": (pack([Member(b"\xff\xfe", flags=0x800)]), "not a readable zip"),
    "symlink": (pack([Member(b"link", b"/etc/passwd", mode=0o120777)]), "link or a special file"),
    "device": (pack([Member(b"dev", mode=0o020666)]), "link or a special file"),
    "fifo": (pack([Member(b"fifo", mode=0o010666)]), "link or a special file"),
    "socket": (pack([Member(b"socket", mode=0o140666)]), "link or a special file"),
    "folder that is a file": (pack([Member(b"a", mode=0o040755)]), "link or a special file"),
    "duplicate": (pack([Member(b"a"), Member(b"a", b"other")]), "twice"),
    "duplicate folder entry": (pack([Member(b"a/", b""), Member(b"a", b"x")]), "a file and a folder"),
    "a file under a file": (pack([Member(b"a"), Member(b"a/b")]), "a file and a folder"),
    "encrypted": (pack([Member(b"a", flags=1)]), "encrypted"),
    "encrypted in the local header only": (pack([Member(b"a", local={"flags": 1})]), "local header"),
    "unknown method": (pack([Member(b"a", method=93)]), "compression method 93"),
    "bzip2": (pack([Member(b"a", method=12)]), "compression method 12"),
    "stored with two sizes": (pack([Member(b"a", b"abc", size=4)]), "two sizes"),
    "local header with another name": (pack([Member(b"a", local={"name": b"b"})]), "local header"),
    "local header with another method": (pack([Member(b"a", method=8, local={"method": 0})]), "local header"),
    "local header with another size": (pack([Member(b"a", local={"size": 3})]), "local header"),
    "local header with another CRC": (pack([Member(b"a", local={"crc": 3})]), "local header"),
    "no local header": (pack([Member(b"a", offset=0)], before=bytes(40)), "no local header"),
    "overlap": (pack([Member(b"a", _ZEROS, 8), Member(b"a", _ZEROS, 8, offset=0)]), "twice"),
    "ratio bomb": (pack([Member(b"bomb", b"x", 8, packed=_DEFLATED, size=2**32 - 2)]), "bomb"),
    "many small bombs": (pack([Member(b"%d" % n, b"x", 8, packed=b"\3\0", size=40_000_000) for n in range(9)]), "bomb"),
    "whiteout": (pack([Member(b"lib/.wh.python3")]), "whiteout"),
    "opaque whiteout": (pack([Member(b"lib/.wh..wh..opq")]), "whiteout"),
    "whiteout folder": (pack([Member(b".wh.lib/a")]), "whiteout"),
    "bytes before": (pack([Member(b"a")], before=b"#!/bin/sh\n"), "before the start"),
    "bytes after": (pack([Member(b"a")], after=b"more"), "bytes follow"),
    "another archive after": (pack([Member(b"a")], after=pack([Member(b"b")])), "before the start"),
    "fewer members counted": (pack([Member(b"a"), Member(b"b")], total=1), "does not fit"),
    "member reaching into the directory": (
        pack([Member(b"a", b"abc", packed_size=60, size=60)]),
        "directory|local header",
    ),
    "a second name": (pack([Member(b"name.py", extra=_UNICODE_PATH)]), "second name|unsafe name"),
    "broken extra field": (pack([Member(b"a", extra=b"\1\0\xff\xff")]), "not a readable zip"),
    "zip64 field too short": (pack([Member(b"a", size=2**32 - 1, extra=b"\1\0\4\0abcd")]), "not a readable zip"),
    "zip64 sizes that lie": (
        pack([Member(b"a", b"abc", size=2**32 - 1, extra=struct.pack("<HHQ", 1, 8, 2**50))]),
        "two sizes|bomb",
    ),
    "garbage": (b"this is no archive" * 50, "not a readable zip"),
    "empty file": (b"", "not a readable zip"),
    "cut short": (pack([Member(b"a", _ZEROS), Member(b"b")])[:-30], "not a readable zip"),
    "without its first half": (pack([Member(b"a", _ZEROS), Member(b"b")])[5000:], "."),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_by_name_and_reason(kind: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[kind]
    path = tmp_path / NAME
    path.write_bytes(content)
    with pytest.raises(PackageError, match=reason) as caught:
        Archive(path, NAME)
    assert NAME in str(caught.value) and "refused" in str(caught.value)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """The quoted bomb: the first member's stored bytes hold the second's header, and both unpack the same stream."""
    inner = Member(b"inner", _ZEROS, 8)
    start = len(pack([inner])) - 22 - 46 - len(inner.name)  # the local part of an archive of it alone
    quoted = pack([inner])[:start]
    outer = Member(b"outer", b"", 0, packed=quoted, size=len(quoted), crc=zlib.crc32(quoted))
    path = tmp_path / NAME
    path.write_bytes(pack([outer, Member(b"inner", _ZEROS, 8, packed=_DEFLATED, offset=30 + len(outer.name))]))
    with pytest.raises(PackageError, match="overlaps another"):
        Archive(path, NAME)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MEMBERS_MAX", 20)
    path = tmp_path / NAME
    path.write_bytes(pack([Member(b"%d" % number) for number in range(21)]))
    with pytest.raises(PackageError, match="21 members, more than 20"):
        Archive(path, NAME)


LYING: dict[str, tuple[Member, str]] = {
    "declares less than it unpacks to": (Member(b"a", _ZEROS, 8, size=9_999), "more than the 9999 bytes"),
    "declares more than it unpacks to": (Member(b"a", _ZEROS, 8, size=10_001), "does not have the size"),
    "wrong CRC, deflated": (Member(b"a", _ZEROS, 8, crc=1), "does not have the size and CRC"),
    "wrong CRC, stored": (Member(b"a", b"abc", crc=1), "does not have the size and CRC"),
    "broken stream": (Member(b"a", b"abc", 8, packed=b"\xff\xff\xff\xff"), "not a valid DEFLATE stream"),
    "stream cut short": (Member(b"a", _ZEROS, 8, packed=_DEFLATED[:-2]), "not exactly one DEFLATE stream"),
    "bytes after the stream": (Member(b"a", _ZEROS, 8, packed=_DEFLATED + b"x"), "not exactly one DEFLATE stream"),
    "empty stream": (Member(b"a", b"", 8, packed=b""), "not exactly one DEFLATE stream"),
}


@pytest.mark.parametrize("kind", LYING)
def test_a_member_that_is_not_what_it_declares_is_refused_when_read(kind: str, tmp_path: Path) -> None:
    member, reason = LYING[kind]
    path = tmp_path / NAME
    path.write_bytes(pack([member, Member(b"after")]))
    with Archive(path, NAME) as archive, pytest.raises(PackageError, match=reason) as caught:
        archive.read("a")
    assert NAME in str(caught.value)


def test_an_ordinary_archive_gives_its_members_in_order_without_folders(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(pack([Member(b"z/", b"", mode=0o040755), Member(b"z/b.py", b"b", 8), Member(b"a.py", b"a")]))
    with Archive(path, NAME) as archive:
        assert list(archive.members) == ["z/b.py", "a.py"]
        assert (archive.read("z/b.py"), archive.read("a.py")) == (b"b", b"a")
        with pytest.raises(PackageError, match="has no missing"):
            archive.read("missing")
        with pytest.raises(PackageError, match="1 bytes, more than the 0"):
            archive.read("a.py", 0)


def test_sizes_after_the_data_and_zip64_fields_are_read(tmp_path: Path) -> None:
    """What streaming writers make: flag bit 3 with a data descriptor, and zip64 records for small members."""
    path = tmp_path / NAME
    with path.open("wb") as file:
        stream = _Unseekable(file)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
            with archive.open("streamed.py", "w", force_zip64=True) as member:
                member.write(b"x = 1\n" * 1000)
            archive.writestr("plain.py", b"y = 2\n")
            archive.comment = b"made by a stream"
    with Archive(path, NAME) as read:
        assert read.read("streamed.py") == b"x = 1\n" * 1000
        assert read.read("plain.py") == b"y = 2\n"


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.one_of(st.binary(max_size=400), st.integers(0, 30_000).map(bytes)), max_size=6),
    level=st.integers(0, 9),
    strategy=st.sampled_from([zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED]),
    chunk=st.sampled_from([3, 61, 500, 4096, 256 * 1024]),
)
def test_whatever_was_compressed_in_whatever_way_is_read_back(
    parts: list[bytes], level: int, strategy: int, *, chunk: int, tmp_path: Path
) -> None:
    content, path = b"".join(parts), tmp_path / NAME
    squeeze = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    path.write_bytes(pack([Member(b"a", content, 8, packed=squeeze.compress(content) + squeeze.flush())]))
    with pytest.MonkeyPatch.context() as patch, Archive(path, NAME) as archive:
        patch.setattr(archives, "CHUNK", chunk)
        assert archive.read("a") == content
        assert b"".join(raw for raw, _ in archive.stream(archive.members["a"])) == path.read_bytes()[31 : -22 - 47]


@settings(deadline=None, max_examples=500)
@given(
    content=st.binary(max_size=3000) | st.integers(0, 70_000).map(bytes),
    level=st.integers(0, 9),
    strategy=st.sampled_from([zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED]),
    seed=st.integers(0, 2**32),
    changes=st.integers(0, 3),
)
def test_a_stream_is_taken_exactly_if_zlib_takes_it_which_engines_read_layers_with(
    content: bytes, level: int, strategy: int, *, seed: int, changes: int
) -> None:
    choose, squeeze = random.Random(seed), zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    stream = bytearray(squeeze.compress(content) + squeeze.flush())
    for _ in range(changes):
        place = choose.randrange(min(len(stream), choose.choice([4, 40, 100_000])) or 1)
        stream[place : place + choose.randrange(3)] = choose.randbytes(choose.randrange(3))
    assert _inflated(zlib_ng, bytes(stream)) == _inflated(zlib, bytes(stream))


def _inflated(library: ModuleType, stream: bytes) -> tuple[bytes, bool, bytes] | None:
    """What a library makes of a stream in pieces: content, whether it came to its end, what follows; or an error."""
    inflate, content = library.decompressobj(-15), b""
    try:
        for start in range(0, len(stream), 1000):
            content += inflate.decompress(inflate.unconsumed_tail + stream[start : start + 1000], 700)
        while not inflate.eof and (rest := inflate.decompress(inflate.unconsumed_tail, 700)):
            content += rest
    except library.error:
        return None
    return content, inflate.eof, inflate.unused_data


class _Unseekable:
    def __init__(self, file: object) -> None:
        self.write, self.flush = file.write, file.flush  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 4))
def test_whatever_bytes_change_only_package_errors_escape(tmp_path: Path, seed: int, changes: int) -> None:
    path = write_members(tmp_path, {"a.py": b"a = 1\n" * 50, "b/c.py": bytes(300), "b/d.bin": bytes(range(256))})
    content, choose = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(changes):
        content[choose.randrange(len(content))] = choose.randrange(256)
    path.write_bytes(content)
    try:
        with Archive(path, NAME) as archive:
            for name in archive.members:
                archive.read(name)
    except PackageError as error:
        assert NAME in str(error)
