"""`CondaDependencies`: conda channels and packages, and pip requirements on top, edited in memory.

The methods are those of Azure ML's SDK v1. Two things are left behind: nothing is added that nobody asked for (no
Python, no `azureml-defaults`), and nothing is lost (marker variants and index options stay beside each other).
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from packaging.utils import canonicalize_name

from prefect_environments.core import files
from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.formats import conda, pip_section
from prefect_environments.core.formats.conda import CondaSpecification
from prefect_environments.core.formats.requirements import Requirements
from prefect_environments.core.formats.requirements import options as option_table
from prefect_environments.core.formats.requirements.text import logical_lines

DEFAULT_NAME = "project_environment"
DEFAULT_CHANNELS = ("conda-forge",)
"""Channels of an object that is not read from a file: scripts for SDK v1 add packages without naming any."""

_SPEC_NAME = re.compile(r"(?:[^\s\[]*::)?([A-Za-z0-9_.*-]+)")
_NAMED = re.compile(r"([a-z0-9][a-z0-9-]*)(?:\[[^\]]*\])?(?= @ |[=<>!~;\s]|$)")
_MARKER = re.compile(r"\s?; (.*?)(?: --hash=.*)?$")
_EDITABLE = ("-e", "--editable")


class CondaDependencies:
    """What `environment.python.conda_dependencies` holds.

    A new object asks for no Python: without one, the base image's Python serves, or conda's newest where a conda
    package needs it. Say which by `set_python_version("3.11")` or `add_conda_package("python=3.11")`.

    Example:
        ```python
        conda = CondaDependencies()
        conda.add_channel("pytorch")
        conda.add_conda_package("python=3.11")
        conda.add_pip_package("pyyaml")
        ```
    """

    __slots__ = ("_channels", "_constraints", "_dependencies", "_name", "_pip", "_prefix", "_variables", "_warnings")

    _channels: list[str]
    _dependencies: list[str]
    _pip: list[str]

    def __init__(self, conda_dependencies_file_path: str | Path | None = None) -> None:
        """Read a conda environment file if one is given. Raises `SpecificationError` and `RequirementsError`."""
        given = conda_dependencies_file_path
        self._constraints: tuple[str, ...] = ()
        self._take(CondaSpecification(DEFAULT_NAME, DEFAULT_CHANNELS) if given is None else conda.read(given))

    @classmethod
    def create(
        cls,
        pip_indexurl: str | None = None,
        pip_packages: Iterable[str] | None = None,
        conda_packages: Iterable[str] | None = None,
        python_version: str | None = None,
        pin_sdk_version: bool = True,
    ) -> Self:
        """An object with these packages. `pin_sdk_version` is accepted and means nothing: no SDK is added."""
        self = cls()
        if python_version is not None:
            self.set_python_version(python_version)
        for spec in _listed(conda_packages, "conda_packages"):
            self.add_conda_package(spec)
        if pip_indexurl is not None:
            self.set_pip_index_url(pip_indexurl)
        for line in _listed(pip_packages, "pip_packages"):
            self.add_pip_package(line)
        return self

    @classmethod
    def from_specification(cls, specification: CondaSpecification, constraints: Iterable[str] = ()) -> Self:
        """An object with what a conda environment file says, and limits on the versions of pip packages."""
        self = cls()
        self._take(specification)
        self._constraints = tuple(constraints)
        return self

    @classmethod
    def from_requirements(cls, found: Requirements) -> Self:
        """An object with pip requirements only."""
        return cls.from_specification(
            CondaSpecification(DEFAULT_NAME, DEFAULT_CHANNELS, pip=pip_section.lines_of(found)), found.constraints
        )

    @property
    def conda_channels(self) -> tuple[str, ...]:
        return tuple(self._channels)

    @property
    def conda_packages(self) -> tuple[str, ...]:
        """The match specs, as they were given."""
        return tuple(self._dependencies)

    @property
    def pip_packages(self) -> tuple[str, ...]:
        """The pip requirements, as they were given, options left out."""
        return tuple(line for line in self._pip if _is_package(line))

    @property
    def pip_options(self) -> tuple[str, ...]:
        """The lines of pip options: indexes, nested files and so on."""
        return tuple(line for line in self._pip if not _is_package(line))

    @property
    def pip_constraints(self) -> tuple[str, ...]:
        """Limits on versions that came with a requirements file (`-c`): they install nothing."""
        return self._constraints

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the file; they are set when a job runs."""
        return self._variables

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was noted when the file was read."""
        return self._warnings

    def add_channel(self, channel: str) -> None:
        """Add a channel after those that are there; one that is there keeps its place."""
        checked = _checked(conda.check_channel, channel, "add_channel")
        if checked not in self._channels:
            self._channels.append(checked)

    def remove_channel(self, channel: str) -> None:
        """Take a channel away, if it is there."""
        self._channels = [known for known in self._channels if known != channel.strip()]

    def add_conda_package(self, conda_package: str) -> None:
        """Add a match spec, such as `numpy=1.26`; it replaces what was asked of a package of that name."""
        spec = _checked(conda.check_spec, conda_package, "add_conda_package")
        name = _spec_name(spec)
        places = [place for place, known in enumerate(self._dependencies) if _spec_name(known) == name]
        kept = [known for known in self._dependencies if _spec_name(known) != name]
        kept.insert(places[0] if places else len(kept), spec)
        self._dependencies = kept

    def remove_conda_package(self, conda_package: str) -> None:
        """Take a package away, whatever its version, if it is there."""
        name = _spec_name(_checked(conda.check_spec, conda_package, "remove_conda_package"))
        self._dependencies = [known for known in self._dependencies if _spec_name(known) != name]

    def set_python_version(self, version: str) -> None:
        """Ask for `python=version`, such as 3.11."""
        if not isinstance(version, str) or not re.fullmatch(r"\d+(\.(\d+|\*)){0,2}", version.strip()):
            raise DefinitionError(
                f"set_python_version takes a version as text, such as '3.11', got {version!r:.40}; for more use "
                "add_conda_package('python>=3.10,<3.12')"
            )
        self.add_conda_package(f"python={version.strip()}")

    def get_python_version(self) -> str | None:
        """What is asked of Python, such as `3.11` or `>=3.10`; `None` if nothing is."""
        for spec in self._dependencies:
            if _spec_name(spec) == "python":
                rest = spec.rpartition("::")[2].removeprefix("python").strip()
                return rest.lstrip("= ") if rest.startswith("=") else rest or None
        return None

    def add_pip_package(self, pip_package: str) -> None:
        """Add a requirement or a pip option.

        It replaces the requirement of the same name (PEP 503) and marker, so that variants for different markers stay.
        `--extra-index-url` and the like stand beside each other; `--index-url` replaces the one before. Files and
        folders count from the current one. Raises `RequirementsError`.
        """
        for line in self._read_pip(pip_package, "add_pip_package"):
            key = _key(line)
            places = [place for place, known in enumerate(self._pip) if _key(known) == key]
            if places:
                self._pip[places[0]] = line
            else:
                self._pip.append(line)

    def remove_pip_package(self, pip_package: str) -> None:
        """Take a package away: with a marker that variant only, else all of that name; nothing if none is there.

        (Scripts for SDK v1 remove what that put in by itself, such as azureml-defaults.)
        """
        for line in self._read_pip(pip_package, "remove_pip_package"):
            kind, name, marker = _key(line)
            self._pip = [
                known for known in self._pip if not (_key(known)[:2] == (kind, name) and marker in ("", _key(known)[2]))
            ]

    def set_pip_option(self, pip_option: str) -> None:
        """Add a pip option, such as `--extra-index-url URL`, as `add_pip_package` does."""
        if not isinstance(pip_option, str) or not pip_option.strip().startswith("-"):
            raise DefinitionError("set_pip_option takes an option of pip, such as --extra-index-url URL")
        self.add_pip_package(pip_option)

    def remove_pip_option(self, pip_option: str) -> None:
        """Take away all options of this name (`--extra-index-url`), or the one with this value."""
        name, _, value = pip_option.strip().replace("=", " ", 1).partition(" ")
        self._pip = [known for known in self._pip if not _is_option(known, name, value.strip())]

    def set_pip_index_url(self, index_url: str) -> None:
        """Resolve pip packages from this index."""
        self.set_pip_option(index_url if index_url.lstrip().startswith("-") else f"--index-url {index_url}")

    def set_pip_requirements(self, pip_requirements: Iterable[str]) -> None:
        """Replace all pip requirements and options."""
        lines = _listed(pip_requirements, "set_pip_requirements")
        self._pip, self._constraints = [], ()
        for line in lines:
            self.add_pip_package(line)

    def specification(self) -> CondaSpecification:
        """A frozen snapshot."""
        return CondaSpecification(
            self._name,
            tuple(self._channels),
            tuple(self._dependencies),
            tuple(self._pip),
            self._prefix,
            dict(self._variables),
        )

    def requirements(self) -> Requirements:
        """The pip part as pip would read it, nested files read. Raises `RequirementsError`."""
        limits = pip_section.expand(self._constraints, "constraints").packages
        found = pip_section.expand(self._pip, "the pip packages of conda_dependencies")
        return pip_section.limited(found, limits)

    def serialize_to_string(self) -> str:
        """The text of a conda environment file."""
        return conda.write(self.specification())

    def with_constraints_file(self, name: str) -> str:
        """The same, with a pip line that names a file of constraints beside it."""
        found = self.specification()
        return conda.write(replace(found, pip=(*found.pip, f"-c {name}")))

    def as_dict(self) -> dict[str, Any]:
        """The content of a conda environment file."""
        found = self.specification()
        pip: list[Any] = [{"pip": list(found.pip)}] if found.pip else []
        content: dict[str, Any] = {"name": found.name, "dependencies": [*found.dependencies, *pip]}
        content |= {"channels": list(found.channels)} if found.channels else {}
        return content | ({"variables": dict(found.variables)} if found.variables else {})

    def save(self, path: str | Path | None = None) -> str:
        """Write a conda environment file, `conda_dependencies.yml` by default; gives its path."""
        target = Path(path or "conda_dependencies.yml")
        with files.storage("saving conda dependencies", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(target, self.serialize_to_string().encode(), target.absolute().parent)
        return str(target)

    def save_to_file(self, base_directory: str | Path, conda_file_path: str | Path | None = None) -> str:
        """Write the file below `base_directory`; gives its path relative to it."""
        relative = Path(conda_file_path or "conda_dependencies.yml")
        self.save(Path(base_directory) / relative)
        return str(relative)

    def __bool__(self) -> bool:
        """Whether anything is asked for: packages, options, variables."""
        return bool(self._dependencies or self._pip or self._variables or self._constraints)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CondaDependencies):
            return NotImplemented
        return (self.specification(), self._constraints) == (other.specification(), other._constraints)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"CondaDependencies(conda_packages={self.conda_packages!r}, pip_packages={self.pip_packages!r})"

    def _take(self, given: CondaSpecification) -> None:
        self._name = given.name or DEFAULT_NAME
        self._channels = list(given.channels)
        self._dependencies = list(given.dependencies)
        self._pip = list(given.pip)
        self._prefix = given.prefix
        self._variables = dict(given.variables)
        self._warnings = given.warnings

    @staticmethod
    def _read_pip(text: str, origin: str) -> tuple[str, ...]:
        if not isinstance(text, str):
            raise DefinitionError(f"{origin} takes one requirement as text, got {type(text).__name__}")
        return pip_section.read(text, origin, 1, Path.cwd())[0]


def _listed(given: Iterable[str] | None, what: str) -> list[str]:
    if isinstance(given, str):
        raise DefinitionError(f"{what} is a list of text, got text; write [{given!r:.60}]")
    return list(given or ())


def _checked(check: Any, given: str, what: str) -> str:
    if not isinstance(given, str):
        raise DefinitionError(f"{what} takes text, got {type(given).__name__}; a version is written in quotes")
    try:
        return str(check(given))
    except SpecificationError as error:
        raise SpecificationError(f"{what}: {error}") from None


def _spec_name(spec: str) -> str:
    found = _SPEC_NAME.match(spec)
    return found[1].lower() if found else spec


def _key(line: str) -> tuple[str, str, str]:
    """What tells lines apart: kind, name and marker of a requirement, or an option and its value."""
    if not _is_package(line):
        (found,) = logical_lines([line], "pip")
        name = ",".join(sorted(option_table.split(found)[1]))
        return "option", name, "" if name == "index_url" else found.text
    normal = pip_section.expand([line], "pip").packages[0]
    named, marker = _NAMED.match(normal), _MARKER.search(normal)
    name = canonicalize_name(named[1]) if named else normal
    return "package", name, marker[1] if marker else ""


def _is_package(line: str) -> bool:
    return not line.startswith("-") or line.startswith(_EDITABLE)


def _is_option(line: str, name: str, value: str) -> bool:
    known, _, rest = line.replace("=", " ", 1).partition(" ")
    return known == name and value in ("", rest.strip())
