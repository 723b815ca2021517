"""This package as a wheel, made from its installed files: a job's image has exactly the code that made it."""

import csv
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.oci import digest as digests

PROJECT = "prefect-environments"

_TIME = (1980, 1, 1, 0, 0, 0)
_LEFT_OUT = ("__pycache__",)


def write_own_wheel(folder: Path) -> tuple[LockedPackage, Path]:
    """Write the wheel into `folder`; equal files give equal bytes, installed or editable.

    It names no requirements: a job's image gets only what runs there. Nor has it entry points, which would make every
    start of Prefect load it.
    """
    stem = f"{PROJECT.replace('-', '_')}-{version(PROJECT)}"
    name = f"{stem}-py3-none-any.whl"
    info = f"{stem}.dist-info"
    root = Path(str(sys.modules[__name__.partition(".")[0]].__file__)).parent
    members = {f"{root.name}/{path}": (root / path).read_bytes() for path in _files(root)}
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {PROJECT}\nVersion: {version(PROJECT)}\n".encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/RECORD"] = _record([*members, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, content in members.items():
            archive.writestr(zipfile.ZipInfo(path, _TIME), content)  # stored: a compressor's bytes differ
    digest = digests.of_file(folder / name)
    return LockedPackage.of_file(name, digests.hex_of(digest), (folder / name).stat().st_size), folder / name


def _files(root: Path) -> Iterator[str]:
    """Paths of the package's files, sorted. An editable installation may have its folders as links."""
    for place, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        yield from (Path(place, name).relative_to(root).as_posix() for name in sorted(names) if name[-4:] != ".pyc")


def _record(paths: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([path, "", ""] for path in paths)
    return text.getvalue().encode()
