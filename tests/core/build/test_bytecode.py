"""Bytecode is compiled by exactly one Python version, is the same bytes every time, and holds in the image."""

import csv
import io
import marshal
import os
import platform
import py_compile
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import CodeType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_environments.core.build import bytecode, deflate, plan, recipe, tar
from prefect_environments.core.build.bytecode import (
    SOURCE_MAX,
    Compiler,
    Spool,
    cache_path,
    compile_folder,
    compile_wheel,
)
from prefect_environments.core.build.layer import LayerBlob, Overlap, write_wheels
from prefect_environments.core.build.wheel import Wheel
from prefect_environments.core.errors import BuildError
from prefect_environments.core.lock.model import Lock, LockedBase, LockedPackage
from tests.core.build.parts import BASICS, INFO, SITE, TARGET, demo, write_members

HERE = platform.python_version()
TAG = str(sys.implementation.cache_tag)
INTERNS = b"aaaa = bbbb = cccc = 1\n"
SETS = b"def f(x):\n    return x in {'aaaa', 'bbbb'}\ndef g(x):\n    return x in {'aaaa', 'bbbb'} or x in {1, None}\n"
MIXED = """
'''Doc of ä.'''
x = ('{', '}', '', 'aaaa', 1.5, b'x', 10**9, ('cccc', ...))
class C:
    def m(self, *, k='k'):
        return lambda: (self, k, 'cccc')
""".encode()
TRICKY = (
    INTERNS,
    SETS,
    MIXED,
    b"",
    b"# -*- coding: latin-1 -*-\ns = '\xe4'\n",
    b"x in {'bbbb', ('aaaa', None), '{'}\n",
)
BROKEN = {
    "Python 2": b"print 'hello'\n",
    "a template": b"{{ name }} = %(value)s\n",
    "a zero byte": b"x = 1\0\n",
    "not of its encoding": b"s = '\xff'\n",
    "nested too deeply": b"(" * 5000 + b")" * 5000,
    "a long sum": b"x = " + b"+".join([b"y"] * 100_000),
}


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    with Compiler(HERE, workers=2) as compiler:
        yield compiler


def code_of(compiled: bytes | None) -> CodeType:
    assert compiled is not None
    code = marshal.loads(compiled[16:])
    assert isinstance(code, CodeType)
    return code


def make_layer(
    out: Path, wheels: Mapping[str, Path], compiler: Compiler
) -> tuple[LayerBlob, list[Overlap], dict[str, bytes]]:
    """The layer of some wheels with their bytecode, and its files by path."""
    with ExitStack() as stack, out.open("wb") as file, out.with_suffix(".spool").open("w+b") as temporary:
        opened, spool = [], Spool(temporary)
        for name, path in wheels.items():
            wheel = Wheel.open(path, path.name, TARGET)
            stack.callback(wheel.close)
            compile_wheel(wheel, compiler, spool)
            opened.append((name, wheel))
        blob, overlaps = write_wheels(opened, file, deflate.member)
    with tarfile.open(out) as archive:
        contents = {m.name: archive.extractfile(m) for m in archive if m.isfile()}
        return blob, overlaps, {name: file.read() for name, file in contents.items() if file}


# ---- which Python


def test_the_python_that_runs_this_is_found_first() -> None:
    assert bytecode.find_interpreter(HERE) == bytecode.Interpreter(sys.executable, TAG)


def test_another_python_is_found_where_uv_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here on PATH alone, behind a name like that of a broken wrapper which comes first."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    broken = tmp_path / "first" / "python3"
    broken.write_text("#!/bin/sh\necho no such version >&2; exit 127\n")
    broken.chmod(0o755)
    real = Path(sys.executable).resolve()
    (tmp_path / "second" / "python3").write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    (tmp_path / "second" / "python3").chmod(0o755)
    alone(monkeypatch, tmp_path, f"{tmp_path}/first:{tmp_path}/second")
    found = bytecode.find_interpreter(HERE)
    assert found.tag == TAG
    told = subprocess.run([found.path, "--version"], capture_output=True, text=True, check=True).stdout
    assert told.split()[1] == HERE


def alone(monkeypatch: pytest.MonkeyPatch, folder: Path, path: str) -> None:
    """A machine whose only Pythons are on `path`."""
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(bytecode, "_known", {})
    for name in ("HOME", "XDG_DATA_HOME", "UV_PYTHON_INSTALL_DIR", "UV_CACHE_DIR"):
        monkeypatch.setenv(name, str(folder / "home"))
    monkeypatch.setenv("PATH", path)


