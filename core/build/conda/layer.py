"""conda packages become a layer: one deterministic tar, whose bytes depend on the packages alone."""

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import source_from_cache
from pathlib import Path
from typing import Any, BinaryIO

from packaging.utils import canonicalize_name

from prefect_environments.core import files
from prefect_environments.core.build import deflate, recipe, tar
from prefect_environments.core.build.conda.contents import Contents, read_contents
from prefect_environments.core.build.conda.link import check, link
from prefect_environments.core.build.conda.stream import refused
from prefect_environments.core.build.layer import LayerBlob, LayerWriter, Overlap
from prefect_environments.core.lock.model import LockedCondaPackage

_CHUNK = 1024 * 1024
_PATH_KEYS = (
    "_path",
    "path_type",
    "sha256",
    "sha256_in_prefix",
    "size_in_bytes",
    "file_mode",
    "prefix_placeholder",
    "original_path",
)
_UNKNOWN = "<unknown>"
"""The channel of packages that came from none, in conda's words: where one was seen must not count."""

_PREFIX = recipe.PREFIX.strip("/")


@dataclass(frozen=True, slots=True)
class CondaLayer:
    """A written layer. `paths` are in the image, by package; `not_run` are pairs of package and script."""

    blob: LayerBlob
    overlaps: list[Overlap]
    paths: dict[str, list[str]]
    not_run: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Given:
    package: LockedCondaPackage
    path: Path
    contents: Contents
    kept: frozenset[str]
    """Files that go into the layer: without those of a distribution that pip's replaces."""

    @property
    def record(self) -> str:
        return f"conda-meta/{self.package.filename.removesuffix('.conda').removesuffix('.tar.bz2')}.json"


def write_conda(
    packages: Sequence[tuple[LockedCondaPackage, Path]],
    python: str,
    out: BinaryIO,
    scratch: Path,
    replaced: Collection[str] = (),
) -> CondaLayer:
    """A layer of one or more packages at the prefix; where two bring one path, the later one wins and it is reported.

    `python` is the environment's Python (`3.11`), empty where it has none. Of the packages named in `replaced`, the
    Python distribution is left out, as pip uninstalls it before it installs its own. One package at a time is unpacked
    below `scratch`. Call it in a thread without an event loop. Raises `PackageError` for packages that are refused.
    """
    check()
    given = [_read(package, path, python, replaced) for package, path in packages]
    owners: dict[str, str] = {}
    overlaps = []
    for each in given:
        for path in sorted(each.kept):
            if path in owners:
                overlaps.append(_overlap(path, owners[path], each.package.name))
            owners[path] = each.package.name
    folders = tar.parents(owners).union(*(each.contents.folders for each in given))
    for path in sorted(folders & owners.keys()):  # a folder wins over a file, as for wheels
        first = min(other for other in owners if other.startswith(f"{path}/"))
        overlaps.append(_overlap(path, owners.pop(path), owners[first]))
    writer = _Writer(LayerWriter(out, encode=deflate.member))
    for each in given:
        own = [path for path in each.kept if owners.get(path) == each.package.name]
        with files.temporary_folder(scratch) as folder:
            _add(writer, each, python, folder, sorted(own))
    return CondaLayer(
        writer.layer.finish(),
        overlaps,
        {each.package.name: [f"{_PREFIX}/{path}" for path in sorted(each.kept)] for each in given},
        [(each.package.name, path) for each in given for path in each.contents.not_run],
    )


def _read(package: LockedCondaPackage, path: Path, python: str, replaced: Collection[str]) -> _Given:
    contents = read_contents(package, path, python)
    kept = contents.files
    if package.name in replaced and canonicalize_name(package.name) in contents.distributions:
        gone = (f"lib/python{python}/site-packages/", "bin/")
        kept = frozenset(name for name in kept if not name.startswith(gone))
    return _Given(package, path, contents, kept)


def _overlap(path: str, loser: str, winner: str) -> Overlap:
    return Overlap(f"{_PREFIX}/{path}", loser, winner)


