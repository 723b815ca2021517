"""A workspace whose versions are listed once, instead of being asked for by every environment."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from prefect_environments.core.names import slug
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretStore
from prefect_environments.core.versions import VersionRecord, VersionStore
from prefect_environments.core.workspace import BuildsElsewhere, HasFeeds, KnowsVaults, Workspace

if TYPE_CHECKING:
    from prefect_environments.core.azure.keyvault import VaultSettings
    from prefect_environments.core.build.acr_tasks.settings import TasksSettings


class ListedVersions:
    """A `VersionStore` that knows the newest versions as they were listed, and those that it registered since.

    What others register meanwhile is seen when a version is registered: its store hands out the number. All that is
    not told here is the store's own.
    """

    @classmethod
    async def of(cls, store: VersionStore) -> VersionStore:
        """List the versions of `store` once."""
        return cast("VersionStore", cls(store, await store.names(archived=True)))

    def __init__(self, store: VersionStore, listed: Sequence[VersionRecord]) -> None:
        self._store = store
        self._newest = {slug(record.name): record for record in listed}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def newest(self, name: str) -> VersionRecord | None:
        found = self._newest.get(slug(name))
        if found is not None and found.name != name:
            return await self._store.newest(name)  # which says that the name is taken
        return found

    async def get(self, name: str, version: int) -> VersionRecord:
        found = self._newest.get(slug(name))
        if found is not None and (found.name, found.version) == (name, version):
            return found
        return await self._store.get(name, version)

    async def register(self, draft: VersionRecord) -> VersionRecord:
        record = await self._store.register(draft)
        self._newest[slug(record.name)] = record
        return record


class ListedWorkspace:
    """A workspace with other versions; all else is as in the one that is given."""

    def __init__(self, workspace: Workspace, versions: VersionStore) -> None:
        self._workspace = workspace
        self._versions = versions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workspace, name)

    # what the protocols name is spelled out: `isinstance` does not see what __getattr__ gives

    @property
    def name(self) -> str:
        return self._workspace.name

    @property
    def registry_settings(self) -> RegistrySettings:
        return self._workspace.registry_settings

    @property
    def repository_prefix(self) -> str:
        return self._workspace.repository_prefix

    @property
    def default_base_image(self) -> str | None:
        return self._workspace.default_base_image

    @property
    def allow_source_builds(self) -> bool:
        return self._workspace.allow_source_builds

    @property
    def versions(self) -> VersionStore:
        return self._versions

    @property
    def secrets(self) -> SecretStore:
        return self._workspace.secrets

    @property
    def index_url(self) -> str | None:
        return self._workspace.index_url

    @property
    def index_credentials(self) -> Mapping[str, tuple[str, str]]:
        return self._workspace.index_credentials

    async def feed_credentials(self) -> Mapping[str, tuple[str, str]]:
        return await self._workspace.feed_credentials() if isinstance(self._workspace, HasFeeds) else {}

    @property
    def vaults(self) -> "Sequence[VaultSettings]":
        return self._workspace.vaults if isinstance(self._workspace, KnowsVaults) else ()

    @property
    def acr_tasks(self) -> "TasksSettings | None":
        return self._workspace.acr_tasks if isinstance(self._workspace, BuildsElsewhere) else None
