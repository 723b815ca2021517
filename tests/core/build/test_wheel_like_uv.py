"""The same wheels, installed by uv into a venv: the same files, and the same rows in RECORD."""

import csv
import ensurepip
import posixpath
import subprocess
import sys
from pathlib import Path

import pytest
import uv

from prefect_environments.core.build.wheel import Wheel
from prefect_environments.core.lock.target import Target
from tests.core.build.parts import read_content
from tests.support.session import missing
from tests.support.wheels import make_wheel

_MINE = Target(sys.version.split()[0], "/usr/bin/python3", "glibc", "2.36")
_DIFFER = ("INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "RECORD")


def _bundled() -> list[Path]:
    return sorted(Path(ensurepip.__file__).parent.glob("_bundled/*.whl"))


def _made(folder: Path) -> Path:
    return make_wheel(
        folder,
        "Full.Of-Things",
        "1.0",
        {"things/__init__.py": b"", "things/deep/er/data.bin": bytes(5000), "things/ü, and.txt": b"text"},
        entry_points={"things": "things:main", "things-more": "things.deep:app.run [extra]"},
        scripts={"tool": b"#!python -E\n", "other": b"#!/bin/sh\n", "binary": b"\x7fELF\0\0"},
        data={"data/share/doc/x.txt": b"x", "headers/things.h": b"#", "purelib/p.py": b"", "platlib/q.py": b"q"},
    )


def _files_and_rows(root: Path) -> tuple[set[str], dict[str, tuple[str, str]]]:
    (record,) = root.glob("lib/python*/site-packages/*.dist-info/RECORD")
    found, site = {}, record.parents[1]
    with record.open(newline="") as file:
        for path, digest, size in csv.reader(file):
            found[str((site / path).resolve().relative_to(root.resolve()))] = (digest, size)
    assert all((root / path).is_file() for path in found)
    return {path for path in found if not path.endswith(_DIFFER)}, found


@pytest.mark.parametrize("which", ["made", "pip", "setuptools"])
def test_files_modes_and_record_are_those_of_uv(which: str, tmp_path: Path) -> None:
    given = _made(tmp_path) if which == "made" else next((p for p in _bundled() if p.name.startswith(which)), None)
    if given is None:
        missing(f"this Python has no bundled wheel of {which}")
    root = tmp_path / "venv"
    program = uv.find_uv_bin()
    _run(program, "venv", "-q", "--no-config", "-p", sys.executable, root)
    options = ["-q", "--offline", "--no-deps", "--no-config", "--no-cache"]
    _run(program, "pip", "install", *options, "-p", root / "bin" / "python", given)
    wanted, rows = _files_and_rows(root)

    wheel = Wheel.open(given, given.name, _MINE)
    ours = {path.removeprefix("opt/env/"): path for path in wheel.contents}
    assert {path for path in ours if not path.endswith(_DIFFER)} == wanted
    (record,) = (path for path in wheel.contents if path.endswith(".dist-info/RECORD"))
    site = posixpath.dirname(posixpath.dirname(record.removeprefix("opt/env/")))
    rows_of_ours = csv.reader(read_content(wheel, record).decode().splitlines())
    mine = {posixpath.normpath(f"{site}/{path}"): (digest, size) for path, digest, size in rows_of_ours}
    scripts = {path for path in wanted if path.startswith("bin/")}  # their first line names the prefix
    assert {path: mine[path] for path in wanted - scripts} == {path: rows[path] for path in wanted - scripts}
    assert scripts <= mine.keys()
    for path in wanted:
        installed = bool((root / path).stat().st_mode & 0o100)
        assert bool(wheel.contents[ours[path]].entry.mode & 0o100) == installed, path


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
