"""A conda channel in a folder: packages of both formats, repodata, and a real, relocatable Python.

Equal arguments give equal bytes. `standard_channel` has one package for each thing that packages do (prefixes in text
and in binaries, links, entry points, clobbering, a link script, virtual packages); `synthetic` makes many at once.
"""

import base64
import bz2
import hashlib
import io
import json
import platform
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

PLACEHOLDER = "/build/placeholder" + "_placehold" * 23 + "_pl_pla"
"""The prefix that files are "built" with: 255 characters, as long as conda-build's, so that any prefix fits in."""

SUBDIR = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}.get(platform.machine(), "linux-64")
"""The subdir of packages that this machine can run."""

TIMESTAMP = 1_700_000_000_000
"""Milliseconds since 1970: when all packages are said to be built."""


@dataclass(frozen=True)
class File:
    """A package's file. `prefix` says how `PLACEHOLDER` stands in it: as `text`, in a `binary`, or not at all."""

    content: bytes
    mode: int = 0o644
    prefix: Literal["", "text", "binary"] = ""


@dataclass(frozen=True)
class CondaPackage:
    """What a package holds. `files` by path in the prefix; `links` are symbolic, `hard_links` name another file.

    A noarch Python package has its modules below `site-packages/`; `entry_points` are `command = module:function`.
    """

    name: str
    version: str = "1.0"
    build: str = "0"
    subdir: str = SUBDIR
    depends: tuple[str, ...] = ()
    files: Mapping[str, bytes | File] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    hard_links: Mapping[str, str] = field(default_factory=dict)
    noarch: Literal["", "python", "generic"] = ""
    entry_points: tuple[str, ...] = ()
    constrains: tuple[str, ...] = ()
    build_number: int = 0
    timestamp: int = TIMESTAMP
    extension: Literal[".conda", ".tar.bz2"] = ".conda"

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.version}-{self.build}"

    @property
    def folder(self) -> str:
        return "noarch" if self.noarch else self.subdir

    def index(self) -> dict[str, Any]:
        """`info/index.json`, which is the package's record in the repodata too."""
        found: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": self.build_number,
            "depends": list(self.depends),
            "constrains": list(self.constrains),
            "license": "MIT",
            "subdir": self.folder,
            "timestamp": self.timestamp,
        }
        return found | ({"noarch": self.noarch} if self.noarch else {})

    def to_bytes(self) -> bytes:
        """The package's archive."""
        content, info = self._content(), self._info()
        if self.extension == ".tar.bz2":
            return bz2.compress(_tar(info | content))
        archive = io.BytesIO()
        parts = {
            "metadata.json": b'{"conda_pkg_format_version": 2}',
            f"pkg-{self.stem}.tar.zst": _zstd(_tar(content)),
            f"info-{self.stem}.tar.zst": _zstd(_tar(info)),
        }
        with zipfile.ZipFile(archive, "w") as zipped:
            for name, data in parts.items():
                zipped.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
        return archive.getvalue()

    def _content(self) -> dict[str, "Entry"]:
        found: dict[str, Entry] = {path: as_file(file) for path, file in self.files.items()}
        found |= {path: ("symlink", target) for path, target in self.links.items()}
        return found | {path: ("hardlink", target) for path, target in self.hard_links.items()}

    def _info(self) -> dict[str, "Entry"]:
        paths = [self._path(path) for path in sorted({*self.files, *self.links, *self.hard_links})]
        documents: dict[str, Any] = {
            "about.json": {"summary": f"{self.name} for tests"},
            "index.json": self.index(),
            "paths.json": {"paths": paths, "paths_version": 1},
        }
        if self.noarch == "python":
            noarch = {"type": "python", "entry_points": list(self.entry_points)}
            documents["link.json"] = {"noarch": noarch, "package_metadata_version": 1}
        found: dict[str, Entry] = {f"info/{name}": File(_json(value)) for name, value in documents.items()}
        return found | {"info/files": File("".join(f"{path['_path']}\n" for path in paths).encode())}

    def _path(self, path: str) -> dict[str, Any]:
        if path in self.links:
            empty = hashlib.sha256(b"").hexdigest()
            return {"_path": path, "path_type": "softlink", "sha256": empty, "size_in_bytes": 0}
        file = as_file(self.files[self.hard_links.get(path, path)])
        sha256 = hashlib.sha256(file.content).hexdigest()
        found = {"_path": path, "path_type": "hardlink", "sha256": sha256, "size_in_bytes": len(file.content)}
        return found | ({"prefix_placeholder": PLACEHOLDER, "file_mode": file.prefix} if file.prefix else {})


