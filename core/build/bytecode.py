"""Bytecode of an image's packages: .pyc files, compiled by exactly the Python version that the image has.

Equal sources give equal bytes, whichever process compiles them and after what (see `bytecode_worker.py`), so a layer
with bytecode is as reproducible as one without. A .pyc file names the time and the size of its source, as pip's do:
the time is the one that all files of our layers have, so it holds in the image, and a source that somebody edits
there is compiled again.
"""

import io
import json
import os
import platform
import posixpath
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from uv import find_uv_bin

from prefect_environments.core.build import bytecode_worker as protocol
from prefect_environments.core.build import deflate, tar
from prefect_environments.core.build.archive import NAME_MAX
from prefect_environments.core.build.wheel import Bytecode, Content, Wheel
from prefect_environments.core.errors import BuildError

SOURCE_MAX = 8 * 1024 * 1024
"""Bytes of a source; a larger one, a generated table, gets no bytecode: compiling takes 100 times that memory."""

_WORKERS_MAX = 8
_SECONDS_MAX = 900.0
_KEPT = ("PATH", "HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "UV_PYTHON_INSTALL_DIR", "UV_CACHE_DIR")
_ISOLATED = ("-s", "-S", "-B", "-X", "utf8", "-W", "ignore")
"""No site-packages, no sitecustomize: nothing of the interpreter's user runs. Not -I, which ignores the hash seed."""

_PROBE = (
    "import json, platform, sys, sysconfig; print(json.dumps([platform.python_version(), sys.implementation.name, "
    "sys.implementation.cache_tag, bool(sysconfig.get_config_var('Py_GIL_DISABLED'))]))"
)

_known: dict[str, "Interpreter"] = {}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python on this machine: its path, and what it puts into the names of .pyc files (`cpython-312`)."""

    path: str
    tag: str


def find_interpreter(version: str) -> Interpreter:
    """A CPython of exactly this full version on this machine; nothing is downloaded.

    Looks at the Python that runs this, then where uv finds them: on `PATH`, and those that uv has installed. Raises
    `BuildError` that says what there is, where none is of this version.
    """
    known = _known.get(version)
    if known is not None and Path(known.path).exists():
        return known
    installed: dict[str, str] = {sys.executable: platform.python_version()} if sys.executable else {}
    if version not in installed.values():
        installed |= _installed()
    for path in (path for path, found in installed.items() if found == version):
        if tag := _tag(path, version):
            return _known.setdefault(version, Interpreter(path, tag))
    others = sorted(set(installed.values()) - {version}, key=lambda v: [int(n) for n in v.split(".") if n.isdigit()])
    raise BuildError(
        f"compile_bytecode needs Python {version}, the image's own version, on the machine that builds; here is "
        f"{', '.join(others) or 'none'}. Run the worker with Python {version}, or install it beside "
        f"(uv python install {version}), or choose a base image with another Python, or turn compile_bytecode off"
    )


def installed_versions() -> list[str]:
    """The full versions of the CPythons that uv finds on this machine, each once. Raises `BuildError`."""
    return sorted(set(_installed().values()))


def _installed() -> dict[str, str]:
    """Paths of the CPythons that uv finds here, with their versions."""
    options = ["--only-installed", "--all-versions", "--no-config", "--offline", "--output-format", "json"]
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        done = subprocess.run(
            [find_uv_bin(), "python", "list", *options],
            env={**environment, "UV_PYTHON_DOWNLOADS": "never"},
            capture_output=True,
            check=True,
            timeout=120,
        )
        told = json.loads(done.stdout)
        found = {one["path"]: one["version"] for one in told if one["path"] and one["implementation"] == "cpython"}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise BuildError(
            f"uv cannot tell which Pythons are on this machine ({type(error).__name__}), one of which must compile the "
            "bytecode: run `uv python list` there to see why, or turn compile_bytecode off"
        ) from error
    return found


def _tag(path: str, version: str) -> str:
    """The cache tag of an interpreter; empty if it is of another version or kind than it was said to be."""
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(
            [path, "-I", "-S", "-c", _PROBE], capture_output=True, check=True, timeout=60, cwd="/", env=_environment()
        )
        found, implementation, tag, threaded = json.loads(done.stdout)
        if found == version and implementation == "cpython" and not threaded:
            return str(tag or "")
    return ""


def _environment() -> dict[str, str]:
    """The variables of an interpreter that compiles: none but what its start may need, and a fixed hash seed."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONHASHSEED": "0"}


