"""What core needs of a workspace. The `Workspace` block is one; tests may bring others."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretStore
from prefect_environments.core.versions import VersionStore

if TYPE_CHECKING:
    from prefect_environments.core.azure.keyvault import VaultSettings
    from prefect_environments.core.build.acr_tasks.settings import TasksSettings


class Workspace(Protocol):
    """A registry, a list of versions, and the rules for what is built."""

    @property
    def name(self) -> str: ...

    @property
    def registry_settings(self) -> RegistrySettings:
        """The registry's address and credentials, references not resolved."""

    @property
    def repository_prefix(self) -> str:
        """Path of the registry under which each environment has its repository."""

    @property
    def default_base_image(self) -> str | None: ...

    @property
    def allow_source_builds(self) -> bool: ...

    @property
    def versions(self) -> VersionStore: ...

    @property
    def secrets(self) -> SecretStore: ...

    @property
    def index_url(self) -> str | None:
        """The package index that definitions use which name none."""

    @property
    def index_credentials(self) -> Mapping[str, tuple[str, str]]:
        """User and password (values or secret references) by index URL."""


@runtime_checkable
class HasFeeds(Protocol):
    """A workspace with more private indexes and conda channels than its one index."""

    async def feed_credentials(self) -> Mapping[str, tuple[str, str]]:
        """User and password (values or secret references) by URL. Raises `DefinitionError` for a feed that is gone."""


@runtime_checkable
class KnowsVaults(Protocol):
    """A workspace that resolves references to Key Vaults."""

    @property
    def vaults(self) -> "Sequence[VaultSettings]":
        """The vaults that it knows, the default one first."""


@runtime_checkable
class BuildsElsewhere(Protocol):
    """A workspace that chooses what builds its Dockerfiles; others have them built by a Docker engine."""

    @property
    def acr_tasks(self) -> "TasksSettings | None":
        """The registry whose ACR Tasks build; `None`: a Docker engine builds. Raises `DefinitionError`."""
