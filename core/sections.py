"""The sections of an `Environment`: `docker`, `python` and what is in them, with the attribute paths of SDK v1."""

import difflib
import logging
import warnings
from pathlib import Path
from typing import Any

from prefect_environments.core.conda_dependencies import CondaDependencies
from prefect_environments.core.definition import check_base_image
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.formats.requirements import Requirements
from prefect_environments.core.lock.urls import without_user_info

logger = logging.getLogger(__name__)

GIT, LOCAL, STORAGE = "git", "local", "storageAccount"


class Section:
    """Attributes that exist, and no others: a misspelt one is an error that names the nearest."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        try:
            object.__setattr__(self, name, value)
        except AttributeError as error:
            if not hasattr(type(self), name):
                raise AttributeError(_no_attribute(self, name)) from None
            raise AttributeError(f"{type(self).__name__}.{name} cannot be set") from error


class ContainerRegistrySection(Section):
    """Where a base image comes from, if not from a public registry or the workspace's own."""

    __slots__ = ("address", "extra", "password", "username")

    def __init__(self, address: str | None = None, username: str | None = None, password: str | None = None) -> None:
        self.address = address
        self.username = username
        self.password = password
        """A secret reference, or a value that came from a `Keyvault` or Secret block and remembers its reference."""
        self.extra: dict[str, Any] = {}

    @classmethod
    def of(cls, given: object) -> "ContainerRegistrySection":
        """Of anything that has an address, perhaps a user name and a password: a block, or v1's `ContainerRegistry`."""
        address = getattr(given, "address", None)
        if address is None:
            raise DefinitionError(
                f"a container registry has address, username and password; got {type(given).__name__}"
            )
        parts: list[Any] = [getattr(given, name, None) for name in ("username", "password")]
        plain = [part.get_secret_value() if hasattr(part, "get_secret_value") else part for part in parts]
        return cls(address, *plain)

    def __repr__(self) -> str:
        return f"ContainerRegistrySection(address={self.address!r}, username={self.username!r})"


class DockerPlatform(Section):
    """For what the image is built. It equals its text, `linux/amd64`."""

    __slots__ = ("architecture", "extra", "os")

    def __init__(self, os: str = "Linux", architecture: str = "amd64") -> None:
        self.os = os
        self.architecture = architecture
        self.extra: dict[str, Any] = {}

    @classmethod
    def of(cls, given: object) -> "DockerPlatform":
        """Of text such as `linux/arm64`, or of anything that has `os` and `architecture`."""
        if isinstance(given, str):
            os, slash, architecture = given.partition("/")
            if not slash:
                raise DefinitionError(f"a platform is os/architecture, such as linux/amd64; got {given!r:.60}")
            return cls("Linux" if os.lower() == "linux" else os, architecture)
        parts = [getattr(given, name, None) for name in ("os", "architecture")]
        if not all(isinstance(part, str) for part in parts):
            raise DefinitionError(f"a platform is text such as linux/amd64; got {type(given).__name__}")
        return cls(*map(str, parts))

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}".lower()

    def __repr__(self) -> str:
        return f"DockerPlatform({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other).lower() if isinstance(other, str | DockerPlatform) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


class DockerBuildContext(Section):
    """What a Dockerfile is built with: a local folder, or a git repository at a commit."""

    __slots__ = ("dockerfile_path", "extra", "location", "location_type")

    def __init__(
        self, location_type: str | None = None, location: str | None = None, dockerfile_path: str = "Dockerfile"
    ) -> None:
        self.location_type = location_type
        self.location = location
        self.dockerfile_path = dockerfile_path
        self.extra: dict[str, Any] = {}

    @staticmethod
    def from_local_directory(
        workspace: object, path: str | Path, dockerfile_path: str = "Dockerfile"
    ) -> "DockerBuildContext":
        """A folder on this machine. `workspace` is accepted and not needed: nothing is uploaded."""
        folder = Path(path).expanduser().absolute()
        if not folder.is_dir():
            raise DefinitionError(f"the build context {folder} is not a folder; correct the path")
        if not (folder / dockerfile_path).is_file():
            raise DefinitionError(f"the build context {folder} has no file {dockerfile_path!r}; give dockerfile_path")
        return DockerBuildContext(LOCAL, str(folder), dockerfile_path)

    @staticmethod
    def from_git(location: str, dockerfile_path: str = "Dockerfile") -> "DockerBuildContext":
        """A git repository as `URL#COMMIT[:FOLDER]`, with the whole id of a commit: a branch would move unseen."""
        return DockerBuildContext(GIT, location, dockerfile_path)

    @classmethod
    def of(cls, given: object) -> "DockerBuildContext":
        """Of a context, of a path, or of a git URL."""
        if isinstance(given, cls):
            return given
        if isinstance(given, str) and ("://" in given or given.startswith("git@")):
            return cls.from_git(given)
        if isinstance(given, str | Path):
            return cls(LOCAL, str(Path(given).expanduser().absolute()))
        raise DefinitionError(
            f"docker.build_context is a DockerBuildContext, a folder or a git URL; got {type(given).__name__}"
        )

    def __repr__(self) -> str:
        location = self.location and without_user_info(self.location)
        return f"DockerBuildContext({self.location_type!r}, {location!r}, {self.dockerfile_path!r})"


