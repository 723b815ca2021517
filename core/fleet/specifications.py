"""A folder of specifications as definitions: requirements, conda and Azure ML v2 YAML, locks, projects, Dockerfiles,
and folders of Azure ML's SDK v1.

Each file at the top is an environment, and each folder, whose files then belong together: a Dockerfile in it is built
with the folder as its context. Where a file's name says nothing (`requirements.txt`), the folder's is taken. What
another file names (`-r`, `-c`, `conda_file`, a build's `path`) is a part of that one, and so is what starts with `.`,
`_` or `constraints`.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import PrefectEnvironmentsError, SpecificationError
from prefect_environments.core.fleet.outcome import FleetOutcome
from prefect_environments.core.formats import azureml_v2, yaml_text
from prefect_environments.core.formats.azureml_v1_load import ENVIRONMENT
from prefect_environments.core.formats.conda import read as read_conda
from prefect_environments.core.formats.yaml_text import Table
from prefect_environments.core.redact import redact

_V2 = ("$schema", "image", "build", "conda_file", "os_type", "inference_config")
COMMON = frozenset({"requirements", "environment", "conda", "conda_dependencies", "dockerfile", "pylock", "pyproject"})
"""Names of files that say nothing of the environment: their folder's name does."""
_OF_TOOLS = frozenset({"", "base", "project_environment"})
"""Names that conda and Azure ML give to what has none."""
_COMMENT = re.compile(r"(?:^|[ \t])#.*", re.MULTILINE)
_NAMED = re.compile(r"(?:^|[\s\"'])(?:-r|-c|--requirement|--constraint)[ \t=]*([^\s\"'#]+)", re.MULTILINE)
_LOOK = 256 * 1024  # bytes of a file in which names of others are looked for

Kind = Callable[[Path, str], EnvironmentDefinition]


@dataclass(frozen=True, slots=True)
class Specifications:
    """What a folder holds."""

    definitions: tuple[EnvironmentDefinition, ...]
    unreadable: tuple[FleetOutcome, ...]
    """Failures with the reason, one for each file that cannot be read."""


def read_folder(folder: str | Path) -> Specifications:
    """The environments in a folder, by name. A file that cannot be read becomes a failure, and stops no other.

    It may start `uv` (a project with a `uv.lock`), and blocks: call it in a thread. Raises `SpecificationError` where
    the folder is none, or has no specification in it.
    """
    place = Path(folder)
    try:
        place = place.expanduser()
        found = list(_all(sorted(path for path in place.iterdir() if not path.name.startswith((".", "_")))))
    except (OSError, ValueError, RuntimeError) as error:  # the last for the home of somebody unknown
        reason = getattr(error, "strerror", None) or "it is no usable path"
        raise SpecificationError(f"cannot read the folder {str(place)!r:.300}: {reason}; correct the path") from None
    definitions, failures = [], []
    for path, name, read in found:
        try:
            definitions.append(read(path, name))
        except PrefectEnvironmentsError as error:
            reason = str(error) if str(path) in str(error) else f"{path.relative_to(place)}: {error}"
            failures.append(FleetOutcome(name=name, status="failed", reason=reason))
        except Exception as error:  # whatever it is, it stops no other environment
            reason = redact(f"{path.relative_to(place)}: {type(error).__name__}: {error}")
            failures.append(FleetOutcome(name=name, status="failed", reason=reason))
    if not definitions and not failures:
        raise SpecificationError(
            f"the folder {place} holds no specification: requirements (*.txt), conda or Azure ML YAML (*.yml, *.yaml), "
            "pylock.toml, pyproject.toml, Dockerfiles, or folders with one of these"
        )
    return Specifications(tuple(sorted(definitions, key=lambda one: one.name.lower())), tuple(failures))


def _all(entries: list[Path]) -> Iterator[tuple[Path, str, Kind]]:
    """Path, name and reader of each specification."""
    files = [path for path in entries if (path.is_file() or _is_dangling(path)) and kind_of(path)]
    parts = _parts(files)
    common = [path for path in files if stem_of(path).lower() in COMMON and _real(path) not in parts]
    for path in files:
        if _real(path) not in parts and (kind := kind_of(path)):
            yield path, path.absolute().parent.name if common == [path] else stem_of(path), kind
    for folder in (path for path in entries if path.is_dir() and _real(path) not in parts):
        try:
            found = in_folder(folder)
        except OSError as error:
            found = folder, folder.name, _refuses(error)
        if found:
            yield found


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `Path.resolve` raises for a link to itself


def _is_dangling(path: Path) -> bool:
    """Whether it is a link to nothing, which somebody meant to be a specification."""
    return path.is_symlink() and not path.exists()


def _refuses(error: OSError) -> Kind:
    """A reader for what cannot even be looked at: it stops no other."""

    def read(path: Path, name: str) -> EnvironmentDefinition:
        del name
        raise SpecificationError(f"cannot read the folder {path}: {error.strerror}; correct its permissions")

    return read


