"""A workspace: one registry, one list of versions, and the rules for what is built in it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from prefect_environments.blocks.azure_registry import AzureContainerRegistry
from prefect_environments.blocks.base import DOCUMENTATION_URL, LOGO_URL, EnvironmentsBlock
from prefect_environments.blocks.credentials import PackageIndexCredentials
from prefect_environments.blocks.registry import ContainerRegistry
from prefect_environments.blocks.secrets import PrefectSecretStore
from prefect_environments.blocks.versions import PrefectVersionStore
from prefect_environments.core.build.acr_tasks.settings import (
    LONGEST_RUN,
    SHORTEST_LIMIT,
    TasksSettings,
    tasks_settings,
)
from prefect_environments.core.build.builder import BuilderName
from prefect_environments.core.definition import check_base_image
from prefect_environments.core.errors import DefinitionError, NotSupportedYet
from prefect_environments.core.names import check_name, check_workspace_name, slug
from prefect_environments.core.registry_settings import LAYOUT_PREFIX, RegistrySettings
from prefect_environments.core.secrets import SecretStore
from prefect_environments.core.versions import FolderVersionStore, VersionStore

if TYPE_CHECKING:
    from prefect_environments.core.environment import Environment

# A repository's path (distribution-spec, "Pulling manifests"): components of letters and digits with separators.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")


class Workspace(EnvironmentsBlock):
    """Where environments are built and registered: a registry for images, a list of versions, and policies.

    Example:
        Load a stored workspace:
        ```python
        from prefect_environments.blocks import Workspace

        workspace = Workspace.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "Environments Workspace"
    _documentation_url = DOCUMENTATION_URL
    _logo_url = LOGO_URL

    name: str = Field(
        default=...,
        description="The workspace's name: 1 to 60 letters, digits, '.', '_' and '-'. Versions belong to it.",
    )
    # Each has a required field that the other lacks: a stored union of blocks is read back by its shape.
    registry: AzureContainerRegistry | ContainerRegistry = Field(
        default=..., description="The registry that keeps the images."
    )
    repository_prefix: str = Field(
        default="environments", description="Path in the registry under which each environment has its repository."
    )
    default_base_image: str | None = Field(
        default=None, description="Base image of environments that name none, such as python:3.12-slim."
    )
    allow_source_builds: bool = Field(
        default=False,
        description="Build pure-Python packages without a wheel for every environment, not only where it is asked.",
    )
    builder: BuilderName = Field(
        default="docker",
        description="What builds Dockerfiles: docker (an engine beside the flow) or acr-tasks (the Azure registry).",
    )
    build_timeout: int = Field(
        default=3600,
        ge=SHORTEST_LIMIT,
        le=LONGEST_RUN,
        description="Seconds that ACR Tasks may take to build a Dockerfile.",
    )
    build_agent_pool: str | None = Field(
        default=None, description="Agent pool of the registry for ACR Tasks; Azure's shared agents if none is given."
    )
    build_as_caller: bool = Field(
        default=False,
        description="ACR Tasks push as the registry's credentials: for a registry with permissions by repository.",
    )
    index: PackageIndexCredentials | None = Field(
        default=None, description="Private package index to resolve from; the public one if none is given."
    )
    local_folder: str | None = Field(
        default=None,
        description="Folder that keeps the versions instead of the Prefect API, for work without a server.",
    )

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        return check_workspace_name(name)

    @field_validator("default_base_image")
    @classmethod
    def _no_credentials(cls, reference: str | None) -> str | None:
        return reference if reference is None else check_base_image(reference, "default_base_image")

    @field_validator("repository_prefix")
    @classmethod
    def _legal_path(cls, prefix: str) -> str:
        if not _REPOSITORY.fullmatch(prefix):
            raise DefinitionError(
                "repository_prefix is a path such as team/environments: lower-case letters, digits, . _ - /"
            )
        return prefix

    @model_validator(mode="after")
    def _can_build(self) -> Self:
        _ = self.acr_tasks
        return self

    @classmethod
    def local(cls, folder: str | Path, *, name: str = "local") -> Self:
        """A workspace in a folder: images in `images`, versions in `versions`; no registry and no server needed."""
        path = Path(folder).expanduser().absolute()
        registry = ContainerRegistry(address=f"{LAYOUT_PREFIX}{path / 'images'}")
        return cls(name=name, registry=registry, local_folder=str(path))

    @classmethod
    def from_config(cls, *_: object, **__: object) -> Self:
        """Not yet there: a workspace of Azure ML's `config.json`."""
        raise NotSupportedYet(
            "Workspace.from_config reads an Azure workspace's config.json, which comes with a later release; "
            'use Workspace.load("NAME") for a stored workspace, or Workspace.local(FOLDER)'
        )

    @property
    def versions(self) -> VersionStore:
        """The workspace's registered versions: in its folder if it has one, else on the Prefect API."""
        if self.local_folder is not None:
            return FolderVersionStore(Path(self.local_folder) / "versions", self.name)
        return PrefectVersionStore(self.name)

    @property
    def environments(self) -> "Mapping[str, Environment]":
        """The newest version of every environment by its name, curated ones among them, read when asked for."""
        from prefect_environments.core.registration import Environments  # noqa: PLC0415  # aiohttp and so on

        return Environments(self)

    @property
    def secrets(self) -> SecretStore:
        """What resolves secret references in this workspace."""
        return PrefectSecretStore()

    @property
    def registry_settings(self) -> RegistrySettings:
        """How core reaches the registry, references not resolved."""
        return self.registry.settings()

    @property
    def acr_tasks(self) -> TasksSettings | None:
        """The registry whose ACR Tasks build, if they do. Raises `DefinitionError` for one that cannot."""
        if self.builder != "acr-tasks":
            return None
        return tasks_settings(
            self.registry_settings.azure,
            timeout=self.build_timeout,
            agent_pool=self.build_agent_pool or "",
            as_caller=self.build_as_caller,
        )

    @property
    def index_url(self) -> str | None:
        """The private package index, if there is one."""
        return self.index.url if self.index else None

    @property
    def index_credentials(self) -> dict[str, tuple[str, str]]:
        """The index's user and password by its URL: values, or references that core resolves at the last moment."""
        if self.index is None or self.index.username is None:
            return {}
        password = self.index.password.get_secret_value() if self.index.password else ""
        return {self.index.url: (self.index.username, password)}

    def repository_path(self, name: str) -> str:
        """The path of an environment's repository in the registry. Raises `NameNotAllowed`."""
        return f"{self.repository_prefix}/{slug(check_name(name))}"
