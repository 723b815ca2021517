"""What a base image offers: its interpreter and its libc, found in its config and layers. Nothing of it is run."""

import asyncio
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import BadGzipFile
from pathlib import Path

from zlib_ng import gzip_ng, zlib_ng

from prefect_environments.core import files
from prefect_environments.core.build.base import BaseImage
from prefect_environments.core.build.recipe import PREFIX
from prefect_environments.core.errors import BaseImageError, ImageError
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.oci.descriptor import LAYER_ZSTD, Descriptor
from prefect_environments.core.oci.image import oci_layer
from prefect_environments.core.oci.validate import check_end

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_READ_MAX = 256 * 1024 * 1024  # a larger interpreter or libc is none
_TAKEN_MAX = 64 * 1024 * 1024
_LINKS_MAX = 16

_GZIP = b"\x1f\x8b"
_UNSOUND = (tarfile.TarError, zlib.error, zlib_ng.error, lzma.LZMAError, BadGzipFile, EOFError, ValueError)

_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_LIBPYTHON = re.compile(r"libpython3\.\d+\.so\.1\.0")
_GLIBC = re.compile(r"libc(\.so\.6|-2\.\d+\.so)")
_MUSL = re.compile(r"ld-musl-\w+\.so\.1")
_LIBC_FOLDER = re.compile(r"(usr/)?lib(64)?(/(x86_64|aarch64)-linux-(gnu|musl))?")
_GLIBC_VERSION = re.compile(rb"GNU C Library [^\n]{0,80}release version (\d+\.\d+)")
_MUSL_VERSION = re.compile(rb"\0(1\.\d+)\.\d+(?=\0)")
_PYTHON_VERSION = re.compile(rb"\0(3\.[12]?\d\.\d+)[+a-z0-9]*(?=\0)")  # not SQLite's, which is 3.30 and more


@dataclass(slots=True)
class Facts:
    """What was seen so far, from the top layer down: an upper layer's file hides a lower one's."""

    links: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """Version strings found in files, by path: interpreters, their shared library."""
    libc: dict[str, tuple[str, str]] = field(default_factory=dict)
    loaders: dict[str, str] = field(default_factory=dict)
    """Which libc an interpreter is linked with, by the interpreter's path."""
    wanted: re.Pattern[str] | None = None
    """Paths of other files to take; a match of their path from its beginning to its end."""
    files: dict[str, bytes] = field(default_factory=dict)
    """The files that were wanted, by path; empty for what is a link or larger than `_TAKEN_MAX`."""
    hidden: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)

    def is_hidden(self, path: str) -> bool:
        """Whether an upper layer has replaced or deleted the path or a folder above it."""
        if path in self.links or path in self.versions or path in self.libc or path in self.hidden:
            return True
        while path:
            path = posixpath.dirname(path)
            if path in self.hidden or path in self.opaque:  # the root is "", and can be opaque
                return True
        return False


async def inspect_base(base: BaseImage, platform: Platform, scratch: Path) -> Target:
    """Find interpreter and libc of a base image, by its config and a look through its layers from the top.

    Where there is no Python 3 on its `PATH`, `python` and `interpreter` of the answer are empty: `check_interpreter`
    tells whether packages can be installed on it. Raises `BaseImageError` where there is no libc that is known.
    """
    declared = _declared_python(base.config.environment)
    facts = Facts()
    for layer in reversed(base.manifest.layers):
        await look_through(base, oci_layer(layer), facts, scratch)
        if declared and _find_libc(facts, declared[1].lstrip("/")):
            break
    if declared and _follow(declared[1].lstrip("/"), facts.links) not in facts.versions:
        declared = None  # others set the variable too, and have their Python elsewhere
    python, interpreter = declared or _find_python(facts, base)
    found = _find_libc(facts, interpreter.lstrip("/")) or next(iter(facts.libc.values()), None)
    if found is None:
        raise BaseImageError(
            f"the base image {base.locked.name} has neither glibc nor musl; packages' wheels need one of them"
        )
    return Target(python, interpreter, *found, platform)


def check_interpreter(base: BaseImage, target: Target) -> None:
    """Raise `BaseImageError` where the base's own Python cannot carry the environment."""
    if not target.python:
        folders = base.config.environment.get("PATH", DEFAULT_PATH)
        raise BaseImageError(
            f"the base image {base.locked.name} has no Python 3 on its PATH ({folders}). Choose a base with Python "
            "(such as python:3.12-slim), or one that sets PATH to its Python, or let conda bring one (python=3.12 "
            "among the conda dependencies, with a channel)"
        )
    if target.interpreter.startswith(f"{PREFIX}/"):
        raise BaseImageError(
            f"the base image {base.locked.name} has its Python at {target.interpreter}, where the environment will be. "
            f"Choose a base whose Python is outside of {PREFIX}"
        )


def _find_libc(facts: Facts, interpreter: str) -> tuple[str, str] | None:
    """The libc that the interpreter is linked with, the one of the uppermost layer, rather from the system's folders
    than a compiler's own; None while the interpreter or its libc was not seen."""
    wanted = facts.loaders.get(_follow(interpreter, facts.links))
    found = [path for path, (kind, _) in facts.libc.items() if kind == wanted]
    found.sort(key=lambda path: _LIBC_FOLDER.fullmatch(posixpath.dirname(path)) is None)
    return facts.libc[found[0]] if found else None


