"""Tar headers: what Python's tarfile and the system's tar read is what was meant."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_environments.core.build import tar
from prefect_environments.core.build.tar import Entry
from tests.support.session import need

_NAMES = [
    "short",
    "a" * 100,
    "a" * 101,
    "d/" + "a" * 100,
    "d" * 155 + "/" + "a" * 100,
    "d" * 156 + "/" + "a" * 100,
    "d" * 150 + "/" + "a" * 104,
    "d" * 150 + "/" + "a" * 105,
    "/".join(["folder"] * 60) + "/file",
    "a" * 255,
    "a" * 256,
    "a" * 300,
    "größe/файл/模块.py",
    "é" * 60,
    "with space/and'quote",
]


def _read(header: bytes, size: int = 0) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(header + bytes(size + tar.padding(size)) + tar.END)) as archive:
        (member,) = archive.getmembers()
    return member


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("kind", [tar.REGULAR, tar.DIRECTORY, tar.SYMLINK])
def test_a_name_of_any_length_and_script_is_read_back(name: str, kind: bytes) -> None:
    member = _read(tar.header(Entry(name, 0o755, kind, "target" if kind == tar.SYMLINK else "")))
    assert (member.name, member.type, member.mode) == (name, kind, 0o755)
    assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", tar.MTIME)


@pytest.mark.parametrize("link", ["../python", "l" * 100, "l" * 101, "ü/ö"])
def test_a_link_of_any_length_is_read_back(link: str) -> None:
    assert _read(tar.header(Entry("a", 0o777, tar.SYMLINK, link))).linkname == link


@pytest.mark.parametrize("size", [0, 1, 8**11 - 1, 8**11, 8 * 1024**3 + 5, 2**40])
def test_sizes_over_8_gib_are_read_back(size: int) -> None:
    header = tar.header(Entry("big", 0o644), size)
    assert len(header) % tar.BLOCK == 0
    first = tarfile.TarFile(fileobj=io.BytesIO(header + bytes(1024))).next()
    assert first is not None and (first.name, first.size) == ("big", size)


@settings(deadline=None)
@given(st.lists(st.text("ab.é/_-", min_size=1, max_size=400).filter(lambda s: s.strip("/") == s and "//" not in s)))
def test_any_path_is_read_back(paths: list[str]) -> None:
    for path in paths:
        assert _read(tar.header(Entry(path, 0o644))).name == path


@settings(deadline=None)
@given(st.integers(0, 10**7))
def test_padding_reaches_a_whole_block(size: int) -> None:
    assert (size + tar.padding(size)) % tar.BLOCK == 0 and 0 <= tar.padding(size) < tar.BLOCK


def test_the_system_tar_lists_the_same_names(tmp_path: Path) -> None:
    need("tar")
    names = [name for name in _NAMES if max(len(part.encode()) for part in name.split("/")) <= 255]
    file = tmp_path / "all.tar"
    file.write_bytes(b"".join(tar.header(Entry(name, 0o640), 3) + b"abc" + bytes(509) for name in names) + tar.END)
    command = ["tar", "--quoting-style=literal", "-tf", str(file)]
    done = subprocess.run(command, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"})
    assert done.stdout.decode().splitlines() == names
    subprocess.run(["tar", "-C", str(tmp_path), "-xf", str(file)], check=True, capture_output=True)
    assert all((tmp_path / name).read_bytes() == b"abc" for name in names)


def test_every_ancestor_is_a_parent() -> None:
    assert tar.parents(["a/b/c.py", "a/d", "e"]) == {"a", "a/b"}


def test_the_bytes_are_pinned() -> None:
    """Images that exist were hashed with these bytes, those of pax records by Python's tarfile included."""
    headers = b"".join(tar.header(Entry(name, 0o644), 7) for name in _NAMES)
    headers += tar.header(Entry("l", 0o777, tar.SYMLINK, "t" * 120)) + tar.header(Entry("big", 0o644), 8**12)
    assert hashlib.sha256(headers).hexdigest() == "7192883e4da3d1292afab7833d271815a81a4e4a176f57b277629f53c91ee279"
