"""`Environment`: the mutable surface with the attribute paths of Azure ML's SDK v1.

`definition()` snapshots it as the frozen `EnvironmentDefinition`, which is what is hashed, built and registered.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prefect_environments.core import conversion
from prefect_environments.core.conda_dependencies import CondaDependencies
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.formats import requirements as requirements_format
from prefect_environments.core.formats.requirements import Requirements
from prefect_environments.core.names import check_name
from prefect_environments.core.sections import DockerBuildContext, DockerSection, PythonSection, Section

if TYPE_CHECKING:
    from prefect_environments.core.build_details import ImageBuildDetails
    from prefect_environments.core.checks import Finding
    from prefect_environments.core.compare import VersionDiff
    from prefect_environments.core.ready import ReadyImage
    from prefect_environments.core.verify import Verification
    from prefect_environments.core.versions import VersionRecord
    from prefect_environments.core.workspace import Workspace

logger = logging.getLogger(__name__)


class Environment(Section):
    """An ML environment: a base image, Python packages, and variables for the jobs that run in it.

    Example:
        ```python
        env = Environment.from_pip_requirements("iris", "requirements.txt")
        env.docker.base_image = "registry.example.com/base/python:3.12"
        env.environment_variables["OMP_NUM_THREADS"] = "4"
        env = env.register(workspace)
        ```
    """

    __slots__ = (
        "_digest",
        "_reference",
        "_version",
        "allow_literal_secrets",
        "asset_id",
        "databricks",
        "description",
        "docker",
        "environment_variables",
        "extra",
        "inferencing_stack_version",
        "name",
        "python",
        "r",
        "spark",
        "tags",
    )

    def __init__(self, name: str) -> None:
        self._fill(check_name(name))

    def _fill(self, name: str) -> None:
        self.name = name
        self.description = ""
        self.tags: dict[str, str] = {}
        self.environment_variables: dict[str, str] = {}
        self.allow_literal_secrets = False
        self.docker = DockerSection()
        self.python = PythonSection()
        self.spark: Any = None
        """Kept as it came for `save_to_directory`, and ignored by builds; so are `databricks` and `r`."""
        self.databricks: Any = None
        self.r: Any = None
        self.inferencing_stack_version: str | None = None
        self.asset_id: str | None = None
        self.extra: dict[str, Any] = {}
        self._version: int | None = None
        self._digest = self._reference = ""

    @classmethod
    def from_pip_requirements(cls, name: str, file_path: str | Path, pip_version: str | None = None) -> Self:
        """An environment of a requirements file, read as pip reads it.

        `pip_version` pins the pip in the environment. Raises `RequirementsError`, naming file and line, for what
        cannot be read, and `NameNotAllowed`.
        """
        environment = cls(name)
        found = requirements_format.read(Path(file_path))
        if pip_version is not None:
            pinned = requirements_format.parse([f"pip=={pip_version}"], origin="pip_version").packages
            found = replace(found, packages=tuple(sorted({*found.packages, *pinned})))
        for warning in found.warnings:
            logger.warning(warning)
        environment.python.requirements = found
        return environment

    @classmethod
    def from_conda_specification(cls, name: str, file_path: str | Path) -> Self:
        """An environment of a conda environment file. Raises `SpecificationError`, naming file and line."""
        environment = cls(name)
        conda = CondaDependencies(file_path)
        for warning in conda.warnings:
            logger.warning(warning)
        environment.python.conda_dependencies = conda
        return environment

    @classmethod
    def from_docker_image(
        cls,
        name: str,
        image: str,
        container_registry: object | None = None,
        conda_specification: str | Path | None = None,
        pip_requirements: str | Path | None = None,
    ) -> Self:
        """An environment on an image: as it is (user-managed), or with packages of a conda file or requirements file
        on it. `container_registry` has address, username and password (a secret reference)."""
        environment = cls._with_packages(name, conda_specification, pip_requirements)
        environment.docker.base_image = image
        if container_registry is not None:
            environment.docker.base_image_registry = container_registry
        return environment

    @classmethod
    def from_dockerfile(
        cls,
        name: str,
        dockerfile: str | Path,
        conda_specification: str | Path | None = None,
        pip_requirements: str | Path | None = None,
    ) -> Self:
        """The same for the image that a Dockerfile describes: its path, or its text.

        Raises `SpecificationError` for a path where no file is.
        """
        environment = cls._with_packages(name, conda_specification, pip_requirements)
        environment.docker.base_dockerfile = dockerfile
        return environment

    @classmethod
    def from_docker_build_context(cls, name: str, docker_build_context: DockerBuildContext) -> Self:
        """The image that a Dockerfile in a folder or git repository describes, as it is (user-managed)."""
        environment = cls._with_packages(name, None, None)
        environment.docker.build_context = docker_build_context
        return environment

    @classmethod
    def from_pylock(cls, name: str, file_path: str | Path) -> Self:
        """An environment of a lock (PEP 751, `pylock.toml`), which is used as it is: hashes are checked, nothing is
        resolved and nothing added. Raises `SpecificationError`."""
        from prefect_environments.core.formats import pylock  # noqa: PLC0415  # only where it is needed

        environment = cls(name)
        environment.python.pylock = pylock.read(Path(file_path))
        return environment

    @classmethod
    def from_pyproject(
        cls, name: str, path: str | Path, *, extras: Sequence[str] = (), groups: Sequence[str] = ()
    ) -> Self:
        """An environment of a project's dependencies; of the `uv.lock` beside its `pyproject.toml` where there is one.

        `extras` and dependency `groups` are taken as well. The project itself is not installed. Raises
        `SpecificationError`.
        """
        from prefect_environments.core.formats import pyproject  # noqa: PLC0415  # only where it is needed

        found = pyproject.read(Path(path), extras=extras, groups=groups)
        environment = cls(name)
        if found.pylock:
            environment.python.pylock = found.pylock
        else:
            environment.python.requirements = Requirements(packages=found.requirements)
            environment.python.requires_python = found.requires_python
        return environment

    @classmethod
    def extend(
        cls,
        base: str,
        version: int,
        *,
        name: str | None = None,
        pip: Sequence[str] = (),
        conda: Sequence[str] = (),
        channels: Sequence[str] = (),
    ) -> Self:
        """An environment on a registered one: what that has stays as it is, and only what is added is new.

        `name` is `{base}-extended` unless given. What asks for another version of a package that the base has is
        refused when the environment is built. Raises `NameNotAllowed`, `DefinitionError`.
        """
        environment = cls(f"{base}-extended" if name is None else name)
        packages = CondaDependencies.create(conda_packages=list(conda), pip_packages=list(pip))
        for channel in channels:
            packages.add_channel(channel)
        environment.python.conda_dependencies = packages
        environment.python.extends = f"{base}:{version}"
        environment.definition()
        return environment

    @classmethod
    def from_definition(cls, definition: EnvironmentDefinition) -> Self:
        """The environment whose `definition()` equals `definition`."""
        environment = cls.unchecked(definition.name)
        conversion.fill(environment, definition)
        return environment

    @classmethod
    def unchecked(cls, name: str) -> Self:
        """An environment whose name is checked when it is defined: files may bring reserved ones."""
        environment = cls.__new__(cls)
        environment._fill(name)
        return environment

    @classmethod
    def _with_packages(cls, name: str, conda: str | Path | None, pip: str | Path | None) -> Self:
        if conda is not None and pip is not None:
            raise DefinitionError(
                "conda_specification and pip_requirements are both given; put the requirements into the conda file's "
                "pip section (- pip: [-r requirements.txt])"
            )
        if conda is not None:
            return cls.from_conda_specification(name, conda)
        environment = cls(name) if pip is None else cls.from_pip_requirements(name, pip)
        environment.python.user_managed_dependencies = pip is None
        return environment

    @property
    def version(self) -> int | None:
        """The registered version that this is; `None` for one that was made here or loaded from a file."""
        return self._version

    @property
    def digest(self) -> str:
        """The digest of a registered version's image."""
        return self._digest

    @property
    def reference(self) -> str:
        """`repository@sha256:…` of a registered version's image."""
        return self._reference

    def definition(self) -> EnvironmentDefinition:
        """A frozen snapshot. Raises `DefinitionError` for what is wrong, such as a literal registry password."""
        return conversion.to_definition(self)

    def clone(self, new_name: str) -> Self:
        """A copy under another name, which no later change of this one reaches. It is not registered."""
        other = copy.deepcopy(self)
        other.name = check_name(new_name)
        other.extra.pop("version", None)
        other._version, other._digest, other._reference = None, "", ""
        return other

    def check(self) -> "tuple[Finding, ...]":
        """What is wrong or unwise, with advice; without a network."""
        from prefect_environments.core.checks import check_environment  # noqa: PLC0415  # its tables are only for this

        return check_environment(self)

    def save_to_directory(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the folder that Azure ML's SDK v1 reads, whole or not at all; see `formats.azureml_v1.save`."""
        from prefect_environments.core.formats import azureml_v1  # noqa: PLC0415  # it knows this class

        azureml_v1.save(self, Path(path), overwrite=overwrite)

    @classmethod
    def load_from_directory(cls, path: str | Path) -> Self:
        """Read such a folder, from SDK v1 too; see `formats.azureml_v1.load`."""
        from prefect_environments.core.formats import azureml_v1  # noqa: PLC0415  # it knows this class

        return azureml_v1.load(cls, Path(path))

    @classmethod
    def load_from_yaml(cls, path: str | Path, name: str | None = None) -> Self:
        """Read an environment of Azure ML v2 (YAML). A given `name` wins over the file's."""
        from prefect_environments.core.formats import azureml_v2  # noqa: PLC0415  # only where it is needed

        return cls.from_definition(azureml_v2.read(path, name=name).definition)

    def register(self, workspace: "Workspace") -> Self:
        """Build the image if the registry lacks it, and record the version; gives the registered environment.

        An unchanged environment gives the version that it has. Raises the errors of resolving, building and of the
        registry; no version is there without its image.
        """
        from prefect_environments.core import registration  # noqa: PLC0415  # aiohttp and so on: only to build

        return self._of(registration.register(workspace, self.definition()))

    def build_local(
        self,
        workspace: "Workspace",
        platform: str | None = None,
        *,
        useDocker: bool = True,  # noqa: N803 - the names of SDK v1
        pushImageToWorkspaceAcr: bool = True,  # noqa: N803
    ) -> "ReadyImage":
        """Build and register from this machine, or find what is there. The image goes into the workspace's registry
        whatever `pushImageToWorkspaceAcr` says: it is made there.

        Without `useDocker`, an environment with the same versions is made on this machine, too, and `python_path` is
        its interpreter. Raises `JobError` where this machine cannot have it, such as for want of that Python.
        """
        from prefect_environments.core import registration  # noqa: PLC0415  # aiohttp and so on: only to build

        wanted = copy.deepcopy(self) if platform else self
        if platform:
            wanted.docker.platform = platform
        ready = registration.details(workspace, registration.register(workspace, wanted.definition()))
        if useDocker:
            return ready
        from prefect_environments.core.jobs.run import make_local  # noqa: PLC0415  # only where it is asked for

        return make_local(workspace, ready)

    def build(self, workspace: "Workspace", image_build_compute: str | None = None) -> "ImageBuildDetails":
        """Begin to build and register in the background, and return at once; `wait_for_completion` of what it gives
        shows the log, and raises if the build fails. A Dockerfile is built by what the workspace names as its builder.

        `image_build_compute` named a cluster in SDK v1 and counts for nothing here. What is wrong with the definition
        is raised at once. The build ends with this process: wait for it.
        """
        from prefect_environments.core import build_details  # noqa: PLC0415  # aiohttp and so on: only to build

        if image_build_compute is not None:
            logger.warning("image_build_compute is ignored: the workspace's builder builds")
        return build_details.begin(workspace, self.definition())

    def get_image_details(self, workspace: "Workspace") -> "ReadyImage":
        """The image of a registered version, or of the version that this environment equals.

        Raises `VersionNotFound` for one that is not registered, `NotFound` if its image is gone.
        """
        from prefect_environments.core import registration  # noqa: PLC0415  # aiohttp and so on: only here

        record = registration.find(workspace, self.definition(), self._version)
        return registration.details(workspace, record)

    @classmethod
    def get(cls, workspace: "Workspace", name: str, version: int | str | None = None, label: str | None = None) -> Self:
        """A registered environment: the version asked for, that of a label, else the newest.

        Raises `VersionNotFound`, and `DefinitionError` if both are given.
        """
        from prefect_environments.core import registration  # noqa: PLC0415  # aiohttp and so on: only here

        if version is not None and label is not None:
            raise DefinitionError("version and label are both given; give one of them")
        return cls._of(registration.get(workspace, name, version, label))

    @classmethod
    def list(cls, workspace: "Workspace") -> "dict[str, Self]":
        """The newest version of every environment, by name."""
        from prefect_environments.core import registration  # noqa: PLC0415  # aiohttp and so on: only here

        return {record.name: cls._of(record) for record in registration.newest(workspace)}

    @staticmethod
    def compare(workspace: "Workspace", name: str, a: int, b: int | None = None) -> "VersionDiff":
        """What differs between two versions, `b` the newest one unless given; shows itself in a notebook."""
        from prefect_environments.core.compare import compare  # noqa: PLC0415  # aiohttp and so on: only here

        return compare(workspace, name, a, b)

    @staticmethod
    def verify(
        workspace: "Workspace", name: str, version: int | None = None, *, full: bool = False, rebuild: bool = False
    ) -> "Verification":
        """Whether a version still is what was registered; see `core.verify.verify_version`."""
        from prefect_environments.core.verify import verify  # noqa: PLC0415  # aiohttp and so on: only here

        return verify(workspace, name, version, full=full, rebuild=rebuild)

    @staticmethod
    def add_private_pip_wheel(workspace: "Workspace", file_path: str | Path, exist_ok: bool = False) -> str:
        """Keep a wheel in the workspace's registry; gives the requirement that names it by its sha256.

        Example:
            ```python
            line = Environment.add_private_pip_wheel(workspace, "dist/ours-1.0-py3-none-any.whl", exist_ok=True)
            env.python.conda_dependencies.add_pip_package(line)
            ```
        Raises `AlreadyExists` for one that is there already, unless `exist_ok`, and `PackageError` for no wheel.
        """
        from prefect_environments.core import registration  # noqa: PLC0415  # aiohttp and so on: only here

        return registration.add_wheel(workspace, Path(file_path), exist_ok=exist_ok)

    @classmethod
    def _of(cls, record: "VersionRecord") -> Self:
        environment = cls.from_definition(EnvironmentDefinition(**record.definition))
        environment._version, environment._digest = record.version or None, record.digest
        environment._reference = record.reference
        return environment

    def __repr__(self) -> str:
        version = f", version={self._version}" if self._version else ""
        return f"Environment(name={self.name!r}{version}, base_image={self.docker.shown_image!r})"

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Pairs of the definition's fields, as pydantic's models give: `dict(environment)` is its stored form."""
        return iter(self.definition().model_dump(mode="json").items())