class Channel:
    """A channel in `folder`. Its repodata is complete after each `add`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._repodata: dict[str, dict[str, Any]] = {}
        self._write({SUBDIR, "noarch"})

    @property
    def url(self) -> str:
        return self.folder.absolute().as_uri()

    def add(self, *packages: CondaPackage, **record: Any) -> tuple[Path, ...]:
        """Write the packages; gives their files. `record` changes their repodata: `sha256=None` leaves it out."""
        paths = tuple(self._add(package, package.to_bytes(), record) for package in packages)
        self._write({*self._repodata})
        return paths

    def add_archive(self, package: CondaPackage, archive: bytes, **record: Any) -> Path:
        """Write a package whose bytes are known."""
        path = self._add(package, archive, record)
        self._write({*self._repodata})
        return path

    def _add(self, package: CondaPackage, archive: bytes, record: Mapping[str, Any]) -> Path:
        found = package.index() | {
            "md5": hashlib.md5(archive, usedforsecurity=False).hexdigest(),
            "sha256": hashlib.sha256(archive).hexdigest(),
            "size": len(archive),
        }
        path = self.folder / package.folder / f"{package.stem}{package.extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive)
        kind = "packages.conda" if package.extension == ".conda" else "packages"
        listed = {key: value for key, value in {**found, **record}.items() if value is not None}
        self._repodata.setdefault(package.folder, {}).setdefault(kind, {})[path.name] = listed
        return path

    def _write(self, subdirs: Iterable[str]) -> None:
        for subdir in subdirs:
            document: dict[str, Any] = {
                "info": {"subdir": subdir},
                "packages": {},
                "packages.conda": {},
                "repodata_version": 1,
            }
            path = self.folder / subdir / "repodata.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_json(document | self._repodata.get(subdir, {})))


@dataclass
class Server:
    """A running server. `requests` has the path of each request that was let in, `refused` of each that was not, and
    `authorizations` what every request carried; `asked` is set by the first one."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(
    folder: Path, *, auth: tuple[str, str] | None = None, redirect: str = "", hang: bool = False
) -> Iterator[Server]:
    """Serve a folder of channels on 127.0.0.1. `auth` is what every request must carry; with `redirect`, every path
    leads to that address; with `hang`, requests get no answer until the end."""
    wanted = "Basic " + base64.b64encode(":".join(auth).encode()).decode() if auth else None
    server, ended = Server(), threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, directory=str(folder), **options)

        def send_head(self) -> Any:
            given = self.headers.get("Authorization")
            server.authorizations.append(given)
            (server.requests if wanted in (None, given) else server.refused).append(self.path)
            server.asked.set()
            if hang:
                ended.wait()
            if redirect or wanted not in (None, given):
                self.send_response(302 if redirect else 401)
                self.send_header(
                    "Location" if redirect else "WWW-Authenticate", redirect + self.path if redirect else "Basic"
                )
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            return super().send_head()

        def log_message(self, format: str, *arguments: object) -> None:
            del format, arguments

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def standard_channel(folder: Path) -> Channel:
    """A channel with a real `python` and `pip`, and a package for each thing that packages do.

    `greeter` (noarch Python, entry point `greet`, depends on the noarch generic `datafiles`); `native` (Python package
    of one Python minor); `prefixed` (.tar.bz2, prefixes as text and in a binary, symbolic and hard links);
    `clobber-a` and `clobber-b` (one file twice); `linkscript` (a post-link script); `libold` and `libnew` (__glibc
    >=2.17 and >=99); `cudalib` (__cuda >=12); `numlib` in three versions and several builds.
    """
    from tests.support.conda_python import debian_pip, debian_python

    channel = Channel(folder)
    python = debian_python()
    for built in (python, debian_pip()):
        channel.add_archive(built.package, built.archive.read_bytes())
    channel.add(*example_packages(python.package.version))
    return channel


