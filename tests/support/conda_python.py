"""Debian's Python and pip as conda packages.

Debian's interpreter is made relocatable: the libraries that it needs come along, and it finds them by a DT_RPATH
that holds the prefix. So it starts only where the prefix in its binary has been replaced rightly.
"""

import hashlib
import io
import json
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from examples.base import make_base as maker
from tests.support.base import base_image
from tests.support.channel import PLACEHOLDER, CondaPackage, Entry, File, as_file
from tests.support.session import CACHE, locked

_RECIPE = "1"
"""Changes when the same base image would give another package."""

_LEFT_OUT = re.compile(
    r"(test|idlelib|ensurepip|lib2to3|tkinter|turtledemo|pydoc_data|config-[^/]*|__pycache__|dist-packages)/|.*/(__pycache__|tests?)/"
    r"|lib-dynload/(_test|_xx|xx|_dbm|_curses|nis|ossaudiodev|readline).*|sitecustomize\.py|EXTERNALLY-MANAGED"
)
_GLIBC = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|anl|nsl|mvec|crypt))\.so\.\d+")


@dataclass(frozen=True)
class BuiltPackage:
    """A package whose archive is kept between sessions; `package` has its record, without its files."""

    package: CondaPackage
    archive: Path


def debian_python() -> BuiltPackage:
    """Debian's Python without its tests, IDLE and ensurepip."""
    return _kept("python", _python_package)


def debian_pip() -> BuiltPackage:
    """Debian's pip, unchanged, as a noarch Python package."""
    return _kept("pip", _pip_package)


def _kept(name: str, make: Callable[[Mapping[str, Entry]], CondaPackage]) -> BuiltPackage:
    """What `make` makes of Debian's files, made once for each state of them."""
    base = base_image((*maker.NO_PYTHON, "python3", "python3-pip-whl"))
    key = hashlib.sha256(f"{_RECIPE} {base.digest}".encode()).hexdigest()[:16]
    archive = CACHE / f"conda-{name}-{key}.conda"
    known = archive.with_suffix(".json")
    with locked(archive.with_suffix(".lock")):
        if not known.exists():
            package = make(_root_files(base.folder))
            archive.write_bytes(package.to_bytes())
            told = {"name": name, "version": package.version, "build": package.build, "noarch": package.noarch}
            known.write_text(json.dumps(told | {"depends": package.depends}))
    told = json.loads(known.read_text())
    return BuiltPackage(CondaPackage(**told | {"depends": tuple(told["depends"])}), archive)


def _root_files(layout: Path) -> dict[str, Entry]:
    """The files and links of the one layer of an image layout."""
    index = json.loads((layout / "index.json").read_text())
    blobs = layout / "blobs" / "sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"].partition(":")[2]).read_text())
    found: dict[str, Entry] = {}
    with tarfile.open(blobs / manifest["layers"][0]["digest"].partition(":")[2]) as layer:
        for member in layer:
            if member.issym():
                found[member.name] = ("symlink", member.linkname)
            elif content := layer.extractfile(member) if member.isfile() else None:
                found[member.name] = File(content.read(), member.mode & 0o777)
    return found


def _pip_package(root: Mapping[str, Entry]) -> CondaPackage:
    (wheel,) = (path for path in root if path.startswith("usr/share/python-wheels/pip-"))
    content = root[wheel]
    assert isinstance(content, File)
    with zipfile.ZipFile(io.BytesIO(content.content)) as zipped:
        modules = {f"site-packages/{name}": zipped.read(name) for name in zipped.namelist() if not name.endswith("/")}
    return CondaPackage(
        "pip",
        PurePosixPath(wheel).name.split("-")[1],
        "py_0",
        depends=("python >=3.8",),
        files=modules,
        noarch="python",
        entry_points=("pip = pip._internal.cli.main:main", "pip3 = pip._internal.cli.main:main"),
    )


def _python_package(root: Mapping[str, Entry]) -> CondaPackage:
    name = next(path for path in root if re.fullmatch(r"usr/bin/python3\.\d+", path))
    minor = name.rpartition("python")[2]
    binary = root[name]
    assert isinstance(binary, File)
    stdlib, files = f"lib/python{minor}/", dict[str, bytes | File]()
    for path, entry in root.items():
        inner = path.removeprefix(f"usr/{stdlib}")
        if inner == path or _LEFT_OUT.match(inner) or not isinstance(entry, File):
            continue
        files[stdlib + inner] = _as_upstream(inner, entry)
    needed = _libraries(root, [binary, *map(as_file, files.values())])
    files |= {f"lib/{soname}": File(library.content, 0o755) for soname, library in needed.items()}
    frozen = binary.content.replace(b"dist-packages", b"site-packages")  # the module site is in the program itself
    files[f"bin/python{minor}"] = File(with_rpath(frozen, f"{PLACEHOLDER}/lib"), 0o755, "binary")
    files[f"bin/pydoc{minor}"] = File(
        f"#!{PLACEHOLDER}/bin/python{minor}\nimport pydoc\n\npydoc.cli()\n".encode(), 0o755, "text"
    )
    files[stdlib + "site-packages/README.txt"] = b"Third-party packages go here.\n"
    links = {f"bin/{link}": f"python{minor}" for link in ("python", "python3")}
    version = _version(binary.content, minor)
    return CondaPackage("python", version, "h0_0_cpython", files=files, links=links)