class Compiler:
    """Compiles sources in processes of the version's interpreter, which live until the end of the `with` block.

    Nothing is started before it is needed. Threads may share it: all of them together keep at most one process for
    each core busy, so a large wheel is compiled by all cores.
    """

    def __init__(self, version: str, *, workers: int | None = None) -> None:
        self.version = version
        self._count = workers or min(_WORKERS_MAX, os.cpu_count() or 1)
        self._lock, self._searching = threading.Lock(), threading.Lock()
        self._interpreter: Interpreter | None = None
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._closed = False
        self._pool = ThreadPoolExecutor(self._count, "bytecode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes, whatever they do; whoever waits for them gets a `BuildError`."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def prepare(self) -> Interpreter:
        """The interpreter; raises `BuildError` where it, or the codec that layers are named after, is missing."""
        with self._searching:
            if self._interpreter is None:
                deflate.check()
                self._interpreter = find_interpreter(self.version)
        return self._interpreter

    def compile(self, source: bytes, path: str) -> bytes | None:
        """The .pyc file of a source that is at `path` in the image, or None for what is not valid Python."""
        interpreter = self.prepare()
        with self._lock:
            if self._closed:
                raise BuildError(f"{path} is not compiled: the build has ended")
            if not self._idle:
                self._idle.append(_Worker(interpreter))
                self._workers += self._idle
            worker = self._idle.pop()
        content = worker.compile(source, path)
        with self._lock:
            self._idle.append(worker)
        return content

    def each(self, work: Callable[[str], None], items: Iterable[str]) -> None:
        """Do `work`, which compiles, for every item, on all cores; raises the first error."""
        for _ in self._pool.map(work, items):
            pass


class _Worker:
    """One process that compiles, and the pipes to it."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._process = subprocess.Popen(
            [interpreter.path, *_ISOLATED, protocol.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            start_new_session=True,  # an interrupt from the keyboard is ours to handle
        )
        self._answers = select.poll()
        self._answers.register(self._stdout, select.POLLIN)

    @property
    def _stdout(self) -> BinaryIO:
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        return self._process.stdout  # type: ignore[return-value]

    def compile(self, source: bytes, path: str) -> bytes | None:
        name = path.encode()
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        try:
            self._process.stdin.write(protocol.REQUEST.pack(tar.MTIME, len(name), len(source)) + name + source)
            self._process.stdin.flush()
            slow = not self._answers.poll(_SECONDS_MAX * 1000)
            status, length = protocol.ANSWER.unpack(b"" if slow else self._stdout.read(protocol.ANSWER.size))
            content = self._stdout.read(length)
        except (OSError, ValueError, protocol.STRUCT_ERROR):
            status, length, content = protocol.NO_MEMORY, 0, b""
        if status == protocol.NO_MEMORY or len(content) != length:
            self.kill()
            raise BuildError(
                f"compiling /{path.lstrip('/')} to bytecode failed: the process that does it ran out of memory, took "
                f"longer than {_SECONDS_MAX:g} seconds or was killed. Give the worker more memory, or turn "
                "compile_bytecode off"
            )
        return content if status == protocol.OK else None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close the pipes, once no thread uses them."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not sent to a dead process
                    pipe.close()


class Spool:
    """Finished .pyc files one after the other in a temporary file. Threads may share it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._end = 0

    def write(self, content: bytes) -> Callable[[], Iterator[bytes]]:
        """Keep `content`; gives what reads it back."""
        with self._lock:
            start = self._end
            self._file.write(content)
            self._file.flush()
            self._end += len(content)
        return lambda: self._read(start, len(content))

    def _read(self, start: int, length: int) -> Iterator[bytes]:
        while length:
            chunk = os.pread(self._file.fileno(), min(length, io.DEFAULT_BUFFER_SIZE * 32), start)
            if not chunk:
                raise OSError("a temporary file is shorter than it was")
            yield chunk
            start, length = start + len(chunk), length - len(chunk)


def compile_wheel(wheel: Wheel, compiler: Compiler, spool: Spool) -> None:
    """Give a wheel the bytecode of its modules. Scripts, which are never imported, get none, and neither do files that
    are not valid Python, as with pip. Raises `BuildError` where compiling itself fails."""
    tag = compiler.prepare().tag
    found: dict[str, Bytecode] = {}

    def work(path: str) -> None:
        compiled = compiler.compile(_source(wheel, wheel.contents[path]), f"/{path}")
        if compiled is not None:
            entry = tar.Entry(cache_path(path, tag), 0o644)
            found[path] = Bytecode(entry, len(compiled), spool.write(compiled))

    compiler.each(work, [path for path in sorted(wheel.contents) if _wanted(path, wheel, tag)])
    wheel.add_bytecode(found)


def compile_folder(folder: Path, image_path: str, compiler: Compiler) -> list[str]:
    """Write the bytecode of all modules in a folder that will be at `image_path`; gives the new files' relative paths.

    For what is installed by others, such as conda's noarch packages. The files must get the time of our layers.
    """
    tag = compiler.prepare().tag
    sources = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.py")) if path.is_file()]
    done: list[str] = []

    def work(path: str) -> None:
        compiled = compiler.compile((folder / path).read_bytes(), posixpath.join(image_path, path))
        if compiled is not None:
            target = folder / cache_path(path, tag)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(compiled)
            done.append(cache_path(path, tag))

    compiler.each(work, [p for p in sources if _has_room(p, tag) and (folder / p).stat().st_size <= SOURCE_MAX])
    return sorted(done)


def cache_path(path: str, tag: str) -> str:
    """Where the bytecode of a module is looked for (PEP 3147)."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, "__pycache__", f"{name.removesuffix('.py')}.{tag}.pyc")


def _wanted(path: str, wheel: Wheel, tag: str) -> bool:
    data = wheel.contents[path].data
    size = len(data) if isinstance(data, bytes) else data.file_size
    cached = posixpath.join(posixpath.dirname(path), "__pycache__")
    module = path.startswith(f"{wheel.site_packages}/") and _has_room(path, tag)
    return module and size <= SOURCE_MAX and cached not in wheel.contents


def _has_room(path: str, tag: str) -> bool:
    name = posixpath.basename(path)
    return (
        name.endswith(".py") and name != ".py" and len(posixpath.basename(cache_path(path, tag)).encode()) <= NAME_MAX
    )


def _source(wheel: Wheel, content: Content) -> bytes:
    data = content.data
    return data if isinstance(data, bytes) else b"".join(chunk for _, chunk in wheel.archive.stream(data))
