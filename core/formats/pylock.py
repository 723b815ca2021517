"""A given lock (PEP 751, `pylock.toml`) as the input of an environment: checked, and used as it is.

What is kept of it is what decides the installation: comments, tools' own tables and attestations go.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from prefect_environments.core.errors import ResolveError, SpecificationError
from prefect_environments.core.formats.requirements import credentials
from prefect_environments.core.lock import pylock, wheels
from prefect_environments.core.lock.pylock import ResolvedPackage
from prefect_environments.core.lock.target import Target

LIMIT = 16 * 1024 * 1024
FILE_NAME = re.compile(r"pylock\.([^.]+\.)?toml")
_TOP = ("lock-version", "environments", "requires-python", "extras", "dependency-groups", "default-groups")
_PACKAGE = ("name", "version", "marker", "requires-python")
_FILE = ("name", "url", "path", "size", "hashes", "subdirectory", "type", "commit-id", "requested-revision", "editable")


def read(path: Path) -> str:
    """The text of a `pylock.toml` for a definition's `pylock`; relative paths become addresses of this machine.

    Raises `SpecificationError` naming the file for what is no lock, has no hashes or holds credentials.
    """
    if not FILE_NAME.fullmatch(path.name):
        raise SpecificationError(f"{path} is not named as a lock: pylock.toml or pylock.NAME.toml (PEP 751)")
    try:
        if path.stat().st_size > LIMIT:
            raise SpecificationError(f"{path} has more than {LIMIT} bytes, which no lock has")
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no usable path, or no UTF-8 text"
        raise SpecificationError(f"the lock {path} cannot be read ({reason}); correct the path") from None
    return normalise(text, origin=str(path), folder=path.absolute().parent)


def normalise(text: str, *, origin: str = "pylock", folder: Path | None = None) -> str:
    """The same lock in one spelling, with nothing in it that does not count. See `read` for what is raised."""
    document = _document(text, origin)
    kept: dict[str, Any] = {key: document[key] for key in _TOP if key in document}
    try:
        kept["packages"] = [_kept_package(table, origin, folder) for table in document.get("packages", [])]
        written = tomli_w.dumps(kept)
        packages = pylock.read(written, folder or Path("/"))
    except (ResolveError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = f"{error.__cause__ or error}" if isinstance(error, ResolveError) else f"{error}"
        raise SpecificationError(f"{origin} is not a lock that can be used: {reason:.300}") from None
    for package in packages:
        if unpinned := [file.filename for file in package.wheels if file.sha256 is None]:
            raise SpecificationError(
                f"{origin} gives no sha256 for {unpinned[0]}; write the lock anew with a tool that records hashes"
            )
    return written


def packages_for(text: str, target: Target) -> tuple[ResolvedPackage, ...]:
    """The packages of a lock that the image takes, each with its files (PEP 751, "Installation").

    Raises `SpecificationError` where the lock is not for the image's Python or platform.
    """
    document = _document(text, "pylock")
    check_python(str(document.get("requires-python", "")), target, "the lock")
    environment = wheels.marker_environment(target)
    lines = document.get("environments", [])
    if lines and not any(_holds(line, environment, "the lock") for line in lines):
        raise SpecificationError(
            f"the lock is for other environments than the image ({wheels.describe(target)}): {'; '.join(lines)}. Write "
            "the lock for this platform too, or choose another base image"
        )
    context = {**environment, "extras": set(), "dependency_groups": set(document.get("default-groups", []))}
    tables = [table for table in document.get("packages", []) if _is_wanted(table, context)]
    for table in tables:
        check_python(str(table.get("requires-python", "")), target, f"{table.get('name')} {table.get('version', '')}")
    bare = [{key: value for key, value in table.items() if key != "marker"} for table in tables]
    return pylock.read(tomli_w.dumps({"packages": bare}), Path("/"))


def check_python(specifier: str, target: Target, what: str) -> None:
    """Raise `SpecificationError` where `requires-python` rules out the image's Python."""
    try:
        fits = SpecifierSet(specifier).contains(target.python, prereleases=True)
    except InvalidSpecifier:
        raise SpecificationError(f"{what} has requires-python {specifier!r}, which is no version specifier") from None
    if not fits:
        raise SpecificationError(
            f"{what} requires Python {specifier}, and the image has Python {target.python}: choose another base image"
        )


def _document(text: str, origin: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecificationError(f"{origin} is not TOML: {error}") from None
    version = document.get("lock-version")
    if not isinstance(version, str) or version.split(".")[0] != "1":
        raise SpecificationError(
            f"{origin} has lock-version {version!r:.40}; expected 1.x of PEP 751. uv writes one with "
            "`uv export --format pylock.toml`, pip with `pip lock`"
        )
    try:
        for line in document.get("environments", []):
            Marker(line)
        groups = document.get("default-groups", [])
        if not isinstance(groups, list) or not all(isinstance(name, str) for name in groups):
            raise SpecificationError(f"{origin} has default-groups that are no list of names")
    except (InvalidMarker, TypeError) as error:
        raise SpecificationError(f"{origin} has environments that are no markers: {error}") from None
    return document


def _is_wanted(table: Mapping[str, Any], context: Mapping[str, Any]) -> bool:
    return "marker" not in table or _holds(table["marker"], context, str(table.get("name")))


def _holds(marker: str, context: Mapping[str, Any], what: str) -> bool:
    try:
        return Marker(marker).evaluate(dict(context), "lock_file")
    except (UndefinedComparison, UndefinedEnvironmentName) as error:
        raise SpecificationError(
            f"{what} has the marker {marker!r:.200}, which a lock cannot have ({error}); write the lock anew"
        ) from None


def _kept_package(table: Mapping[str, Any], origin: str, folder: Path | None) -> dict[str, Any]:
    kept: dict[str, Any] = {key: table[key] for key in _PACKAGE if key in table}
    if "marker" in kept:
        Marker(kept["marker"])
    if "wheels" in table:
        kept["wheels"] = [_kept_file(file, origin, folder) for file in table["wheels"]]
    for key in ("sdist", "archive", "vcs", "directory"):
        if key in table:
            kept[key] = _kept_file(table[key], origin, folder)
    return kept


def _kept_file(table: Mapping[str, Any], origin: str, folder: Path | None) -> dict[str, Any]:
    kept = {key: table[key] for key in _FILE if key in table}
    if "hashes" in kept:
        kept["hashes"] = {"sha256": kept["hashes"]["sha256"]} if "sha256" in kept["hashes"] else {}
    if "url" in kept:
        if problem := credentials.problem(kept["url"]):
            raise SpecificationError(f"{origin} has an address that cannot be stored: {problem}")
        kept.pop("path", None)
    elif "path" in kept:
        if folder is None and not Path(kept["path"]).is_absolute():
            raise SpecificationError(
                f"{origin} names the file {kept['path']!r} relative to the lock; read it with Environment.from_pylock"
            )
        kept["path"] = str(((folder or Path("/")) / kept["path"]).resolve())
    return kept