def _kept_only(name: str, default: Any) -> Any:
    """An attribute of v1 that is kept for saving only, and says so when it is set."""

    def get(self: Any) -> Any:
        value = getattr(self, f"_{name}")
        return default if value is None else value

    def put(self: Any, value: Any) -> None:
        object.__setattr__(self, f"_{name}", value)
        if value not in (None, default):
            warn(f"docker.{name} has no effect on an image; it is kept for saving only")

    return property(get, put)


class DockerSection(Section):
    """`environment.docker`: the image to build on. Of image, Dockerfile and build context the last one set counts."""

    __slots__ = (
        "_arguments",
        "_base_dockerfile",
        "_base_image",
        "_build_context",
        "_enabled",
        "_gpu_support",
        "_platform",
        "_registry",
        "_shared_volumes",
        "_shm_size",
        "build_arguments",
        "build_secrets",
        "build_target",
        "extra",
        "mirror",
    )

    def __init__(self) -> None:
        self._base_image: Any = None
        self._base_dockerfile: Any = None
        self._build_context: DockerBuildContext | None = None
        self._platform = DockerPlatform()
        self._registry = ContainerRegistrySection()
        self._enabled: Any = None
        self._arguments: Any = None
        self._shared_volumes: Any = None
        self._shm_size: Any = None
        self._gpu_support: Any = None
        self.build_arguments: dict[str, str] = {}
        self.build_target = ""
        self.build_secrets: dict[str, str] = {}
        self.mirror = False
        self.extra: dict[str, Any] = {}

    enabled = _kept_only("enabled", False)
    arguments = _kept_only("arguments", ())
    shared_volumes = _kept_only("shared_volumes", True)
    shm_size = _kept_only("shm_size", "2g")
    gpu_support = _kept_only("gpu_support", False)

    @property
    def base_image(self) -> Any:
        """The reference of an image, such as `python:3.12-slim`."""
        return self._base_image

    @base_image.setter
    def base_image(self, value: Any) -> None:
        self._last_wins("base_image", value)
        self._base_image = value

    @property
    def shown_image(self) -> Any:
        """`base_image` for messages: without what may be a password."""
        try:
            return check_base_image(self._base_image) if isinstance(self._base_image, str) else self._base_image
        except DefinitionError:
            return f"…@{self._base_image.rpartition('@')[2]}"

    @property
    def base_dockerfile(self) -> Any:
        """The text of a Dockerfile. Set it to text, or to the path of one, which is read at once.

        Raises `SpecificationError` for what is neither: a mistyped path is not taken as text.
        """
        return self._base_dockerfile

    @base_dockerfile.setter
    def base_dockerfile(self, value: Any) -> None:
        text = _dockerfile(value)
        self._last_wins("base_dockerfile", text)
        self._base_dockerfile = text

    @property
    def build_context(self) -> DockerBuildContext | None:
        """A folder or a git repository with a Dockerfile in it."""
        return self._build_context

    @build_context.setter
    def build_context(self, value: Any) -> None:
        context = None if value is None else DockerBuildContext.of(value)
        self._last_wins("build_context", context)
        self._build_context = context

    @property
    def platform(self) -> DockerPlatform:
        """What the image is for; text such as `linux/arm64` can be set."""
        return self._platform

    @platform.setter
    def platform(self, value: Any) -> None:
        self._platform = DockerPlatform.of(value)

    @property
    def base_image_registry(self) -> ContainerRegistrySection:
        """Address, user name and password of the base image's registry."""
        return self._registry

    @base_image_registry.setter
    def base_image_registry(self, value: Any) -> None:
        given = value is None or isinstance(value, ContainerRegistrySection)
        self._registry = (value or ContainerRegistrySection()) if given else ContainerRegistrySection.of(value)

    def _last_wins(self, name: str, value: object) -> None:
        if value is None:
            return
        for other in ("base_image", "base_dockerfile", "build_context"):
            if other != name and getattr(self, f"_{other}") is not None:
                object.__setattr__(self, f"_{other}", None)
                warn(f"docker.{name} replaces docker.{other}: an environment has one base")

    def __repr__(self) -> str:
        given = [name for name in ("base_image", "base_dockerfile", "build_context") if getattr(self, name) is not None]
        shown = {"base_image": self.shown_image}
        base = f"{given[0]}={shown.get(given[0], getattr(self, given[0]))!r}, " if given else ""
        return f"DockerSection({base}platform={self.platform!r}, base_image_registry={self.base_image_registry!r})"