def test_a_missing_version_is_an_error_that_says_what_is_there_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same minor version is not enough. Nothing is downloaded."""
    alone(monkeypatch, tmp_path, str(Path(sys.executable).resolve().parent))
    missing = f"{HERE.rpartition('.')[0]}.99"
    with pytest.raises(BuildError) as raised:
        bytecode.find_interpreter(missing)
    said = str(raised.value)
    assert f"needs Python {missing}" in said
    assert HERE in said.partition("here is")[2].partition(". Run")[0]
    assert all(way in said for way in ("Run the worker", f"uv python install {missing}", "turn compile_bytecode off"))
    assert not list((tmp_path / "home").rglob("python*"))


def test_an_interpreter_that_says_another_version_than_uv_is_not_taken(tmp_path: Path) -> None:
    liar = tmp_path / "python3"
    liar.write_text(f'#!/bin/sh\necho \'["{HERE}", "pypy", "pypy39", false]\'\n')
    liar.chmod(0o755)
    assert bytecode._tag(str(liar), HERE) == ""
    assert bytecode._tag(sys.executable, "3.99.1") == ""
    assert bytecode._tag(str(tmp_path / "none"), HERE) == ""


# ---- what is compiled


def test_bytecode_is_what_python_itself_would_write(compiler: Compiler, tmp_path: Path) -> None:
    """Same magic, flags, time and size of the source (PEP 552); code that is equal, with the path in the image."""
    source = tmp_path / "mixed.py"
    source.write_bytes(MIXED)
    os.utime(source, (tar.MTIME, tar.MTIME))
    py_compile.compile(str(source), cfile=str(tmp_path / "c"), dfile="/opt/env/mixed.py", optimize=0, doraise=True)
    own = compiler.compile(MIXED, "/opt/env/mixed.py")
    assert own is not None
    assert own[:16] == (tmp_path / "c").read_bytes()[:16]
    assert code_of(own) == code_of((tmp_path / "c").read_bytes())
    assert code_of(own).co_filename == "/opt/env/mixed.py"


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_valid_python_gets_no_bytecode_and_stops_nothing(compiler: Compiler, source: bytes) -> None:
    assert compiler.compile(source, "/x.py") is None or source == BROKEN["a long sum"]
    assert compiler.compile(b"x = 1\n", "/x.py")


def test_compiling_runs_nothing_and_reads_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the module's code, nor a sitecustomize or a module in the place of the standard library's."""
    mark = tmp_path / "ran"
    for name in ("sitecustomize.py", "usercustomize.py", "struct.py", "marshal.py"):
        (tmp_path / name).write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "struct.py"))
    monkeypatch.chdir(tmp_path)
    with Compiler(HERE, workers=1) as compiler:
        assert compiler.compile(f"open({str(mark)!r}, 'w')\n".encode(), "/x.py")
    assert not mark.exists()


# ---- the same bytes every time


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(TRICKY))))
def test_bytes_do_not_depend_on_what_a_process_compiled_before(compiler: Compiler, order: list[int]) -> None:
    """Names that another file made known, equal sets, single characters: marshal alone would write them differently."""
    once = fresh()
    assert {n: compiler.compile(TRICKY[n], "/x.py") for n in order} == once


_fresh: dict[int, bytes | None] = {}


def fresh() -> dict[int, bytes | None]:
    """The bytecode of each tricky source by a process of its own."""
    if not _fresh:
        for number, source in enumerate(TRICKY):
            with Compiler(HERE, workers=1) as compiler:
                _fresh[number] = compiler.compile(source, "/x.py")
    return _fresh


def test_marshal_alone_is_not_enough() -> None:
    """The reason for all of that: in a process which knows the names, Python writes other bytes of the same code."""
    script = (
        "import marshal, sys\n"
        f"kept = [compile({INTERNS!r}, 'a', 'exec')] if sys.argv[1] == 'after' else []\n"
        f"sys.stdout.buffer.write(marshal.dumps(compile({SETS!r}, 'x', 'exec')))\n"
    )
    command = [sys.executable, "-I", "-c", script]
    first, after = (subprocess.check_output([*command, when]) for when in ("first", "after"))
    assert first != after


def test_layers_are_equal_whatever_the_number_of_processes(tmp_path: Path) -> None:
    files = {f"demo/m{n}.py": TRICKY[n % len(TRICKY)] + b"# %d\n" % n for n in range(20)}
    path = demo(tmp_path, {**files})
    blobs = []
    for workers in (1, 3):
        with Compiler(HERE, workers=workers) as compiler:
            blobs.append(make_layer(tmp_path / f"{workers}.tar.gz", {"demo": path}, compiler)[0])
    assert blobs[0] == blobs[1]