def example_packages(python: str) -> tuple[CondaPackage, ...]:
    """The packages of `standard_channel` except `python` and `pip`, for the Python version `python`."""
    major, minor = (int(part) for part in python.split(".")[:2])
    clobbered = "share/clobber/shared.txt"
    binary = b"\x7fELF\0\0" + f"{PLACEHOLDER}/lib/x.so".encode() + b"\0" * 9 + f"{PLACEHOLDER}/share\0END".encode()
    return (
        CondaPackage("datafiles", files={"share/datafiles/data.txt": b"data\n"}, noarch="generic"),
        CondaPackage(
            "greeter",
            "1.2",
            "py_0",
            depends=("python >=3.8", "datafiles"),
            files={
                "site-packages/greeter/__init__.py": b'def main():\n    print("hello from greeter")\n',
                **dist_info("greeter", "1.2"),
            },
            noarch="python",
            entry_points=("greet = greeter:main",),
        ),
        CondaPackage(
            "native",
            "0.5",
            f"py{major}{minor}_0",
            depends=(f"python >={major}.{minor},<{major}.{minor + 1}.0a0",),
            files={
                f"lib/python{major}.{minor}/{path}": content
                for path, content in {"site-packages/native.py": b"ANSWER = 42\n", **dist_info("native", "0.5")}.items()
            },
        ),
        CondaPackage(
            "prefixed",
            "2.0",
            "h1_0",
            files={
                "bin/prefixed": File(f"#!{PLACEHOLDER}/bin/python\nprint('{PLACEHOLDER}')\n".encode(), 0o755, "text"),
                "lib/pkgconfig/prefixed.pc": File(f"prefix={PLACEHOLDER}\n".encode(), prefix="text"),
                "lib/libprefixed.so.1.0": File(binary, 0o755, "binary"),
                "share/prefixed/one.txt": b"linked\n",
            },
            links={"lib/libprefixed.so": "libprefixed.so.1", "lib/libprefixed.so.1": "libprefixed.so.1.0"},
            hard_links={"share/prefixed/two.txt": "share/prefixed/one.txt"},
            extension=".tar.bz2",
        ),
        CondaPackage("clobber-a", files={clobbered: b"from clobber-a\n", "share/clobber/a.txt": b"a\n"}),
        CondaPackage("clobber-b", files={clobbered: b"from clobber-b\n", "share/clobber/b.txt": b"b\n"}),
        CondaPackage(
            "linkscript",
            files={
                "bin/.linkscript-post-link.sh": File(b'#!/bin/sh\ntouch "$PREFIX/post-link-ran"\n', 0o755),
                "share/linkscript.txt": b"linkscript\n",
            },
        ),
        CondaPackage("libold", depends=("__glibc >=2.17",), files={"lib/libold.txt": b"old\n"}),
        CondaPackage("libnew", depends=("__glibc >=99",), files={"lib/libnew.txt": b"new\n"}),
        CondaPackage("cudalib", depends=("__cuda >=12",), files={"lib/cudalib.txt": b"cuda\n"}),
        CondaPackage("numlib", "1.0", "a_0", files={"lib/numlib.txt": b"1.0 a\n"}),
        CondaPackage("numlib", "1.0", "a_1", build_number=1, files={"lib/numlib.txt": b"1.0 a 1\n"}),
        CondaPackage("numlib", "1.0", "b_0", depends=("libold",), files={"lib/numlib.txt": b"1.0 b\n"}),
        CondaPackage("numlib", "1.1", "a_0", files={"lib/numlib.txt": b"1.1\n"}, extension=".tar.bz2"),
        CondaPackage("numlib", "2.0", "a_0", files={"lib/numlib.txt": b"2.0\n"}),
    )


def synthetic(count: int, *, size: int = 20_000, python: bool = True) -> tuple[CondaPackage, ...]:
    """`count` packages `synth-000` …, each with a few files of `size` bytes in all, which no compression shrinks.

    Each depends on the one before it; with `python`, every second one is a noarch Python package.
    """
    made = []
    for number in range(count):
        name = f"synth-{number:03}"
        data = hashlib.shake_256(name.encode()).digest(size)
        modular = python and number % 2 == 1
        module = name.replace("-", "_")
        files = {f"share/{name}/{part}.bin": data[part::4] for part in range(4)}
        if modular:
            files = {f"site-packages/{module}/{part}.bin": data[part::4] for part in range(4)}
            files |= {f"site-packages/{module}/__init__.py": f"NUMBER = {number}\n".encode(), **dist_info(name, "1.0")}
        before = (f"synth-{number - 1:03}",) if number else ()
        depends = (*before, "python >=3.8") if modular else before
        made.append(CondaPackage(name, depends=depends, files=files, noarch="python" if modular else ""))
    return tuple(made)


def dist_info(name: str, version: str) -> dict[str, bytes]:
    """The metadata that an installed Python package has, below `site-packages`."""
    folder = f"site-packages/{name.replace('-', '_')}-{version}.dist-info"
    return {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{folder}/INSTALLER": b"conda\n",
    }


Entry = File | tuple[str, str]


def as_file(content: bytes | File) -> File:
    return content if isinstance(content, File) else File(content)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _tar(entries: Mapping[str, Entry]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(entries, key=lambda path: (_kind(entries[path]) == "hardlink", path)):
            entry, value = tarfile.TarInfo(path), entries[path]
            entry.mtime = TIMESTAMP // 1000
            if isinstance(value, File):
                entry.size, entry.mode = len(value.content), value.mode
                archive.addfile(entry, io.BytesIO(value.content))
            else:
                entry.type = tarfile.SYMTYPE if value[0] == "symlink" else tarfile.LNKTYPE
                entry.linkname = value[1]
                archive.addfile(entry)
    return raw.getvalue()


def _kind(entry: Entry) -> str:
    return "file" if isinstance(entry, File) else entry[0]


def _zstd(data: bytes) -> bytes:
    """A Zstandard frame of raw blocks (RFC 8878, 3.1.1): valid, not compressed, needs no library."""
    frame = [struct.pack("<IBQ", 0xFD2FB528, 0xE0, len(data))]
    limit = 128 * 1024
    for start in range(0, len(data) or 1, limit):
        block = data[start : start + limit]
        frame += [struct.pack("<I", (start + limit >= len(data)) | len(block) << 3)[:3], block]
    return b"".join(frame)
