"""`pyproject.toml` as the input of an environment: its dependencies, or the lock beside it where there is one.

The project itself is not installed: its code comes with the job.
"""

import asyncio
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from uv import find_uv_bin

from prefect_environments.core import loop
from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.files import storage, temporary_folder
from prefect_environments.core.formats import pylock
from prefect_environments.core.formats import requirements as requirements_format
from prefect_environments.core.lock import process
from prefect_environments.core.lock.uv_environment import plain
from prefect_environments.core.site import default_cache

_SECONDS = 300
_DEPTH = 20


@dataclass(frozen=True, slots=True)
class Project:
    """What an environment takes from a project: requirement lines, or the text of a lock; never both."""

    requirements: tuple[str, ...] = ()
    requires_python: str = ""
    pylock: str = ""


def read(path: Path, *, extras: Sequence[str] = (), groups: Sequence[str] = ()) -> Project:
    """The dependencies of a project (pyproject.toml specification; PEP 735 for groups).

    With a `uv.lock` beside it, that lock, unchanged and through `uv export`, so that what was locked is what is
    installed. `extras` are optional dependencies and `groups` dependency groups to take as well. Raises
    `SpecificationError` naming the file for what cannot be read, and for dependencies that only a build tells.
    """
    path = path / "pyproject.toml" if path.is_dir() else path
    document = _document(path)
    if (path.parent / "uv.lock").is_file():
        _check_names(document, path, extras, groups)
        return Project(pylock=loop.run(_export(path.parent, extras, groups)))
    project = document.get("project")
    if not isinstance(project, dict):
        other = " It is a Poetry project: write a lock with `poetry export`, or a [project] table." * (
            "poetry" in _table(document, "tool", path)
        )
        raise SpecificationError(f"{path} has no [project] table, which lists the dependencies.{other}")
    if "dependencies" in _list(project, "dynamic", path):
        raise SpecificationError(
            f"{path} says that its dependencies are dynamic: only a build tells them. List them under "
            "project.dependencies, or lock them (uv lock)"
        )
    _check_names(document, path, extras, groups)
    lines = [*_lines(project.get("dependencies", []), path)]
    for extra in extras:
        lines += _lines(_named(_table(project, "optional-dependencies", path), extra, path), path)
    for group in groups:
        lines += _group(_table(document, "dependency-groups", path), group, path)
    own = canonicalize_name(str(project.get("name", "")))
    if any(canonicalize_name(line.split("[")[0].strip()) == own for line in lines if "[" in line):
        raise SpecificationError(f"{path} depends on extras of itself; name these extras instead: extras=[…]")
    found = requirements_format.parse(lines, origin=str(path))
    return Project(found.packages, str(project.get("requires-python", "")))


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is no usable path, or no UTF-8 text"


def _document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        shown = f"{str(path)!r:.300}"
        raise SpecificationError(f"the project {shown} cannot be read ({_reason(error)}); correct the path") from None
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecificationError(f"{path} is not TOML: {error}") from None


def _check_names(document: dict[str, Any], path: Path, extras: Sequence[str], groups: Sequence[str]) -> None:
    known_extras = _table(_table(document, "project", path), "optional-dependencies", path)
    known_groups = _table(document, "dependency-groups", path)
    for kind, asked, known in (("extra", extras, known_extras), ("dependency group", groups, known_groups)):
        has = {canonicalize_name(name) for name in known}
        if missing := [name for name in asked if canonicalize_name(name) not in has]:
            raise SpecificationError(f"{path} has no {kind} {missing[0]!r}; it has {', '.join(sorted(has)) or 'none'}")


def _table(document: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = document.get(key, {})
    if not isinstance(found, dict):
        raise SpecificationError(f"{path} has a {key!r} that is no table")
    return found


def _list(document: dict[str, Any], key: str, path: Path) -> list[Any]:
    found = document.get(key, [])
    if not isinstance(found, list):
        raise SpecificationError(f"{path} has a {key!r} that is no list")
    return found


def _named(table: dict[str, Any], name: Any, path: Path) -> Any:
    for key, value in table.items():
        if isinstance(name, str) and canonicalize_name(key) == canonicalize_name(name):
            return value
    raise SpecificationError(f"{path} includes the dependency group {name!r:.80}; it has {', '.join(sorted(table))}")


def _lines(value: Any, path: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise SpecificationError(f"{path} has dependencies that are no list of text")
    return value


def _group(table: dict[str, Any], name: str, path: Path, depth: int = 0) -> list[str]:
    """A dependency group with those that it includes (PEP 735)."""
    if depth > _DEPTH:
        raise SpecificationError(f"{path} has dependency groups that include each other in a circle: {name}")
    lines: list[str] = []
    items = _named(table, name, path)
    if not isinstance(items, list):
        raise SpecificationError(f"{path} has a dependency group {name!r:.80} that is no list")
    for item in items:
        if isinstance(item, dict) and list(item) == ["include-group"]:
            lines += _group(table, item["include-group"], path, depth + 1)
        else:
            lines += _lines([item], path)
    return lines


async def _export(folder: Path, extras: Sequence[str], groups: Sequence[str]) -> str:
    """`uv.lock` as a PEP 751 lock. It is neither brought up to date nor checked against an index."""
    scratch = default_cache() / "resolve"
    with storage("exporting a lock", scratch), temporary_folder(scratch) as place:
        out = place / "pylock.toml"
        arguments = [find_uv_bin(), "export", "--format", "pylock.toml", "--output-file", str(out), "--quiet"]
        arguments += ["--frozen", "--no-default-groups", "--no-emit-workspace", "--no-header", "--color", "never"]
        arguments += ["--project", str(folder), "--no-config"]
        arguments += [option for extra in extras for option in ("--extra", extra)]
        arguments += [option for group in groups for option in ("--group", group)]
        done = await process.run(arguments, env=plain(os.environ), cwd=place, seconds=_SECONDS)
        if done.status:
            raise SpecificationError(
                f"the lock {folder / 'uv.lock'} cannot be exported; write it anew with `uv lock`. "
                f"uv says:\n{done.stderr}"
            )
        text = await asyncio.to_thread(out.read_text, "utf-8")
    return pylock.normalise(text, origin=str(folder / "uv.lock"), folder=folder)