# ---- in a layer


def test_modules_get_bytecode_in_their_layer_and_nothing_else_does(compiler: Compiler, tmp_path: Path) -> None:
    """Not scripts, data outside of site-packages, stubs, or a file of which only the ending is a module's."""
    path = demo(
        tmp_path,
        {
            "demo/__init__.py": b"x = 1\n",
            "demo/sub/a.b.py": b"y = 1\n",
            "demo/old.py": b"print 1\n",
            "demo/typed.pyi": b"x: int\n",
            "demo/.py": b"z = 1\n",
            "demo-1.0.data/scripts/run.py": b"#!python\n",
            "demo-1.0.data/data/share/x.py": b"x = 1\n",
            "demo-1.0.data/purelib/pure.py": b"x = 1\n",
        },
    )
    _, overlaps, files = make_layer(tmp_path / "layer.tar.gz", {"demo": path}, compiler)
    found = {name for name in files if name.endswith(".pyc")}
    assert found == {
        f"{SITE}/demo/__pycache__/__init__.{TAG}.pyc",
        f"{SITE}/demo/sub/__pycache__/a.b.{TAG}.pyc",
        f"{SITE}/__pycache__/pure.{TAG}.pyc",
    }
    assert overlaps == []
    assert code_of(files[f"{SITE}/__pycache__/pure.{TAG}.pyc"]).co_filename == f"/{SITE}/pure.py"


def test_record_lists_bytecode_without_a_hash(compiler: Compiler, tmp_path: Path) -> None:
    path = demo(tmp_path, {"demo.py": b"x = 1\n"})
    _, _, files = make_layer(tmp_path / "layer.tar.gz", {"demo": path}, compiler)
    rows = list(csv.reader(io.StringIO(files[f"{SITE}/{INFO}/RECORD"].decode())))
    assert [f"__pycache__/demo.{TAG}.pyc", "", ""] in rows
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert {f"{SITE}/{row[0]}" for row in rows} == set(files)


def test_bytecode_that_a_wheel_brings_is_replaced(compiler: Compiler, tmp_path: Path) -> None:
    """It names another time of its source, so Python would not use it."""
    cached = f"demo/__pycache__/m.{TAG}.pyc"
    path = demo(tmp_path, {"demo/m.py": b"x = 1\n", cached: b"stale", "demo/__pycache__/gone.cpython-35.pyc": b"old"})
    _, _, files = make_layer(tmp_path / "layer.tar.gz", {"demo": path}, compiler)
    assert code_of(files[f"{SITE}/{cached}"])
    assert files[f"{SITE}/demo/__pycache__/gone.cpython-35.pyc"] == b"old"
    names = [row[0] for row in csv.reader(io.StringIO(files[f"{SITE}/{INFO}/RECORD"].decode()))]
    assert names.count(cached) == 1


def test_where_two_wheels_bring_a_module_its_bytecode_is_the_winners(compiler: Compiler, tmp_path: Path) -> None:
    """None at all where the winner's is not valid Python; and a clash is told once, not again for the bytecode."""
    other = {
        f"{INFO.replace('demo', 'other')}/{name.rpartition('/')[2]}": content.replace(b"demo", b"other")
        for name, content in BASICS.items()
    }
    first = demo(tmp_path, {"m.py": b"x = 'demo'\n", "n.py": b"x = 1\n"})
    second = write_members(
        tmp_path, {"m.py": b"x = 'other'\n", "n.py": b"print 1\n", **other}, "other-1.0-py3-none-any.whl"
    )
    _, overlaps, files = make_layer(tmp_path / "layer.tar.gz", {"demo": first, "other": second}, compiler)
    assert "other" in code_of(files[f"{SITE}/__pycache__/m.{TAG}.pyc"]).co_consts
    assert f"{SITE}/__pycache__/n.{TAG}.pyc" not in files
    assert sorted(overlap.path for overlap in overlaps) == [f"{SITE}/m.py", f"{SITE}/n.py"]


def test_a_file_named_pycache_keeps_its_place(compiler: Compiler, tmp_path: Path) -> None:
    path = demo(tmp_path, {"demo/__pycache__": b"a file", "demo/m.py": b"x = 1\n"})
    _, _, files = make_layer(tmp_path / "layer.tar.gz", {"demo": path}, compiler)
    assert files[f"{SITE}/demo/__pycache__"] == b"a file"