class _Writer:
    """A layer that gets each folder once, before the first thing in it."""

    def __init__(self, layer: LayerWriter) -> None:
        self.layer = layer
        self._folders: set[str] = set()

    def add(self, entry: tar.Entry, data: bytes = b"") -> None:
        self.folder(entry.path.rpartition("/")[0])
        self.layer.add(entry, data)

    def add_stream(self, entry: tar.Entry, size: int, chunks: Iterator[bytes]) -> None:
        self.folder(entry.path.rpartition("/")[0])
        self.layer.add_stream(entry, size, chunks)

    def folder(self, path: str) -> None:
        if path and path not in self._folders:
            self._folders.add(path)
            self.folder(path.rpartition("/")[0])
            self.layer.add(tar.Entry(path, 0o755, tar.DIRECTORY))


def _add(writer: _Writer, given: _Given, python: str, folder: Path, own: Sequence[str]) -> None:
    """Link a package and write what is its `own`, its record last."""
    record = link(given.package, given.path, given.contents, python, folder)
    prefix = folder / "prefix"
    linked = {path["_path"]: path for path in record["paths_data"]["paths"]}
    files_linked = {name for name, path in linked.items() if path["path_type"] != "directory"}
    if files_linked != given.contents.files:
        different = sorted(files_linked ^ given.contents.files)
        raise refused(given.package.filename, f"rattler links other files than it lists, such as {different[0]!r}")
    for path in sorted(given.contents.folders):
        writer.folder(f"{_PREFIX}/{path}")
    for path in own:
        entry = _entry(prefix / path, path, folder, given.package.filename)
        if (entry.kind == tar.SYMLINK) != (path in given.contents.links):
            raise refused(given.package.filename, f"rattler makes of {path!r} what it is not, a link or no link")
        if entry.kind == tar.SYMLINK:
            writer.add(entry)
        elif changed := _bytecode(prefix, path, linked):
            linked[path]["sha256_in_prefix"] = hashlib.sha256(changed).hexdigest()
            writer.add(entry, changed)
        else:
            with (prefix / path).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                writer.add_stream(entry, size, iter(lambda: file.read(_CHUNK), b""))
    writer.add(tar.Entry(f"{_PREFIX}/{given.record}", 0o644), _record(given, linked))


def _entry(place: Path, path: str, folder: Path, label: str) -> tar.Entry:
    mode = place.lstat().st_mode
    if stat.S_ISLNK(mode):
        target = str(place.readlink())
        if target.startswith(str(folder)):
            raise refused(label, f"its link {path!r} leads to where it was unpacked")
        return tar.Entry(f"{_PREFIX}/{path}", 0o777, tar.SYMLINK, target)
    if not stat.S_ISREG(mode):
        raise refused(label, f"{path!r} became neither a file nor a link")
    return tar.Entry(f"{_PREFIX}/{path}", 0o755 if mode & stat.S_IXUSR else 0o644)


def _bytecode(prefix: Path, path: str, linked: Mapping[str, Any]) -> bytes | None:
    """A module's bytecode with the time that its source has in the layer (PEP 552): Python would take it for stale,
    and compile the standard library at every start. None for all else, and for what is stale already."""
    if not path.endswith(".pyc"):
        return None
    try:
        source = source_from_cache(path) if "__pycache__" in path else path[:-1]
    except ValueError:
        return None
    if source not in linked or linked[source].get("prefix_placeholder") or (prefix / source).is_symlink():
        return None
    content, found = (prefix / path).read_bytes(), (prefix / source).stat()
    validity = b"".join(number.to_bytes(4, "little") for number in (0, int(found.st_mtime), found.st_size & 0xFFFFFFFF))
    if content[4:16] != validity:
        return None
    return content[:8] + tar.MTIME.to_bytes(4, "little") + content[12:]


def _record(given: _Given, linked: Mapping[str, Any]) -> bytes:
    """`conda-meta/NAME-VERSION-BUILD.json`: what `conda list` reads, of the package and nothing else."""
    package, kept = given.package, given.kept
    paths = [linked[name] for name in sorted(linked) if name in kept or linked[name]["path_type"] == "directory"]
    record = {
        **given.contents.index,
        "subdir": package.subdir,
        "fn": package.filename,
        "sha256": package.sha256,
        "size": given.path.stat().st_size,
        "channel": _UNKNOWN,
        "url": f"file:///{package.subdir}/{package.filename}",
        "files": sorted(kept),
        "paths_data": {"paths_version": 1, "paths": [_picked(path) for path in paths]},
        "requested_spec": "",
    }
    return json.dumps(record, sort_keys=True).encode() + b"\n"


def _picked(path: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are conda's; a later rattler may write more."""
    return {key: path[key] for key in _PATH_KEYS if key in path}
