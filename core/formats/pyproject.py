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
            "poetry" in document.get("tool", {})
        )
        raise SpecificationError(f"{path} has no [project] table, which lists the dependencies.{other}")
    if "dependencies" in project.get("dynamic", []):
        raise SpecificationError(
            f"{path} says that its dependencies are dynamic: only a build tells them. List them under "
            "project.dependencies, or lock them (uv lock)"
        )
    _check_names(document, path, extras, groups)
    lines = [*_lines(project.get("dependencies", []), path)]
    for extra in extras:
        lines += _lines(_named(project.get("optional-dependencies", {}), extra), path)
    for group in groups:
        lines += _group(document.get("dependency-groups", {}), group, path)
    own = canonicalize_name(str(project.get("name", "")))
    if any(canonicalize_name(line.split("[")[0].strip()) == own for line in lines if "[" in line):
        raise SpecificationError(f"{path} depends on extras of itself; name these extras instead: extras=[…]")
    found = requirements_format.parse(lines, origin=str(path))
    return Project(found.packages, str(project.get("requires-python", "")))


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is no UTF-8 text"


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecificationError(f"the project {path} cannot be read ({_reason(error)}); correct the path") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecificationError(f"{path} is not TOML: {error}") from None


def _check_names(document: dict[str, Any], path: Path, extras: Sequence[str], groups: Sequence[str]) -> None:
    known_extras = document.get("project", {}).get("optional-dependencies", {})
    known_groups = document.get("dependency-groups", {})
    for kind, asked, known in (("extra", extras, known_extras), ("dependency group", groups, known_groups)):
        has = {canonicalize_name(name) for name in known}
        if missing := [name for name in asked if canonicalize_name(name) not in has]:
            raise SpecificationError(f"{path} has no {kind} {missing[0]!r}; it has {', '.join(sorted(has)) or 'none'}")


def _named(table: dict[str, Any], name: str) -> Any:
    return next(value for key, value in table.items() if canonicalize_name(key) == canonicalize_name(name))


def _lines(value: Any, path: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise SpecificationError(f"{path} has dependencies that are no list of text")
    return value


def _group(table: dict[str, Any], name: str, path: Path, depth: int = 0) -> list[str]:
    """A dependency group with those that it includes (PEP 735)."""
    if depth > _DEPTH:
        raise SpecificationError(f"{path} has dependency groups that include each other in a circle: {name}")
    lines: list[str] = []
    for item in _named(table, name):
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
