"""Conda archives that lie, climb out or explode are refused by name, before rattler sees them."""

import bz2
import json
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_environments.core.build.conda.contents import Contents, read_contents
from prefect_environments.core.errors import PackageError
from tests.core.build.conda_parts import File, Package, special, zipped

SUFFIXES = (".conda", ".tar.bz2")


def read(package: Package, folder: Path, suffix: str = ".conda", python: str = "3.11", **changed: Any) -> Contents:
    return read_contents(*package.write(folder, suffix, **changed), python)


def listing(*paths: Mapping[str, Any]) -> Mapping[str, bytes]:
    return {"paths.json": json.dumps({"paths": list(paths), "paths_version": 1}).encode()}


def path(name: str, kind: str = "hardlink", **more: str) -> dict[str, str]:
    return {"_path": name, "path_type": kind, **more}


def noarch(**changed: Any) -> Package:
    return Package("mod", build="py_0", subdir="noarch", noarch="python", **changed)


FILE = {"share/a.txt": b"a"}
HOSTILE: dict[str, tuple[Package, str]] = {
    "climbing member": (Package(members=[special("../up", tarfile.REGTYPE)]), "unsafe name"),
    "absolute member": (Package(members=[special("/etc/x", tarfile.REGTYPE)]), "unsafe name"),
    "whiteout": (Package(files={"lib/.wh.libc.so": b""}), "unsafe name"),
    "opaque whiteout": (Package(files={"lib/.wh..wh..opq": b""}), "unsafe name"),
    "control character": (Package(files={"share/a\nb": b""}), "unsafe name"),
    "long name": (Package(files={"share/" + "n" * 300: b""}), "unsafe name"),
    "device": (Package(members=[special("dev", tarfile.CHRTYPE)]), "special file"),
    "pipe": (Package(members=[special("pipe", tarfile.FIFOTYPE)]), "special file"),
    "hard link out": (Package(members=[special("h", tarfile.LNKTYPE, "../../etc/passwd")]), "hard link"),
    "absolute hard link": (Package(members=[special("h", tarfile.LNKTYPE, "/etc/passwd")]), "hard link"),
    "climbing link": (Package(files={"lib/l": File(link="../../etc/passwd")}), "leads out"),
    "member behind a link": (Package(files={"lib": File(link="/etc"), "lib/x": b""}), "file or link and a folder"),
    "member twice": (Package(files=FILE, members=[special("share/a.txt", tarfile.REGTYPE)]), "twice"),
    "info file by link": (
        Package(info={"paths.json": None}, members=[special("info/paths.json", tarfile.SYMTYPE, "../p.json")]),
        "is a link",
    ),
    "climbing path": (Package(files=FILE, paths=[path("../../up")]), "unsafe name"),
    "absolute path": (Package(files=FILE, paths=[path("/etc/passwd")]), "unsafe name"),
    "path behind a link": (Package(files={"lib": File(link="/etc")}, paths=[path("lib/passwd")]), "does not hold"),
    "path that is not there": (Package(files=FILE, paths=[path("share/b.txt")]), "does not hold"),
    "path twice": (Package(files=FILE, paths=[path("share/a.txt")]), "twice"),
    "unknown kind": (Package(files={"a": File(listed=False)}, paths=[path("a", "device")]), "'device'"),
    "file as a folder": (Package(files={"a": File(listed=False)}, paths=[path("a", "directory")]), "which it is not"),
    "rewritten link": (
        Package(
            files={"l": File(link="/etc/shadow", listed=False)},
            paths=[path("l", "softlink", prefix_placeholder="root", file_mode="text")],
        ),
        "rewritten",
    ),
    "paths that are no list": (Package(info={"paths.json": b'{"paths": 3}'}), "no list of paths"),
    "paths that are no JSON": (Package(info={"paths.json": b"{"}), "not JSON"),
    "deep JSON": (Package(info={"index.json": b"[" * 100_000}), "not JSON"),
    "no index": (Package(info={"index.json": None}), "no info/index.json"),
    "history": (Package(files={"conda-meta/history": b""}), "part of the environment itself"),
    "another package's record": (Package(files={"conda-meta/other-1-0.json": b"{}"}), "part of the environment"),
    "venv settings": (Package(files={"pyvenv.cfg": b""}), "part of the environment itself"),
    "climbing command": (noarch(entry_points=["../../x = mod:main"]), "entry point"),
    "command that is no text": (noarch(info={"link.json": b'{"noarch": {"entry_points": [3]}}'}), "entry point"),
    "one place for two": (
        noarch(files={"site-packages/m.py": b"", "lib/python3.11/site-packages/m.py": b""}),
        "one place",
    ),
    "free-threaded Python": (
        Package(
            "python",
            info={
                "index.json": json.dumps(
                    {
                        "name": "python",
                        "version": "1.0",
                        "build": "h1_0",
                        "python_site_packages_path": "lib/python3.13t/site-packages",
                    }
                ).encode()
            },
        ),
        "free-threaded",
    ),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_package_is_refused_by_name(case: str, suffix: str, tmp_path: Path) -> None:
    package, why = HOSTILE[case]
    with pytest.raises(PackageError, match=why) as caught:
        read(package, tmp_path, suffix)
    assert f"{package.name}-1.0-{package.build}{suffix} is refused" in str(caught.value)


@pytest.mark.parametrize("told", [{"name": "other"}, {"version": "2.0"}, {"build": "h2_0"}, {"subdir": "noarch"}])
def test_a_package_that_names_another_one_is_refused(told: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="the lock says"):
        read(Package(files=FILE), tmp_path, **told)


@pytest.mark.parametrize("filename", ["../demo-1.0-h1_0.conda", "demo.whl", "demo-1.0-h1_0.conda\n", "a b.conda"])
def test_a_file_name_that_is_none_is_refused(filename: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no file name of a conda package"):
        read(Package(files=FILE), tmp_path, filename=filename)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_package_that_is_cut_short_or_damaged_is_refused(
    suffix: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whole, or an error: never a part of a package, and no other kind of error."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    package = Package(files={"share/a.bin": bytes(range(256)) * 40})
    locked, place = package.write(folder, suffix)
    content = place.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    broken = folder / "broken"
    broken.write_bytes(content[:cut])
    with pytest.raises(PackageError):
        read_contents(locked, broken, "")
    flipped = bytearray(content)
    flipped[cut] ^= 1 << data.draw(st.integers(0, 7))
    broken.write_bytes(flipped)
    with suppress(PackageError):
        assert read_contents(locked, broken, "").files == {"share/a.bin"}


def _bomb(kind: bytes, size: int) -> bytes:
    header = tarfile.TarInfo("bomb")
    header.type, header.size = kind, size
    return header.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_bomb_is_refused_without_being_unpacked(kind: bytes, tmp_path: Path) -> None:
    """By its content, by a long name, by a pax header: some readers hold the last two in memory."""
    content = _bomb(kind, 300_000_000) + bytes(70_000_000)
    locked, place = Package().write(tmp_path, ".tar.bz2")
    place.write_bytes(bz2.compress(content, 1))
    with pytest.raises(PackageError, match="looks like a bomb"):
        read_contents(locked, place, "")


def _conda(parts: Callable[[dict[str, bytes]], dict[str, bytes]]) -> bytes:
    stem = "demo-1.0-h1_0"
    whole = {"metadata.json": b"{}", f"pkg-{stem}.tar.zst": b"", f"info-{stem}.tar.zst": zstd.compress(bytes(1024))}
    return zipped(parts(whole))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (lambda parts: {**parts, "pkg-other-1.0-0.tar.zst": b""}, "must hold"),
        (lambda parts: {k: v for k, v in parts.items() if not k.startswith("pkg")}, "must hold"),
        (lambda parts: {**parts, "info-demo-1.0-h1_0.tar.zst": b"no zstd"}, "damaged or cut short"),
        (lambda parts: {**parts, "info-demo-1.0-h1_0.tar.zst": zstd.compress(b"x" * 2000)}, "damaged|no member"),
    ],
)
def test_a_conda_file_is_two_zstandard_tars_and_nothing_else(parts: Any, why: str, tmp_path: Path) -> None:
    locked, place = Package().write(tmp_path)
    place.write_bytes(_conda(parts))
    with pytest.raises(PackageError, match=why):
        read_contents(locked, place, "")


def test_members_behind_a_broken_header_are_not_overlooked(tmp_path: Path) -> None:
    """tarfile takes one for the end of the archive; another reader might go on."""
    locked, place = Package(files=FILE).write(tmp_path, ".tar.bz2")
    tar = bz2.decompress(place.read_bytes())
    used = tar.rstrip(b"\0")
    broken = bytearray(_bomb(tarfile.REGTYPE, 0))
    broken[148:156] = b"0000000\0"
    end = -(-len(used) // 512) * 512
    place.write_bytes(bz2.compress(tar[:end] + bytes(broken) + bytes(1024)))
    with pytest.raises(PackageError, match="no member stand at the end"):
        read_contents(locked, place, "")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_package_brings_is_known_before_it_is_unpacked(suffix: str, tmp_path: Path) -> None:
    package = noarch(
        files={
            "site-packages/Mod_X/__init__.py": b"",
            "site-packages/Mod_X-1.0.dist-info/METADATA": b"",
            "python-scripts/run": b"",
            "share/l": File(link="/usr/share/l"),
            "bin/.mod-post-link.sh": b"",
            "etc/conda/activate.d/mod.sh": b"",
        },
        entry_points=["mod = mod.cli:main"],
        paths=[path("share/empty", "directory")],
    )
    found = read(package, tmp_path, suffix)
    site = "lib/python3.11/site-packages"
    assert found.files == {
        f"{site}/Mod_X/__init__.py",
        f"{site}/Mod_X-1.0.dist-info/METADATA",
        "bin/run",
        "bin/mod",
        "share/l",
        "bin/.mod-post-link.sh",
        "etc/conda/activate.d/mod.sh",
    }
    assert found.links == {"share/l"} and found.folders == {"share/empty"} and found.distributions == {"mod-x"}
    assert found.not_run == ["bin/.mod-post-link.sh", "etc/conda/activate.d/mod.sh"]


def test_a_package_for_any_python_needs_one(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="add python to the definition"):
        read(noarch(), tmp_path, python="")


def test_a_package_from_before_paths_json_is_read_by_its_list_of_files(tmp_path: Path) -> None:
    package = Package(files=FILE, info={"paths.json": None, "files": b"share/a.txt\n"})
    assert read(package, tmp_path, ".tar.bz2").files == {"share/a.txt"}