def _declared_python(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """What the official `python` images say of themselves, and where they have it."""
    version = environment.get("PYTHON_VERSION", "")
    match = re.fullmatch(r"(3\.\d+)\.\d+", version)
    if match is None or "/usr/local/bin" not in environment.get("PATH", "").split(":"):
        return None
    return version, f"/usr/local/bin/python{match[1]}"


async def look_through(base: BaseImage, layer: Descriptor, facts: Facts, scratch: Path) -> None:
    """Take what counts from one layer; give the layers from the top down. Raises `BaseImageError`, `ImageError`."""
    if layer.media_type == LAYER_ZSTD:
        raise BaseImageError(
            f"the base image {base.locked.name} has zstd layers, which cannot be looked through for its Python; "
            "use a base with gzip layers, such as one from `skopeo copy --dest-compress-format gzip`"
        )
    with files.storage("looking through a base image", scratch), files.temporary_file(scratch) as file:
        async for chunk in base.repository.read_blob(layer):
            await asyncio.to_thread(file.write, chunk)
        file.flush()
        try:
            await asyncio.to_thread(_scan, Path(file.name), facts)
        except _UNSOUND as error:  # type: ignore[misc]  # zlib_ng's stub says that its error is an instance
            raise ImageError(f"layer {layer.digest} of {base.locked.name} is not a tar archive ({error})") from error


def _scan(path: Path, facts: Facts) -> None:
    """Take what counts from one layer; its deletions count for the layers below it only."""
    hidden: set[str] = set()
    opaque: set[str] = set()
    with _opened(path) as archive:
        for member in archive:
            name = posixpath.normpath(member.name).lstrip("/")
            folder, base = posixpath.split(name)
            if base == ".wh..wh..opq":
                opaque.add(folder)
            elif base.startswith(".wh."):
                hidden.add(posixpath.join(folder, base.removeprefix(".wh.")))
            elif not facts.is_hidden(name):
                _note(archive, member, name, facts)
                if not member.isdir():
                    hidden.add(name)
        check_end(archive)
    facts.hidden |= hidden
    facts.opaque |= opaque


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A layer's tar, whatever it is packed with; gzip, which nearly all are, by the faster library."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    if not packed:
        with tarfile.open(path, "r:*") as archive:
            yield archive
        return
    unpacked = gzip_ng.GzipNGFile(path, "rb")  # type: ignore[no-untyped-call]
    with unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
        yield archive


def _note(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, facts: Facts) -> None:
    base = posixpath.basename(name)
    if facts.wanted and not member.isdir() and facts.wanted.fullmatch(name):
        readable = member.isreg() and member.size <= _TAKEN_MAX
        facts.files[name] = _read(archive, member) if readable else b""
    if member.issym():
        target = posixpath.join("/", posixpath.dirname(name), member.linkname)
        facts.links[name] = posixpath.normpath(target).lstrip("/")
    elif member.islnk():
        if _PYTHON.fullmatch(base):
            facts.links[name] = posixpath.normpath(posixpath.join("/", member.linkname)).lstrip("/")
    elif member.isreg() and member.size <= _READ_MAX:
        if _PYTHON.fullmatch(base) or _LIBPYTHON.fullmatch(base):
            content = _read(archive, member)
            facts.versions[name] = _search(content, _PYTHON_VERSION, _minor_of(base))
            facts.loaders[name] = "musl" if b"/ld-musl-" in content else "glibc"
        elif _GLIBC.fullmatch(base):
            if version := _search(_read(archive, member), _GLIBC_VERSION):
                facts.libc[name] = ("glibc", version)
        elif _MUSL.fullmatch(base) and (version := _search(_read(archive, member), _MUSL_VERSION)):
            facts.libc[name] = ("musl", version)


def _minor_of(base: str) -> Callable[[str], bool]:
    match = re.search(r"3\.\d+", base)
    return lambda version: match is None or version.startswith(f"{match[0]}.")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file is not None else b""


def _search(content: bytes, pattern: re.Pattern[bytes], accept: Callable[[str], bool] = lambda _: True) -> str:
    return next((v for m in pattern.finditer(content) if accept(v := m[1].decode())), "")


def _find_python(facts: Facts, base: BaseImage) -> tuple[str, str]:
    """The full version and path of what `python3` or `python` means on the image's `PATH`; empty without one."""
    folders = base.config.environment.get("PATH", DEFAULT_PATH).split(":")
    for folder in folders:
        for name in ("python3", "python"):
            path = _follow(posixpath.join(folder, name).lstrip("/"), facts.links)
            if path in facts.versions and (version := _version(path, facts)):
                return version, f"/{path}"
    newest = sorted(
        (tuple(map(int, v.split("."))), p) for p in facts.versions if _on_path(p, folders) and (v := _version(p, facts))
    )
    if newest:
        numbers, path = newest[-1]
        return ".".join(map(str, numbers)), f"/{path}"
    return "", ""


def _on_path(path: str, folders: list[str]) -> bool:
    return posixpath.dirname(f"/{path}") in folders and _PYTHON.fullmatch(posixpath.basename(path)) is not None


def _follow(path: str, links: Mapping[str, str]) -> str:
    """The path behind all links, those of folders on the way included; as far as it gets in `_LINKS_MAX` steps."""
    for _ in range(_LINKS_MAX):
        parts = path.split("/")
        ahead = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        link = next((step for step in ahead if step in links), None)
        if link is None:
            break
        path = posixpath.join(links[link], path[len(link) :].lstrip("/")).rstrip("/")
    return path


def _version(path: str, facts: Facts) -> str:
    """The version in the binary itself, else in the shared library of its minor."""
    if facts.versions[path]:
        return facts.versions[path]
    minor = re.search(r"3\.\d+", posixpath.basename(path))
    for name, version in facts.versions.items():
        if version and _LIBPYTHON.fullmatch(posixpath.basename(name)) and minor and minor[0] in name:
            return version
    return ""
