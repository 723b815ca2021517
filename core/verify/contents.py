"""What is in a package layer, against what the lock says is in it: distributions, and the hash of every file.

Wheels by their METADATA and RECORD ("Recording installed projects"), conda packages by their `conda-meta` files.
"""

import base64
import csv
import hashlib
import io
import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path
from typing import Any, BinaryIO

from packaging.utils import canonicalize_name, canonicalize_version

from prefect_environments.core.build import recipe
from prefect_environments.core.build.plan import PlannedLayer
from prefect_environments.core.errors import ImageError
from prefect_environments.core.lock.model import Lock, LockedPackage

_CHUNK = 1024 * 1024
_TEXT_MAX = 64 * 1024 * 1024
_TEXTS = re.compile(r".*/site-packages/[^/]+\.dist-info/(METADATA|RECORD)|.*/conda-meta/[^/]+\.json")


@dataclass(slots=True)
class LayerFiles:
    """A layer's entries: sha256 (raw bytes) by path, links, folders, and the text of the files that describe others."""

    files: dict[str, bytes] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    texts: dict[str, bytes] = field(default_factory=dict)

    def has(self, path: str) -> bool:
        return path in self.files or path in self.links or path in self.folders


def read_files(path: Path) -> LayerFiles:
    """Hash every file of a gzip layer, as a stream. Raises `ImageError` for entries that no package has."""
    found = LayerFiles()
    try:
        with tarfile.open(path, "r:gz") as archive:
            while (member := archive.next()) is not None:
                _read_member(archive, member, found)
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps each one otherwise
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ImageError(f"the layer is not a sound archive ({error})") from error
    return found


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, found: LayerFiles) -> None:
    name = posixpath.normpath(member.name)
    if member.isdir():
        found.folders.add(name)
    elif member.issym():
        found.links.add(name)
    elif member.isreg() and (file := archive.extractfile(member)) is not None:
        found.files[name], text = _hashed(file, keep=bool(_TEXTS.fullmatch(name)) and member.size <= _TEXT_MAX)
        if text is not None:
            found.texts[name] = text
    else:
        raise ImageError(f"/{name} is neither a file nor a folder nor a link")


def _hashed(file: Any, *, keep: bool) -> tuple[bytes, bytes | None]:
    hasher, held = hashlib.sha256(), io.BytesIO()
    source: BinaryIO = file
    while chunk := source.read(_CHUNK):
        hasher.update(chunk)
        if keep:
            held.write(chunk)
    return hasher.digest(), held.getvalue() if keep else None


def problems_of(planned: PlannedLayer, lock: Lock, found: LayerFiles) -> Iterator[str]:
    """What is not as the lock and the packages' own lists of files say, one sentence each.

    Raises `ImageError` where a list is none: what somebody wrote there may be anything.
    """
    try:
        if planned.conda:
            yield from _conda_problems(planned, found)
        else:
            yield from _wheel_problems(planned.packages, recipe.site_packages(lock.target), found)
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise ImageError(f"a list of a package's files cannot be read ({type(error).__name__}: {error})") from error


def _wheel_problems(packages: tuple[LockedPackage, ...], site: str, found: LayerFiles) -> Iterator[str]:
    inside = re.compile(rf"{re.escape(site)}/[^/]+\.dist-info/(METADATA|RECORD)")
    texts = {path: text for path, text in found.texts.items() if inside.fullmatch(path)}
    there = dict(_distribution(text) for path, text in texts.items() if path.endswith("/METADATA"))
    wanted = dict(_named(package.name, package.version) for package in packages)
    yield from _differences(wanted, there)
    listed: dict[str, set[bytes | None]] = {}
    for path, text in texts.items():
        if path.endswith("/RECORD"):
            for name, digest in _record_rows(text):
                listed.setdefault(posixpath.normpath(posixpath.join(site, name)), set()).add(digest)
    yield from _file_problems(listed, found, "RECORD")


def _conda_problems(planned: PlannedLayer, found: LayerFiles) -> Iterator[str]:
    prefix = recipe.PREFIX.strip("/")
    records = {p: json.loads(text) for p, text in found.texts.items() if posixpath.dirname(p) == f"{prefix}/conda-meta"}
    builds = {(str(r.get("name")), f"{r.get('version')}={r.get('build')}"): r.get("sha256") for r in records.values()}
    wanted = {(package.name, f"{package.version}={package.build}"): package.sha256 for package in planned.conda}
    yield from _differences({key: " ".join(key) for key in wanted}, {key: " ".join(key) for key in builds})
    for key in wanted.keys() & builds.keys():
        if wanted[key] != builds[key]:
            yield f"{' '.join(key)} is of another file than the lock's"
    listed: dict[str, set[bytes | None]] = {path: {None} for path in records}
    for record in records.values():
        for entry in record.get("paths_data", {}).get("paths", ()):
            digest = entry.get("sha256_in_prefix") or entry.get("sha256")
            if entry.get("path_type") != "hardlink":
                digest = None  # a link's digest is that of the file behind it, a folder has none
            where = posixpath.normpath(f"{prefix}/{entry['_path']}")
            listed.setdefault(where, set()).add(bytes.fromhex(digest) if digest else None)
    yield from _file_problems(listed, found, "conda-meta record")


def _differences(wanted: Mapping[tuple[str, str], str], there: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Both by what is compared, to what is shown."""
    yield from (f"{wanted[key]} of the lock is not in it" for key in sorted(wanted.keys() - there.keys()))
    yield from (
        f"it has {there[key]}, which is not in the lock's place" for key in sorted(there.keys() - wanted.keys())
    )


def _file_problems(listed: dict[str, set[bytes | None]], found: LayerFiles, by: str) -> Iterator[str]:
    """Of two packages in a layer that list one path, one has lost it: any of their digests will do."""
    for path, digests in sorted(listed.items()):
        if not found.has(path):
            if None not in digests:
                yield f"/{path} is missing, which a {by} lists"
        elif None not in digests and path in found.links:
            yield f"/{path} is a link, not the file whose sha256 the {by} gives"
        elif None not in digests and path in found.files and found.files[path] not in digests:
            yield f"/{path} is not the file whose sha256 the {by} gives"
    unlisted = sorted((found.files.keys() | found.links) - listed.keys())
    yield from (f"/{path} is in no {by}" for path in unlisted)


def _distribution(metadata: bytes) -> tuple[tuple[str, str], str]:
    told = Parser().parsestr(metadata.decode("utf-8", "replace"), headersonly=True)
    return _named(str(told.get("Name", "")), str(told.get("Version", "")))


def _named(name: str, version: str) -> tuple[tuple[str, str], str]:
    """A distribution as it is compared (PEP 503; 1.0 is 1.0.0 by PEP 440), and as it is shown."""
    return (str(canonicalize_name(name)), canonicalize_version(version)), f"{canonicalize_name(name)} {version}"


def _record_rows(text: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Paths with their sha256; `None` where RECORD gives none, as for itself and for bytecode."""
    for row in csv.reader(io.StringIO(text.decode("utf-8", "replace"), newline="")):
        if len(row) >= 2:
            encoded = row[1].removeprefix("sha256=") if row[1].startswith("sha256=") else ""
            padded = encoded + "=" * (-len(encoded) % 4)
            yield row[0], base64.urlsafe_b64decode(padded) if encoded else None
