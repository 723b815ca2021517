"""A workspace: one registry, one list of versions, and the rules for what is built in it."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from prefect_environments.blocks.azure import AzureCredentials
from prefect_environments.blocks.azure_registry import AzureContainerRegistry
from prefect_environments.blocks.base import DOCUMENTATION_URL, LOGO_URL, EnvironmentsBlock
from prefect_environments.blocks.context import Context
from prefect_environments.blocks.credentials import PackageIndexCredentials
from prefect_environments.blocks.keyvault import Keyvault
from prefect_environments.blocks.loading import check_work_pool, load_block
from prefect_environments.blocks.registry import ContainerRegistry
from prefect_environments.blocks.secrets import WorkspaceSecretStore
from prefect_environments.blocks.versions import PrefectVersionStore
from prefect_environments.core import loop, workspace_config
from prefect_environments.core.azure.keyvault import VaultSettings
from prefect_environments.core.build.acr_tasks.settings import (
    LONGEST_RUN,
    SHORTEST_LIMIT,
    TasksSettings,
    tasks_settings,
)
from prefect_environments.core.build.builder import BuilderName
from prefect_environments.core.definition import check_base_image
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.findings import Finding
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

    # The order is that of the form in the UI: what few need comes last.
    name: str = Field(
        default=...,
        description="The workspace's name: 1 to 60 letters, digits, '.', '_' and '-'. Versions belong to it.",
    )
    # Each has a required field that the other lacks: a stored union of blocks is read back by its shape.
    registry: AzureContainerRegistry | ContainerRegistry = Field(
        default=..., description="The registry that keeps the images."
    )
    keyvault: Keyvault | None = Field(
        default=None,
        title="Key Vault",
        description="The vault that references such as @Microsoft.KeyVault(VaultName=…;SecretName=…) are read from.",
    )
    credentials: AzureCredentials | None = Field(
        default=None,
        description="Who signs in to an Azure registry and to vaults whose blocks name no credentials of their own.",
    )
    default_base_image: str | None = Field(
        default=None, description="Base image of environments that name none, such as python:3.12-slim."
    )
    index: PackageIndexCredentials | None = Field(
        default=None,
        title="Package Index",
        description="Private package index to resolve from; the public one if none is given.",
    )
    builder: BuilderName = Field(
        default="docker",
        description="What builds Dockerfiles: docker (an engine beside the flow) or acr-tasks (the Azure registry).",
    )
    work_pool: str | None = Field(default=None, description="Work pool that jobs run in if they name none.")
    repository_prefix: str = Field(
        default="environments", description="Path in the registry under which each environment has its repository."
    )
    feeds: list[str] = Field(
        default_factory=list,
        title="More Private Feeds",
        description='More Package Index Credentials blocks, for extra indexes and conda channels: names, as ["conda"].',
    )
    known_vaults: list[str] = Field(
        default_factory=list,
        title="More Key Vaults",
        description='Other vaults that references may name, read by the same identity: names, as ["shared"].',
    )
    allow_unknown_vaults: bool = Field(
        default=False, description="Accept references to any vault of the same cloud, read by the same identity."
    )
    allow_source_builds: bool = Field(
        default=False,
        description="Build pure-Python packages without a wheel for every environment, not only where it is asked.",
    )
    build_timeout: int = Field(
        default=3600,
        ge=SHORTEST_LIMIT,
        le=LONGEST_RUN,
        title="ACR Tasks: Time Limit",
        description="Seconds that ACR Tasks may take to build a Dockerfile.",
    )
    build_agent_pool: str | None = Field(
        default=None,
        title="ACR Tasks: Agent Pool",
        description="Agent pool of the registry; Azure's shared agents if none is given.",
    )
    build_as_caller: bool = Field(
        default=False,
        title="ACR Tasks: Push as Caller",
        description="Push as the registry's credentials: for a registry with permissions by repository.",
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

    @field_validator("default_base_image", "work_pool", "build_agent_pool", "local_folder", mode="after")
    @classmethod
    def _no_empty_text(cls, text: str | None) -> str | None:
        return (text or "").strip() or None  # the form has no other way to leave a text out

    @field_validator("feeds", "known_vaults", mode="after")
    @classmethod
    def _no_blanks(cls, lines: list[str]) -> list[str]:
        return [line.strip() for line in lines if line.strip()]  # the form adds empty rows

    @model_validator(mode="after")
    def _lend(self) -> Self:
        # first, as the other validators look at what comes of it; so that methods of both blocks work, too
        if self.keyvault is not None:
            self.keyvault = self.keyvault.within(self._identified)
        self.registry = self.registry.within(self.context)
        return self

    @model_validator(mode="after")
    def _fitting_vaults(self) -> Self:
        if self.keyvault is None and (self.known_vaults or self.allow_unknown_vaults):
            raise DefinitionError(
                "known_vaults and allow_unknown_vaults are read with the credentials of the field keyvault, which is "
                "not set: set it to a Keyvault block"
            )
        _ = self.vaults
        return self

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
    def from_config(cls, path: str | Path | None = None, auth: object = None, _file_name: str | None = None) -> Self:
        """The stored workspace that `path` names (a block's name, or a path with a slash or dot in it), else the
        variable `PREFECT_ENVIRONMENTS_WORKSPACE`, else the `workspace_name` of Azure ML's `.azureml/config.json` or
        `config.json` here or in a folder above, else the block `default`.

        `auth` has no effect: who signs in is a matter of the blocks. Raises `DefinitionError` that says what was tried,
        `SpecificationError` for a file that cannot be read, and `VersionError` where the Prefect API does not answer.
        """
        if auth is not None:
            warnings.warn(
                "Workspace.from_config: auth has no effect; the workspace, its registry and its Key Vault have "
                "credentials of their own (AzureCredentials blocks)",
                stacklevel=2,
            )
        choice = workspace_config.choose(path, file_name=_file_name)
        return loop.run(load_block(cls, choice.block, choice.missing()))

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
        """What resolves secret references in this workspace: Secret blocks, and the Key Vaults that it knows."""
        return WorkspaceSecretStore(self.vaults, allow_unknown=self.allow_unknown_vaults)

    @property
    def vaults(self) -> list[VaultSettings]:
        """The Key Vaults that it knows, the default one first; its registry's own vault is the last."""
        found = list(self.context.vaults)
        if self.registry.keyvault is not None:
            own = self.registry.keyvault.within(self._identified).settings()
            found += [own] if own.host not in {known.host for known in found} else []
        return found

    @property
    def context(self) -> Context:
        """What counts for a registry that names none of its own: who signs in, and which vaults are known."""
        lent = self._identified
        vaults = self.keyvault.within(lent).known_vaults(self.known_vaults) if self.keyvault else []
        return replace(lent, vaults=tuple(vaults), allow_unknown=self.allow_unknown_vaults)

    @property
    def _identified(self) -> Context:
        if self.credentials is None:
            return Context()
        name = self.credentials._block_document_name
        return Context(self.credentials.identity(), f"credentials {name!r} of the workspace" if name else "")

    def get_default_keyvault(self) -> Keyvault:
        """The workspace's Key Vault. Raises `DefinitionError` if it has none."""
        if self.keyvault is None:
            raise DefinitionError(
                f"the workspace {self.name!r} has no Key Vault; set its field keyvault to a Keyvault block"
            )
        return self.keyvault.within(self._identified)

    def check(self, *, deleting: bool = False) -> list[Finding]:
        """What works, and what to fix: sign-in, registry, pulling, pushing, vaults, versions, indexes, what builds;
        locking where registered images are to be locked, and with `deleting` whether images may be deleted.

        Stores nothing: an upload is opened and cancelled. Raises nothing for what does not work.
        """
        return loop.run(self.acheck(deleting=deleting))

    async def acheck(self, *, deleting: bool = False) -> list[Finding]:
        """The same for code that runs in a loop."""
        from prefect_environments.core.azure.acr_rights import check_rights  # noqa: PLC0415
        from prefect_environments.core.checking import check  # noqa: PLC0415  # clients of all that it looks at

        path = f"{self.repository_prefix}/check"
        found = [
            *await check(self),
            *await check_rights(self.registry_settings, self.secrets, path, deleting=deleting),
        ]
        return [*found, await check_work_pool(self.work_pool)] if self.work_pool else found

    @property
    def registry_settings(self) -> RegistrySettings:
        """How core reaches the registry, references not resolved."""
        return self.registry.within(self.context).settings()

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

    async def feed_credentials(self) -> dict[str, tuple[str, str]]:
        """User and password (values or references) of `feeds` by URL. Raises `DefinitionError` for one that is gone,
        and `VersionError` where the Prefect API does not answer."""
        found = {}
        for name in self.feeds:
            missing = DefinitionError(
                f"feeds of the workspace {self.name!r} names {name!r}, but there is no Package Index Credentials block "
                "of that name; make it, or remove it from feeds"
            )
            feed = await load_block(PackageIndexCredentials, name, missing)
            if feed.username is not None:
                found[feed.url] = (feed.username, feed.password.get_secret_value() if feed.password else "")
        return found

    def repository_path(self, name: str) -> str:
        """The path of an environment's repository in the registry. Raises `NameNotAllowed`."""
        return f"{self.repository_prefix}/{slug(check_name(name))}"
