"""Layers of conda packages: linked at the prefix, and bytes that depend on the packages alone."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.build import recipe, tar
from prefect_environments.core.build.conda import CondaLayer, write_conda
from prefect_environments.core.build.conda import link as linking
from prefect_environments.core.errors import BuildError, PackageError
from prefect_environments.core.lock.model import LockedCondaPackage
from tests.core.build.conda_parts import PLACEHOLDER, File, Package

SITE = "opt/env/lib/python3.11/site-packages"
BINARY = b"\x7fELF\0" + PLACEHOLDER.encode() + b"/lib/x.so\0" + PLACEHOLDER.encode() + b"\0end"
NATIVE = Package(
    "native",
    files={
        "bin/tool": File(f"#!{PLACEHOLDER}/bin/python\nprint('{PLACEHOLDER}')\n".encode(), True, "text"),
        "lib/libnative.so.1": File(BINARY, True, "binary"),
        "lib/libnative.so": File(link="libnative.so.1"),
        "share/plain.txt": b"plain\n",
        "bin/.native-post-link.sh": b"exit 1\n",
    },
)
MODULE = Package(
    "module",
    build="py_0",
    subdir="noarch",
    noarch="python",
    files={
        "site-packages/module/__init__.py": b"def main(): pass\n",
        "site-packages/module-1.0.dist-info/METADATA": b"Name: module\n",
        "share/module.txt": b"",
    },
    entry_points=["module = module:main"],
)

Given = tuple[LockedCondaPackage, Path]


def written(given: Sequence[Given], scratch: Path, replaced: Collection[str] = ()) -> tuple[CondaLayer, bytes]:
    out = io.BytesIO()
    return write_conda(given, "3.11", out, scratch, replaced), out.getvalue()


def content_of(layer: bytes) -> dict[str, Any]:
    """Files as bytes, links as text, folders as None, by path."""
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return {
            m.name: file.read() if m.isreg() and (file := archive.extractfile(m)) else m.linkname or None
            for m in archive
        }


def test_prefixes_links_modules_and_commands(tmp_path: Path) -> None:
    layer, content = written([MODULE.write(tmp_path), NATIVE.write(tmp_path, ".tar.bz2")], tmp_path / "scratch")
    found = content_of(content)
    assert found["opt/env/bin/tool"] == b"#!/opt/env/bin/python\nprint('/opt/env')\n"
    library = found["opt/env/lib/libnative.so.1"]
    assert len(library) == len(BINARY) and b"/opt/env/lib/x.so\0" in library and PLACEHOLDER.encode() not in library
    assert found["opt/env/lib/libnative.so"] == "libnative.so.1"
    assert found[f"{SITE}/module/__init__.py"] == b"def main(): pass\n"
    assert found["opt/env/bin/module"].startswith(b"#!/opt/env/bin/python3.11\n")
    assert layer.not_run == [("native", "bin/.native-post-link.sh")] and layer.overlaps == []
    assert layer.blob.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert list((tmp_path / "scratch").iterdir()) == [], "what was unpacked is gone"


def test_entries_have_fixed_times_owners_and_modes_and_come_after_their_folders(tmp_path: Path) -> None:
    _, content = written([NATIVE.write(tmp_path)], tmp_path)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(tar.MTIME, 0, 0, "")}
    modes = {m.name: m.mode for m in members if m.isreg()}
    assert modes["opt/env/bin/tool"] == 0o755 and modes["opt/env/share/plain.txt"] == 0o644
    seen = {""}
    for member in members:
        assert member.name.rpartition("/")[0] in seen
        seen.add(member.name)
    assert len(seen) == len(members) + 1


def test_the_record_tells_of_the_package_alone(tmp_path: Path) -> None:
    locked, place = NATIVE.write(tmp_path / "cache-folder")
    _, content = written([(locked, place)], tmp_path / "scratch-folder")
    text = content_of(content)["opt/env/conda-meta/native-1.0-h1_0.json"].decode()
    record = json.loads(text)
    assert {key: record[key] for key in ("name", "version", "build", "subdir", "fn", "sha256", "channel", "url")} == {
        "name": "native",
        "version": "1.0",
        "build": "h1_0",
        "subdir": "linux-64",
        "fn": "native-1.0-h1_0.conda",
        "sha256": locked.sha256,
        "channel": "<unknown>",
        "url": "file:///linux-64/native-1.0-h1_0.conda",
    }
    assert record["files"] == sorted(NATIVE.files)
    paths = {path["_path"]: path for path in record["paths_data"]["paths"]}
    tool = content_of(content)["opt/env/bin/tool"]
    assert paths["bin/tool"]["sha256_in_prefix"] == hashlib.sha256(tool).hexdigest()
    assert str(tmp_path) not in text and "folder" not in text and "example" not in text


def test_rattler_reads_the_record(tmp_path: Path) -> None:
    from rattler import PrefixRecord

    _, content = written([NATIVE.write(tmp_path)], tmp_path)
    place = tmp_path / "native-1.0-h1_0.json"
    place.write_bytes(content_of(content)["opt/env/conda-meta/native-1.0-h1_0.json"])
    record = PrefixRecord.from_path(place)
    assert record.name.normalized == "native" and sorted(map(str, record.files)) == sorted(NATIVE.files)


CHILD = """
import hashlib, io, os, pickle, sys, time
from pathlib import Path
given, scratch, umask = pickle.loads(bytes.fromhex(sys.argv[1]))
os.umask(umask)
time.tzset()
from prefect_environments.core.build.conda import write_conda
out = io.BytesIO()
print(write_conda(given, "3.11", out, scratch).blob.digest)
"""


@pytest.mark.parametrize(("umask", "zone"), [(0o022, "UTC"), (0o077, "Asia/Kathmandu"), (0o000, "America/Lima")])
def test_bytes_do_not_depend_on_process_place_umask_or_time_zone(umask: int, zone: str, tmp_path: Path) -> None:
    import pickle

    given = [MODULE.write(tmp_path), NATIVE.write(tmp_path, ".tar.bz2")]
    here, _ = written(given, tmp_path / "scratch")
    moved = tmp_path / f"a cache of {umask}"
    moved.mkdir()
    there = [(locked, Path(shutil.copy(place, moved))) for locked, place in given]
    argument = pickle.dumps((there, tmp_path / "other scratch", umask)).hex()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, argument],
        env={**os.environ, "TZ": zone, "PYTHONHASHSEED": str(umask), "LC_ALL": "C", "HOME": str(moved)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == here.blob.digest
    assert sorted(path.name for path in moved.iterdir()) == sorted(place.name for _, place in given), "nothing in HOME"


def test_parallel_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    given = [MODULE.write(tmp_path), NATIVE.write(tmp_path)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: written(given, tmp_path / "scratch")[0].blob, range(8)))
    assert len(set(found)) == 1


def test_the_bytes_are_those_of_this_recipe(tmp_path: Path) -> None:
    """Fails where a new rattler or codec links or packs otherwise: then LINKER, CODEC or VERSION must change."""
    layer, _ = written([MODULE.write(tmp_path, ".tar.bz2"), NATIVE.write(tmp_path, ".tar.bz2")], tmp_path)
    assert layer.blob.digest == "sha256:168b4118ae3bf4ab1e5778c07d7cb6d150ffc3cd336f059c2b0e0b816311b4c7"


def test_another_linker_than_the_recipes_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipe, "LINKER", "py-rattler 0.1.0")
    linking.check.cache_clear()
    with pytest.raises(BuildError, match=r"install py-rattler==0\.1\.0"):
        written([NATIVE.write(tmp_path)], tmp_path)


def test_the_later_package_wins_and_no_other_counts_for_its_bytes(tmp_path: Path) -> None:
    """Clobbered files keep their names, and each package's own files are as they are alone."""
    first = Package("first", files={"share/both.txt": b"first\n", "share/first.txt": b"1\n"}).write(tmp_path)
    second = Package("second", files={"share/both.txt": b"second\n"}).write(tmp_path)
    layer, content = written([first, second], tmp_path)
    assert [(o.path, o.loser, o.winner) for o in layer.overlaps] == [("opt/env/share/both.txt", "first", "second")]
    assert layer.paths["first"] == ["opt/env/share/both.txt", "opt/env/share/first.txt"]
    together = content_of(content)
    alone = content_of(written([second], tmp_path)[1])
    assert together["opt/env/share/both.txt"] == b"second\n" and together.items() >= alone.items()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_folder_wins_over_a_link_or_file_of_its_name(order: tuple[int, int], tmp_path: Path) -> None:
    both = [
        Package("linked", files={"share/x": File(link="y"), "share/y/old": b""}).write(tmp_path),
        Package("folder", files={"share/x/new": b"new"}).write(tmp_path),
    ]
    layer, content = written([both[i] for i in order], tmp_path)
    assert content_of(content)["opt/env/share/x/new"] == b"new" and content_of(content)["opt/env/share/x"] is None
    assert [(o.path, o.loser, o.winner) for o in layer.overlaps] == [("opt/env/share/x", "linked", "folder")]


