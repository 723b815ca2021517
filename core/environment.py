"""`Environment`: the mutable surface with the attribute paths of Azure ML's SDK v1.

`definition()` snapshots it as the frozen `EnvironmentDefinition`, which is what is hashed, built and registered.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, NotSupportedYet
from prefect_environments.core.formats import requirements as requirements_format
from prefect_environments.core.formats.requirements import Requirements
from prefect_environments.core.names import check_name
from prefect_environments.core.secrets import SecretReference, SecretValue

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ContainerRegistrySection:
    """Where a base image comes from, if not from a public registry or the workspace's own."""

    address: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    """A secret reference, or a value that came from a `Keyvault` or Secret block and remembers its reference."""


@dataclass(slots=True)
class DockerSection:
    """`environment.docker`: the image to build on."""

    base_image: str | None = None
    base_dockerfile: str | None = None
    build_context: str | None = None
    platform: str = "linux/amd64"
    base_image_registry: ContainerRegistrySection = field(default_factory=ContainerRegistrySection)


@dataclass(slots=True)
class PythonSection:
    """`environment.python`: what is installed, and whether anything is."""

    user_managed_dependencies: bool = False
    interpreter_path: str | None = None
    conda_dependencies: object | None = None
    """A later release reads it; setting it is refused when the environment is defined."""
    requirements: Requirements = field(default_factory=Requirements)
    allow_source_builds: bool = False


class Environment:
    """An ML environment: a base image, Python packages, and variables for the jobs that run in it.

    Example:
        ```python
        env = Environment.from_pip_requirements("iris", "requirements.txt")
        env.docker.base_image = "registry.example.com/base/python:3.12"
        env.environment_variables["OMP_NUM_THREADS"] = "4"
        ```
    """

    __slots__ = ("description", "docker", "environment_variables", "name", "python", "tags")

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        self.description = ""
        self.tags: dict[str, str] = {}
        self.environment_variables: dict[str, str] = {}
        self.docker = DockerSection()
        self.python = PythonSection()

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

    def __repr__(self) -> str:
        return f"Environment(name={self.name!r}, base_image={self.docker.base_image!r})"

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Pairs of the definition's fields, as pydantic's models give: `dict(environment)` is its stored form."""
        return iter(self.definition().model_dump(mode="json").items())

    def definition(self) -> EnvironmentDefinition:
        """A frozen snapshot. Raises `DefinitionError` for what is wrong, such as a literal registry password."""
        if self.python.conda_dependencies is not None:
            raise NotSupportedYet(
                f"the environment {self.name!r} sets python.conda_dependencies, but conda environments are not built "
                "by this release; use from_pip_requirements"
            )
        found = self.python.requirements
        if not isinstance(found, Requirements):
            raise DefinitionError(
                f"python.requirements is what Environment.from_pip_requirements read, got {type(found).__name__}; for "
                "lines in Python use EnvironmentDefinition(name=…, requirements=[…])"
            )
        return EnvironmentDefinition(
            name=self.name,
            description=self.description,
            tags=dict(self.tags),
            environment_variables={name: _as_stored(v) for name, v in self.environment_variables.items()},
            base_image=_base_image(self.docker),
            base_image_username=_as_stored(self.docker.base_image_registry.username or ""),
            base_image_password=_password(self.docker.base_image_registry.password),
            platform=self.docker.platform,
            requirements=found.packages,
            constraints=found.constraints,
            index_url=found.index_url or "",
            extra_index_urls=found.extra_index_urls,
            find_links=found.find_links,
            no_index=found.no_index,
            pre=found.pre,
            only_binary=found.only_binary,
            require_hashes=found.require_hashes,
            allow_source_builds=self.python.allow_source_builds,
            dockerfile=self.docker.base_dockerfile or "",
            build_context=self.docker.build_context or "",
            user_managed=self.python.user_managed_dependencies,
            interpreter_path=self.python.interpreter_path or "",
        )


def _as_stored(value: object) -> str:
    """A value that came from a secret store as its reference; anything else as text."""
    if isinstance(value, SecretValue):
        return str(value.reference)
    if not isinstance(value, str):
        raise DefinitionError(f"variables and credentials are text, got {type(value).__name__}; quote the value")
    return value


def _password(value: str | None) -> str:
    stored = _as_stored(value or "")
    if stored and not SecretReference.is_reference(stored):
        raise DefinitionError(
            "docker.base_image_registry.password is a literal value, which would be stored; use a reference "
            '("secret:NAME" for a Prefect Secret block), or a value from a key vault block'
        )
    return stored


def _base_image(docker: DockerSection) -> str:
    """The base image's full reference; a leading slash is joined to the registry's address, as in Azure ML."""
    image, address = docker.base_image or "", docker.base_image_registry.address
    for name, value in (("base_image", image), ("base_image_registry.address", address or "")):
        if not isinstance(value, str):
            raise DefinitionError(f"docker.{name} must be text, got {type(value).__name__}: is there a stray comma?")
    if not address or not image:
        return image
    host = address.removeprefix("https://").rstrip("/")
    return image if image.startswith(f"{host}/") else f"{host}/{image.lstrip('/')}"
