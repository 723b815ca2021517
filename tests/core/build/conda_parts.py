"""Small conda packages made in tests, in both formats, member by member so that each can lie."""

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backports import zstd

from prefect_environments.core.lock.model import LockedCondaPackage

PLACEHOLDER = "/home/builder/" + "_h_env_placehold" * 14


@dataclass(frozen=True)
class File:
    """A file of a package: `mode` is `text` or `binary` where the build prefix is in it; `link` makes it a symlink."""

    content: bytes = b""
    executable: bool = False
    mode: str = ""
    link: str = ""
    listed: bool = True


@dataclass(frozen=True)
class Package:
    """What goes into an archive. `members` come as they are, after the files; `info` replaces or adds info files."""

    name: str = "demo"
    version: str = "1.0"
    build: str = "h1_0"
    subdir: str = "linux-64"
    noarch: str | None = None
    depends: Sequence[str] = ()
    files: Mapping[str, "File | bytes"] = field(default_factory=dict)
    entry_points: Sequence[str] = ()
    members: Sequence[tuple[tarfile.TarInfo, bytes]] = ()
    info: Mapping[str, bytes | None] = field(default_factory=dict)
    paths: Sequence[Mapping[str, Any]] = ()
    """More entries of info/paths.json."""

    def write(self, folder: Path, suffix: str = ".conda", **changed: Any) -> tuple[LockedCondaPackage, Path]:
        """The archive, at a place named by its hash, as the cache has it; `changed` fields of the lock may lie."""
        folder.mkdir(parents=True, exist_ok=True)
        content = self.packed(suffix)
        sha256 = hashlib.sha256(content).hexdigest()
        path = folder / sha256
        path.write_bytes(content)
        told = {"name": self.name, "version": self.version, "build": self.build, "subdir": self.subdir}
        told["filename"] = f"{self.name}-{self.version}-{self.build}{suffix}"
        return LockedCondaPackage(**{**told, "sha256": sha256, "size": len(content), **changed}), path

    def packed(self, suffix: str) -> bytes:
        info = [(_member(f"info/{name}", len(data)), data) for name, data in self._info().items() if data is not None]
        files = [_file_member(name, _file(given)) for name, given in self.files.items()] + list(self.members)
        if suffix == ".tar.bz2":
            return _tar([*info, *files], "w:bz2")
        stem = f"{self.name}-{self.version}-{self.build}"
        return zipped(
            {
                "metadata.json": b'{"conda_pkg_format_version": 2}',
                f"pkg-{stem}.tar.zst": zstd.compress(_tar(files, "w:")),
                f"info-{stem}.tar.zst": zstd.compress(_tar(info, "w:")),
            }
        )

    def _info(self) -> dict[str, bytes | None]:
        index: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": 0,
            "depends": list(self.depends),
            "subdir": self.subdir,
            "timestamp": 1700000000000,
            "license": "MIT",
        }
        if self.noarch:
            index["noarch"] = self.noarch
        paths = [_path(name, _file(given)) for name, given in self.files.items() if _file(given).listed]
        found: dict[str, bytes | None] = {
            "index.json": json.dumps(index).encode(),
            "paths.json": json.dumps({"paths": [*paths, *self.paths], "paths_version": 1}).encode(),
        }
        if self.noarch == "python":
            link = {
                "noarch": {"type": "python", "entry_points": list(self.entry_points)},
                "package_metadata_version": 1,
            }
            found["link.json"] = json.dumps(link).encode()
        return {**found, **self.info}


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip archive with these stored members, as a `.conda` file is."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
    return out.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """A member that is no file: a device, a link."""
    info = _member(name, 0)
    info.type, info.linkname = kind, link
    return info, b""


def _member(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, mode, 1_700_000_000
    return info


def _file(given: "File | bytes") -> File:
    return given if isinstance(given, File) else File(given)


def _file_member(name: str, file: File) -> tuple[tarfile.TarInfo, bytes]:
    info = _member(name, len(file.content), 0o755 if file.executable else 0o644)
    if file.link:
        info.type, info.linkname = tarfile.SYMTYPE, file.link
    return info, file.content


def _path(name: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "_path": name,
        "path_type": "softlink" if file.link else "hardlink",
        "sha256": hashlib.sha256(file.content).hexdigest(),
        "size_in_bytes": len(file.content),
    }
    return entry | ({"prefix_placeholder": PLACEHOLDER, "file_mode": file.mode} if file.mode else {})


def _tar(members: Sequence[tuple[tarfile.TarInfo, bytes]], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