def test_a_distribution_that_pip_replaces_is_left_out(tmp_path: Path) -> None:
    """As pip would uninstall it: modules, metadata and commands, not what else the package brings."""
    _, content = written([MODULE.write(tmp_path)], tmp_path, replaced={"module"})
    found = content_of(content)
    assert "opt/env/share/module.txt" in found and "opt/env/bin/module" not in found
    assert not any(path.startswith(SITE) for path in found)
    record = json.loads(found["opt/env/conda-meta/module-1.0-py_0.json"])
    assert record["files"] == ["share/module.txt"] == [path["_path"] for path in record["paths_data"]["paths"]]


def test_a_package_of_that_name_that_is_no_distribution_stays_whole(tmp_path: Path) -> None:
    given = [NATIVE.write(tmp_path)]
    assert written(given, tmp_path, replaced={"native"})[0] == written(given, tmp_path)[0]


def _pyc(source: bytes, time: int) -> bytes:
    return MAGIC_NUMBER + b"".join(n.to_bytes(4, "little") for n in (0, time, len(source))) + b"code"


def test_bytecode_stays_valid_in_the_layer_unless_it_was_stale(tmp_path: Path) -> None:
    """Its source's time becomes the layer's, else Python would compile the standard library at each start."""
    folder, cached = "lib/python3.11", "lib/python3.11/__pycache__/{}.cpython-311.pyc"
    source = b"import os\n"
    patched = File(f"PREFIX = '{PLACEHOLDER}'\n".encode(), mode="text")
    package = Package(
        "python",
        files={
            f"{folder}/fresh.py": source,
            cached.format("fresh"): _pyc(source, 1_700_000_000),
            cached.format("fresh.opt-1").replace(".opt-1.cpython-311", ".cpython-311.opt-1"): _pyc(
                source, 1_700_000_000
            ),
            f"{folder}/stale.py": source,
            cached.format("stale"): _pyc(source, 1_600_000_000),
            f"{folder}/patched.py": patched,
            cached.format("patched"): _pyc(patched.content, 1_700_000_000),
            f"{folder}/alone.pyc": _pyc(source, 1_700_000_000),
        },
    )
    _, content = written([package.write(tmp_path)], tmp_path)
    found = content_of(content)
    times = {
        path.rpartition("/")[2]: int.from_bytes(data[8:12], "little")
        for path, data in found.items()
        if path.endswith(".pyc")
    }
    assert times == {
        "fresh.cpython-311.pyc": tar.MTIME,
        "fresh.cpython-311.opt-1.pyc": tar.MTIME,
        "stale.cpython-311.pyc": 1_600_000_000,
        "patched.cpython-311.pyc": 1_700_000_000,
        "alone.pyc": 1_700_000_000,
    }
    record = json.loads(found["opt/env/conda-meta/python-1.0-h1_0.json"])
    told = {path["_path"]: path.get("sha256_in_prefix") for path in record["paths_data"]["paths"]}
    fresh = cached.format("fresh")
    assert told[fresh] == hashlib.sha256(found[f"opt/env/{fresh}"]).hexdigest()


def test_an_old_package_that_would_have_a_link_rewritten_is_refused(tmp_path: Path) -> None:
    """rattler follows it, and would copy a file of the worker into the image."""
    secret = tmp_path / "secret.txt"
    secret.write_text("root:secret")
    package = Package(
        files={"l": File(link=str(secret))},
        info={"paths.json": None, "files": b"l\n", "has_prefix": b"root text l\n"},
    )
    with pytest.raises(PackageError, match="is refused"):
        written([package.write(tmp_path, ".tar.bz2")], tmp_path / "scratch")


def test_a_command_with_the_name_of_a_script_is_either_the_command(tmp_path: Path) -> None:
    package = Package(
        "twice",
        subdir="noarch",
        noarch="python",
        files={"python-scripts/twice": File(b"script", True)},
        entry_points=["twice = twice:main"],
    )
    given = [package.write(tmp_path)]
    one, two = written(given, tmp_path), written(given, tmp_path)
    assert one == two and b"from twice import main" in content_of(one[1])["opt/env/bin/twice"]