def in_folder(folder: Path) -> tuple[Path, str, Kind] | None:
    """The specification that a folder is: of several files in it the one that names or uses the others.

    Raises `OSError` for a folder that cannot be looked into.
    """
    if (folder / ENVIRONMENT).is_file():
        return folder, folder.name, _v1
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith((".", "_"))]
    kinds = {path: kind for path in files if (kind := kind_of(path))}
    parts = _parts(kinds)
    for wanted in (_yaml_v2, _dockerfile, _pylock, _pyproject, _conda, _requirements):
        if found := [path for path, kind in kinds.items() if kind is wanted]:
            found = [path for path in found if _real(path) not in parts] or found
            path = next((path for path in found if stem_of(path).lower() in COMMON), found[0])
            kind = _context if wanted is _dockerfile else wanted
            return path, folder.name if len(found) == 1 or stem_of(path).lower() in COMMON else stem_of(path), kind
    return None


def kind_of(path: Path) -> Kind | None:
    """What reads a file, by its name and for YAML by its keys; `None` for one that is no specification."""
    name = path.name.lower()
    if name == "dockerfile" or name.startswith("dockerfile.") or path.suffix.lower() == ".dockerfile":
        return None if name.endswith(".dockerignore") else _dockerfile
    if path.suffix.lower() in (".yml", ".yaml"):
        return _yaml_v2 if any(key in _table(path) for key in _V2) else _conda
    if name == "pylock.toml" or re.fullmatch(r"pylock\.[^.]+\.toml", name):
        return _pylock
    if name == "pyproject.toml":
        return _pyproject
    return _requirements if path.suffix.lower() == ".txt" and not name.startswith("constraints") else None


def _table(path: Path) -> Table:
    """A YAML file's keys; none where it cannot be read, which its reader then says."""
    with suppress(PrefectEnvironmentsError):
        found = yaml_text.read(path)
        if isinstance(found, Table):
            return found
    return Table()


def _parts(files: Iterable[Path]) -> set[Path]:
    """What files name of each other; one that names itself is no part, so that its reader says what is wrong."""
    return {part for path in files for part in _named_in(path) if part != _real(path)}


def _named_in(path: Path) -> set[Path]:
    """The files and folders that a specification names."""
    found: set[str] = set()
    if kind_of(path) is _yaml_v2:
        table = _table(path)
        build = table.get("build")
        named = [table.get("conda_file"), build.get("path") if isinstance(build, Table) else None]
        found |= {str(name) for name in named if isinstance(name, str)}
    elif kind_of(path) in (_requirements, _conda):
        with suppress(OSError), path.open("rb") as file:
            found |= set(_NAMED.findall(_COMMENT.sub("", file.read(_LOOK).decode("utf-8", "replace"))))
    return {_real(path.parent / name) for name in found if name not in (".", "./") and "\0" not in name}


def stem_of(path: Path) -> str:
    """`iris` of `iris.txt`, `Dockerfile.iris`, `iris.Dockerfile` and `pylock.iris.toml`."""
    name = path.name
    for prefix in ("dockerfile.", "pylock."):
        if name.lower().startswith(prefix) and name.lower() != "pylock.toml":
            return name[len(prefix) :].removesuffix(".toml")
    return path.stem


def _requirements(path: Path, name: str) -> EnvironmentDefinition:
    return Environment.from_pip_requirements(name, path).definition()


def _conda(path: Path, name: str) -> EnvironmentDefinition:
    own = read_conda(path).name
    return Environment.from_conda_specification(name if own in _OF_TOOLS else own, path).definition()


def _yaml_v2(path: Path, name: str) -> EnvironmentDefinition:
    return azureml_v2.read(path, name=None if "name" in _table(path) else name).definition


def _pylock(path: Path, name: str) -> EnvironmentDefinition:
    return Environment.from_pylock(name, path).definition()


def _pyproject(path: Path, name: str) -> EnvironmentDefinition:
    import tomllib  # noqa: PLC0415  # only for projects

    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        own = tomllib.loads(path.read_text("utf-8"))["project"]["name"]
        name = own if isinstance(own, str) and own else name
    return Environment.from_pyproject(name, path).definition()


def _dockerfile(path: Path, name: str) -> EnvironmentDefinition:
    return Environment.from_dockerfile(name, path).definition()


def _context(path: Path, name: str) -> EnvironmentDefinition:
    """The folder is the build's context."""
    inside = "" if path.name == "Dockerfile" else path.name
    context = str(path.parent.absolute())
    return EnvironmentDefinition(name=name, build_context=context, dockerfile_path=inside, user_managed=True)


def _v1(path: Path, name: str) -> EnvironmentDefinition:
    del name  # the folder says it, or is it
    return Environment.load_from_directory(path).definition()
