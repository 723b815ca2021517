"""Reading the resolver's own `pylock.toml` (PEP 751): every file of every package, before one is chosen.

Unknown keys are ignored; whatever is malformed is a `ResolveError`."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from packaging.markers import InvalidMarker, Marker
from packaging.utils import canonicalize_name

from prefect_environments.core.errors import ResolveError

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A wheel that could be taken. `url` is as the index gave it: clean it before it is stored."""

    filename: str
    url: str
    sha256: str | None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class SourcePackage:
    """Sources: an sdist (with `sha256`), a git commit (with `commit`) or a local directory.

    `url` is an `https:`, `git` or `file:` address. `version` is `None` where only a build tells it.
    """

    name: str
    url: str
    version: str | None = None
    sha256: str | None = None
    commit: str | None = None
    subdirectory: str | None = None

    @property
    def is_directory(self) -> bool:
        return self.sha256 is None and self.commit is None

    def __str__(self) -> str:
        return f"{self.name} {self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class ResolvedPackage:
    """A package of the document with all its files."""

    name: str
    version: str | None
    marker: Marker | None
    wheels: tuple[WheelFile, ...]
    source: SourcePackage | None


def read(text: str, folder: Path) -> tuple[ResolvedPackage, ...]:
    """The packages of a `pylock.toml`; relative paths in it are relative to `folder`."""
    try:
        packages = tomllib.loads(text).get("packages", [])
        return tuple(_package(table, folder) for table in packages)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, ValueError, InvalidMarker) as error:
        raise ResolveError(
            f"the resolver's lock cannot be read: {error!r:.200}; report it with the version of uv"
        ) from error


def _package(table: dict[str, Any], folder: Path) -> ResolvedPackage:
    name, version = canonicalize_name(_string(table["name"])), _optional(table, "version")
    marker = Marker(_string(table["marker"])) if "marker" in table else None
    wheels = [_wheel(entry, folder) for entry in table.get("wheels", [])]
    source = None
    if (archive := table.get("archive")) is not None:
        file = _wheel(archive, folder)
        if file.filename.endswith(".whl"):
            wheels.append(file)
        else:
            source = _archive(name, version, archive, file)
    elif (sdist := table.get("sdist")) is not None:
        source = _archive(name, version, sdist, _wheel(sdist, folder))
    elif (vcs := table.get("vcs")) is not None:
        if vcs.get("type") != "git":
            raise ValueError(f"{name}: version control {vcs.get('type')!r:.20} instead of git")
        url = _string(vcs["url"]) if "url" in vcs else _address(vcs, folder)
        source = SourcePackage(
            name, url, version, commit=_string(vcs["commit-id"]), subdirectory=_optional(vcs, "subdirectory")
        )
    elif (directory := table.get("directory")) is not None:
        url = _address(directory, folder)
        source = SourcePackage(name, url, version, subdirectory=_optional(directory, "subdirectory"))
    return ResolvedPackage(name, version, marker, tuple(wheels), source)


def _wheel(entry: dict[str, Any], folder: Path) -> WheelFile:
    url = _address(entry, folder)
    filename = _optional(entry, "name") or PurePosixPath(unquote(urlsplit(url).path)).name
    sha256, size = entry.get("hashes", {}).get("sha256"), entry.get("size")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ValueError(f"{filename}: sha256 {sha256!r:.80}")
    return WheelFile(filename, url, sha256, size if isinstance(size, int) else None)


def _archive(name: str, version: str | None, entry: dict[str, Any], file: WheelFile) -> SourcePackage:
    if file.sha256 is None:
        raise ValueError(f"{file.filename} has no sha256")
    return SourcePackage(name, file.url, version, file.sha256, subdirectory=_optional(entry, "subdirectory"))


def _address(entry: dict[str, Any], folder: Path) -> str:
    if "url" in entry:
        return _string(entry["url"])
    return urljoin(folder.as_uri() + "/", (folder / _string(entry["path"])).resolve().as_uri())


def _optional(table: dict[str, Any], key: str) -> str | None:
    return _string(table[key]) if key in table else None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} instead of a string")
    return value