class PythonSection(Section):
    """`environment.python`: what is installed, and whether anything is."""

    __slots__ = (
        "_conda",
        "_conda_file",
        "_from_requirements",
        "allow_source_builds",
        "base_conda_environment",
        "compile_bytecode",
        "extends",
        "extra",
        "interpreter_path",
        "pylock",
        "requires_python",
        "user_managed_dependencies",
    )

    def __init__(self) -> None:
        self._conda: CondaDependencies | None = CondaDependencies()
        self._conda_file: str | None = None
        self._from_requirements = False
        self.user_managed_dependencies = False
        self.interpreter_path: str | None = None
        self.base_conda_environment: str | None = None
        self.allow_source_builds = False
        self.compile_bytecode: bool | None = None
        self.pylock = ""
        self.requires_python = ""
        self.extends = ""
        self.extra: dict[str, Any] = {}

    @property
    def conda_dependencies(self) -> CondaDependencies | None:
        """Channels, conda packages and pip requirements; those of `from_pip_requirements` are in it too."""
        return self._conda

    @conda_dependencies.setter
    def conda_dependencies(self, value: CondaDependencies | None) -> None:
        if value is not None and not isinstance(value, CondaDependencies):
            raise DefinitionError(
                f"python.conda_dependencies is a CondaDependencies, got {type(value).__name__}; make one by "
                "CondaDependencies.create(conda_packages=[…], pip_packages=[…]) or CondaDependencies(FILE)"
            )
        if value is not None and self._from_requirements:
            raise DefinitionError(
                "the environment has the requirements of a file; conda_dependencies would replace them unseen: add to "
                "python.conda_dependencies, or make an Environment(name) and set conda_dependencies only"
            )
        self._conda = value
        self._conda_file = None
        if value is None:
            self._from_requirements = False

    @property
    def conda_dependencies_file(self) -> str | None:
        """The conda environment file that `conda_dependencies` was read from. Setting it reads the file."""
        return self._conda_file

    @conda_dependencies_file.setter
    def conda_dependencies_file(self, value: str | Path | None) -> None:
        if value is not None:
            self.conda_dependencies = CondaDependencies(value)
        self._conda_file = None if value is None else str(value)

    @property
    def requirements(self) -> Requirements:
        """The pip requirements as pip would read them, nested files read."""
        return Requirements() if self._conda is None else self._conda.requirements()

    @requirements.setter
    def requirements(self, value: Requirements) -> None:
        if not isinstance(value, Requirements):
            raise DefinitionError(
                f"python.requirements is what Environment.from_pip_requirements read, got {type(value).__name__}; for "
                "lines in Python use python.conda_dependencies.add_pip_package, or EnvironmentDefinition(name=…, "
                "requirements=[…])"
            )
        if self._conda and not self._from_requirements:
            raise DefinitionError(
                "the environment has conda_dependencies, and requirements would replace them unseen: use "
                "python.conda_dependencies.set_pip_requirements"
            )
        self._conda = CondaDependencies.from_requirements(value)
        self._from_requirements = True

    def __repr__(self) -> str:
        managed = f"user_managed_dependencies={self.user_managed_dependencies!r}"
        return f"PythonSection({managed}, conda_dependencies={self.conda_dependencies!r})"


def warn(message: str) -> None:
    """Tell the user in both ways: scripts show warnings, services keep logs."""
    logger.warning(message)
    warnings.warn(message, stacklevel=5)


def check_flag(name: str, value: object) -> bool:
    """`value` if it is a truth value; text such as "false" is true in Python, and was taken so."""
    if not isinstance(value, bool):
        raise DefinitionError(f"{name} is true or false, got {type(value).__name__} {value!r:.40}; remove the quotes")
    return value


def _dockerfile(value: Any) -> Any:
    if not isinstance(value, str | Path):
        return value  # told of when the environment is defined, with everything else that has a wrong type
    from prefect_environments.core.build.docker.dockerfile import read_dockerfile  # noqa: PLC0415  # only if needed

    return read_dockerfile(value)


def _no_attribute(section: Section, name: str) -> str:
    known = sorted(slot for slot in dir(type(section)) if not slot.startswith("_") and slot != "of")
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
    return f"{type(section).__name__} has no attribute {name!r}; {meant}"