def _as_upstream(path: str, file: File) -> File:
    """A file of Debian's standard library as Python itself has it: `site-packages`, and the prefix it is built for."""
    if path in ("site.py", "sysconfig.py", "sysconfig/__init__.py"):
        text = file.content.decode().replace("dist-packages", "site-packages")
        return File(text.replace("base}/local", "base}").encode(), file.mode)
    if path.startswith("_sysconfigdata") and path.endswith(".py"):
        text = re.sub(r"(?<=')/usr(?=['/])", PLACEHOLDER, file.content.decode())
        return File(text.encode(), file.mode, "text")
    return file


def _version(binary: bytes, minor: str) -> str:
    """The full version, which the interpreter has in its data: `3.11.2` (or `3.11.2+`)."""
    found = re.search(rf"\0({re.escape(minor)}\.\d+)\+?\0".encode(), binary)
    assert found is not None
    return found.group(1).decode()


def _libraries(root: Mapping[str, Entry], files: Iterable[File]) -> dict[str, File]:
    """What the ELF `files` load, by soname, and so on, except glibc, which every image has."""
    by_soname = {PurePosixPath(path).name: path for path in root if ".so." in path and "/lib" in f"/{path}"}
    found: dict[str, File] = {}
    waiting = [file for file in files if file.content.startswith(b"\x7fELF")]
    while waiting:
        for soname in _Elf(waiting.pop().content).needed():
            if soname in found or _GLIBC.fullmatch(soname):
                continue
            path = by_soname[soname]
            while isinstance(entry := root[path], tuple):
                path = str(PurePosixPath(path).parent / entry[1])
            found[soname] = entry
            waiting.append(entry)
    return found


class _Elf:
    """The dynamic section of a 64-bit little-endian ELF file (System V ABI, chapter 5)."""

    NULL, NEEDED, STRTAB, RPATH = 0, 1, 5, 15

    def __init__(self, data: bytes) -> None:
        self.data = data
        offset, size, count = struct.unpack_from("<Q14xHH", data, 32)[0], *struct.unpack_from("<HH", data, 54)
        headers = [struct.unpack_from("<IIQQQQ", data, offset + size * number) for number in range(count)]
        self.loads = [(header[3], header[2], header[5]) for header in headers if header[0] == 1]
        self.dynamic, length = next((header[2], header[5]) for header in headers if header[0] == 2)
        self.entries = [struct.unpack_from("<QQ", data, self.dynamic + 16 * number) for number in range(length // 16)]

    def needed(self) -> list[str]:
        table = self._offset(self.strtab)
        names = [table + value for tag, value in self.entries if tag == self.NEEDED]
        return [self.data[start : self.data.index(b"\0", start)].decode() for start in names]

    @property
    def strtab(self) -> int:
        return int(next(value for tag, value in self.entries if tag == self.STRTAB))

    def _offset(self, address: int) -> int:
        return int(next(at + address - start for start, at, size in self.loads if start <= address < start + size))

    def address(self, offset: int) -> int:
        return int(next(start + offset - at for start, at, size in self.loads if at <= offset < at + size))


def with_rpath(binary: bytes, rpath: str) -> bytes:
    """An ELF program that looks for its libraries in `rpath`, in place of the longest of its docstrings.

    The linker leaves empty entries at the end of the dynamic section; one of them becomes DT_RPATH.
    """
    elf = _Elf(binary)
    text = max(re.finditer(rb"(?<=\0)[\x20-\x7e\n]{300,}(?=\0)", binary), key=lambda found: found.end() - found.start())
    spare = next(number for number, (tag, _) in enumerate(elf.entries) if tag == elf.NULL)
    assert spare + 1 < len(elf.entries), "no spare entry in the dynamic section"
    changed = bytearray(binary)
    changed[text.start() : text.end()] = rpath.encode().ljust(text.end() - text.start(), b"\0")
    value = elf.address(text.start()) - elf.strtab
    struct.pack_into("<QQ", changed, elf.dynamic + 16 * spare, elf.RPATH, value)
    return bytes(changed)
