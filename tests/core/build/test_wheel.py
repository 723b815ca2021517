"""What a wheel installs, and which wheels are refused."""

import base64
import csv
import hashlib
import io
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_environments.core.build.wheel import Wheel
from prefect_environments.core.errors import PackageError
from tests.core.build.parts import INFO, NAME, SITE, TARGET, demo, read_content, write_members
from tests.support.wheels import make_wheel

_QUICK = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _open(path: Path) -> Wheel:
    return Wheel.open(path, path.name, TARGET)


def _record(wheel: Wheel) -> dict[str, tuple[str, str]]:
    rows = csv.reader(io.StringIO(read_content(wheel, f"{SITE}/{INFO}/RECORD").decode()))
    return {path: (digest, size) for path, digest, size in rows}


def _hash(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def test_console_and_gui_scripts_call_their_functions(tmp_path: Path) -> None:
    text = b"[console_scripts]\nrun = demo.cli:main\nextra = demo.cli:app.go [fast,more]\n[gui_scripts]\nwin=demo:gui\n"
    wheel = _open(demo(tmp_path, entry_points=text))
    scripts = {path.rpartition("/")[2]: read_content(wheel, path) for path in wheel.contents if "/env/bin/" in path}
    assert sorted(scripts) == ["extra", "run", "win"]
    assert all(content.startswith(b"#!/opt/env/bin/python\n") for content in scripts.values())
    assert b"from demo.cli import main" in scripts["run"] and b"main()" in scripts["run"]
    assert b"from demo.cli import app" in scripts["extra"] and b"app.go()" in scripts["extra"]
    assert {wheel.contents[f"opt/env/bin/{name}"].entry.mode for name in scripts} == {0o755}


@pytest.mark.parametrize(
    ("given", "installed"),
    [
        (b"#!python\nprint()\n", b"#!/opt/env/bin/python\nprint()\n"),
        (b"#!python", b"#!/opt/env/bin/python"),
        (b"#!python -E\r\nprint()\n", b"#!/opt/env/bin/python -E\r\nprint()\n"),
        (b"#!pythonw -E\nprint()\n", b"#!/opt/env/bin/python -E\nprint()\n"),
        (b"#!python3\nprint()\n", b"#!/opt/env/bin/python\nprint()\n"),
        (b"#!python3.11\nprint()\n", b"#!/opt/env/bin/python\nprint()\n"),
        (b"#!python\n" + bytes(3 << 20), b"#!/opt/env/bin/python\n" + bytes(3 << 20)),
        (b"#!pythonic\n", b"#!pythonic\n"),
        (b"#!/bin/sh\necho\n", b"#!/bin/sh\necho\n"),
        (b"\x7fELF\2\1\1" + bytes(90), b"\x7fELF\2\1\1" + bytes(90)),
        (b"", b""),
    ],
)
def test_a_script_gets_the_environments_interpreter_only_where_it_asks(
    given: bytes, installed: bytes, tmp_path: Path
) -> None:
    wheel = _open(demo(tmp_path, {"demo-1.0.data/scripts/tool": given}))
    assert read_content(wheel, "opt/env/bin/tool") == installed
    assert wheel.contents["opt/env/bin/tool"].entry.mode == 0o755
    assert _record(wheel)["../../../bin/tool"] == (_hash(installed), str(len(installed)))


def test_every_data_scheme_has_its_place(tmp_path: Path) -> None:
    schemes = {"data": "share/d", "headers": "h.h", "purelib": "pure.py", "platlib": "plat.so", "scripts": "s"}
    wheel = _open(demo(tmp_path, {f"demo-1.0.data/{key}/{path}": b"x" for key, path in schemes.items()}))
    places = {"opt/env/share/d", "opt/env/include/site/python3.11/demo/h.h", "opt/env/bin/s"}
    assert places | {f"{SITE}/pure.py", f"{SITE}/plat.so"} <= wheel.contents.keys()
    assert not any(".data" in path for path in wheel.contents)


def test_the_record_has_every_file_with_its_hash_and_size(tmp_path: Path) -> None:
    files: dict[str, bytes | tuple[bytes, int]] = {
        "demo/__init__.py": b"x = 1\n",
        'demo/ü,".txt': b"",
        "b.so": b"\0" * 9,
    }
    wheel = _open(demo(tmp_path, files, entry_points=b"[console_scripts]\ndemo = demo:main\n", RECORD=b"b.so,,\n"))
    record = _record(wheel)
    assert record.pop(f"{INFO}/RECORD") == ("", "")
    for path in wheel.contents.keys() - {f"{SITE}/{INFO}/RECORD"}:
        content = read_content(wheel, path)
        name = path.removeprefix(f"{SITE}/") if path.startswith(SITE) else f"../../../{path.removeprefix('opt/env/')}"
        assert record.pop(name) == (_hash(content), str(len(content)))
    assert not record, "a row without its file"


def test_the_installers_name_is_ours_also_where_the_wheel_has_one(tmp_path: Path) -> None:
    wheel = _open(demo(tmp_path, {f"{INFO}/INSTALLER": b"conda\n"}))
    assert read_content(wheel, f"{SITE}/{INFO}/INSTALLER") == b"prefect-environments\n"


def test_executable_bits_are_kept_and_all_other_modes_are_plain(tmp_path: Path) -> None:
    files: dict[str, bytes | tuple[bytes, int]] = {
        "tool": (b"", 0o100755),
        "odd": (b"", 0o104777),
        "plain": (b"", 0o100600),
        "dos": (b"", 0),
    }
    wheel = _open(demo(tmp_path, files))
    modes = {name: wheel.contents[f"{SITE}/{name}"].entry.mode for name in files}
    assert modes == {"tool": 0o755, "odd": 0o755, "plain": 0o644, "dos": 0o644}


_TAKEN = [
    *("bin/python", "bin/python3", "bin/python3.11", "bin/python/a", "bin"),
    *("pyvenv.cfg", "pyvenv.cfg/a", "lib64", "lib64/a.py", "include/site/python3.11"),
    *("lib", "lib/python3.11", "lib/python3.11/site-packages"),
]


@pytest.mark.parametrize("path", _TAKEN)
def test_no_wheel_replaces_a_part_of_the_environment(path: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"a part of the environment itself|a file and a folder") as caught:
        _open(demo(tmp_path, {f"demo-1.0.data/data/{path}": b"x"}))
    assert NAME in str(caught.value)


@pytest.mark.parametrize("script", ["python", "python3", "..", ".", ".wh.python", ".wh..wh..opq", "a/b", "../x", "-c"])
def test_an_entry_point_is_a_harmless_file_name(script: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=NAME):
        _open(demo(tmp_path, entry_points=f"[console_scripts]\n{script} = demo:main\n".encode()))


@pytest.mark.parametrize(
    ("files", "changed", "reason"),
    [
        ({}, {"WHEEL": None}, "has no demo-1.0.dist-info/WHEEL"),
        ({}, {"METADATA": None}, "has no demo-1.0.dist-info/METADATA"),
        ({}, {"RECORD": None}, "has no demo-1.0.dist-info/RECORD"),
        ({}, {"WHEEL": b"Wheel-Version: 2.0\n"}, "wheel format '2.0'"),
        ({}, {"WHEEL": b""}, "wheel format 'unknown'"),
        ({}, {"RECORD": b"\xff\xfe"}, "RECORD cannot be read"),
        ({"other-1.0.dist-info/METADATA": b""}, {}, "exactly one .dist-info"),
        ({"demo-1.0.data/nowhere/a": b""}, {}, "no known folder"),
        ({"demo-1.0.data/a": b""}, {}, "no known folder"),
        ({"a.py": b"", "demo-1.0.data/purelib/a.py": b""}, {}, "two of its members"),
        ({"demo-1.0.data/purelib/a.py": b"", "demo-1.0.data/platlib/a.py": b""}, {}, "two of its members"),
        ({"a": b"", "demo-1.0.data/purelib/a/b": b""}, {}, "a file and a folder"),
    ],
)
def test_a_malformed_wheel_is_refused_by_name_and_reason(
    files: dict[str, bytes], changed: dict[str, bytes | None], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(PackageError, match=reason) as caught:
        _open(demo(tmp_path, dict(files), **changed))
    assert NAME in str(caught.value)


@pytest.mark.parametrize(
    "name", ["other-1.0-py3-none-any.whl", "demo-1.1-py3-none-any.whl", "demo.whl", "demo-1.0.zip"]
)
def test_the_file_name_must_be_of_the_package_inside(name: str, tmp_path: Path) -> None:
    path = demo(tmp_path)
    with pytest.raises(PackageError, match=r"another package or version|not a wheel's file name"):
        Wheel.open(path, name, TARGET)


def test_other_spellings_of_name_and_version_are_the_same_package(tmp_path: Path) -> None:
    basics = {"METADATA": b"", "RECORD": b"", "WHEEL": b"Wheel-Version: 1.0\n"}
    path = write_members(tmp_path, {f"My.Demo-1.0.0.dist-info/{key}": text for key, text in basics.items()})
    assert Wheel.open(path, "my_demo-1.0-py3-none-any.whl", TARGET).contents


@_QUICK
@given(
    st.one_of(st.text(), st.text("[]console_scripts=:.\n abc%$();#\t-"), st.from_regex(r"\[console_scripts\]\n.*=.*"))
)
def test_whatever_entry_points_say_only_package_errors_escape(tmp_path: Path, text: str) -> None:
    path = demo(tmp_path, entry_points=text.encode("utf-8", "surrogatepass"))
    try:
        wheel = _open(path)
    except PackageError as error:
        assert NAME in str(error)
    else:
        bins = [entry for entry in wheel.contents if "/env/bin/" in entry]
        assert all(entry.count("/") == 3 and not entry.endswith(("/.", "/..")) for entry in bins)


@_QUICK
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_whatever_bytes_of_a_wheel_change_only_package_errors_escape(tmp_path: Path, seed: int, changes: int) -> None:
    choose = random.Random(seed)
    path = make_wheel(
        tmp_path,
        "demo",
        "1.0",
        {"demo.py": b"x = 1\n" * 9},
        entry_points={"demo": "demo:main"},
        scripts={"s": b"#!python\n"},
        compress=choose.random() < 0.5,
    )
    content = bytearray(path.read_bytes())
    for _ in range(changes):
        start = choose.randrange(len(content))
        content[start : start + choose.choice([1, 1, 1, 4, 40])] = choose.randbytes(choose.choice([0, 1, 1, 1, 4]))
    path.write_bytes(content)
    try:
        wheel = _open(path)
        for entry in wheel.contents:
            read_content(wheel, entry)
    except PackageError as error:
        assert NAME in str(error)