def test_python_uses_the_bytecode_until_its_source_is_edited(compiler: Compiler, tmp_path: Path) -> None:
    """A source of the layer's time and the same size is not looked at; an edit in the container is seen."""
    path = demo(tmp_path, {"demo_module.py": b"print('compiled')\n"})
    make_layer(tmp_path / "layer.tar.gz", {"demo": path}, compiler)
    with tarfile.open(tmp_path / "layer.tar.gz") as archive:
        archive.extractall(tmp_path / "image", filter="tar")
    site = tmp_path / "image" / SITE
    (site / "demo_module.py").write_bytes(b"print('replaced')\n")
    os.utime(site / "demo_module.py", (tar.MTIME, tar.MTIME))
    assert imported(site) == "compiled\n"
    (site / "demo_module.py").write_bytes(b"print('replaced')\n")
    assert imported(site) == "replaced\n"


def imported(site: Path) -> str:
    script = f"import sys; sys.path.insert(0, {str(site)!r}); import demo_module"
    return subprocess.run([sys.executable, "-IBc", script], capture_output=True, text=True, check=True).stdout


# ---- a folder


def test_a_folder_of_installed_modules_is_compiled_in_place(compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_bytes(MIXED)
    (tmp_path / "old.py").write_bytes(b"print 1\n")
    assert compile_folder(tmp_path, "/opt/env/lib", compiler) == [f"pkg/__pycache__/__init__.{TAG}.pyc"]
    written = (tmp_path / "pkg" / "__pycache__" / f"__init__.{TAG}.pyc").read_bytes()
    assert written == compiler.compile(MIXED, "/opt/env/lib/pkg/__init__.py")


@pytest.mark.parametrize("path", ["m.py", "a/b/m.py", "a/m.n.py", "a/__init__.py"])
def test_bytecode_lies_where_python_looks_for_it(path: str) -> None:
    from importlib.util import cache_from_source

    assert cache_path(path, TAG) == cache_from_source(path, optimization="")


# ---- processes


def test_a_process_that_is_killed_fails_the_build_and_no_layer_lacks_bytecode(tmp_path: Path) -> None:
    """A layer must not depend on how much memory a worker had."""
    path = demo(tmp_path, {f"demo/m{n}.py": b"x = 1\n" for n in range(5)})
    with Compiler(HERE, workers=1) as compiler:
        compiler.compile(b"", "/x.py")
        compiler._idle[0]._process.kill()
        with pytest.raises(
            BuildError, match=r"compiling /opt/env/.*/m0.py to bytecode failed.*turn compile_bytecode off"
        ):
            make_layer(tmp_path / "layer.tar.gz", {"demo": path}, compiler)


def test_the_end_of_the_block_ends_the_processes_and_what_waits_for_them() -> None:
    with Compiler(HERE, workers=2) as compiler:
        compiler.compile(b"", "/x.py")
        processes = [worker._process for worker in compiler._workers]
    assert [process.poll() for process in processes] == [-9]
    with pytest.raises(BuildError, match="has ended"):
        compiler.compile(b"", "/x.py")


def test_who_waits_for_a_process_is_told_when_the_block_ends() -> None:
    """As when a build is cancelled in the middle of a large module."""
    slow = b"x = [" + b"f(1), " * (SOURCE_MAX // 7) + b"]"
    with ThreadPoolExecutor(1) as thread, Compiler(HERE, workers=1) as compiler:
        waiting = thread.submit(compiler.compile, slow, "/x.py")
        while not compiler._workers or compiler._idle:
            time.sleep(0.01)
        compiler.__exit__()
        assert isinstance(waiting.exception(), BuildError)


def test_nothing_is_started_before_it_is_needed() -> None:
    with Compiler("3.99.99") as compiler:
        assert compiler._workers == []


# ---- the layer key


def test_the_layer_key_names_the_full_version_and_the_codec_only_with_bytecode() -> None:
    packages = (LockedPackage.of_file("leaf-1.0-py3-none-any.whl", "c" * 64, None),)
    lock = Lock(LockedBase("example.com/base:1", "sha256:" + "a" * 64), TARGET, packages)
    assert "bytecode" not in recipe.layer_inputs(packages, TARGET)
    with_it = recipe.layer_inputs(packages, TARGET, "3.11.4")
    assert (with_it["bytecode"], with_it["codec"]) == ("3.11.4", recipe.CODEC)
    keys = {plan.layer_key(packages, replace(lock, bytecode=version)) for version in ("", "3.11.4", "3.11.5")}
    assert len(keys) == 3
