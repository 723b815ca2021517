"""A workspace whose versions are listed once, instead of being asked for by every environment."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect_environments.core.names import slug
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretStore
from prefect_environments.core.shelf import Book
from prefect_environments.core.versions import VersionRecord, VersionStore, last_used
from prefect_environments.core.workspace import BuildsElsewhere, HasFeeds, KnowsVaults, Workspace

if TYPE_CHECKING:
    from prefect_environments.core.azure.keyvault import VaultSettings
    from prefect_environments.core.build.acr_tasks.settings import TasksSettings


class ListedVersions:
    """A `VersionStore` that knows the versions as they were listed, and those that it registered since.

    What others register meanwhile is seen when a version is registered: its store hands out the number. All that is
    not told here is the store's own.
    """

    @classmethod
    async def of(cls, store: VersionStore) -> "ListedVersions":
        """List the versions of `store` once."""
        return cls(store, await store.books())

    def __init__(self, store: VersionStore, books: Mapping[str, Book]) -> None:
        self._store = store
        self._since: dict[str, list[VersionRecord]] = defaultdict(list)
        self._loaded: dict[tuple[str, int], VersionRecord] = {}
        self._take(books)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __contains__(self, name: str) -> bool:
        """Whether it was listed under just this name."""
        return name in self._books

    @property
    def workspace(self) -> str:
        return self._store.workspace

    async def newest(self, name: str) -> VersionRecord | None:
        if since := self._since.get(name):
            return since[-1]
        if self._is_unknown(name):
            return await self._store.newest(name)  # which may say that the name is taken
        living = self._living.get(name)
        return self._record(name, living[-1]) if living else None

    async def versions(self, name: str, *, pruned: bool = False) -> list[VersionRecord]:
        if pruned or self._is_unknown(name):
            return await self._store.versions(name, pruned=pruned)
        return [*(self._record(name, number) for number in self._living.get(name, ())), *self._since.get(name, [])]

    async def find(self, name: str, *, definition_hash: str) -> VersionRecord | None:
        found = [record for record in await self.versions(name) if record.definition_hash == definition_hash]
        return found[-1] if found and definition_hash else None

    async def get(self, name: str, version: int) -> VersionRecord:
        if version in self._living.get(name, ()):
            return self._record(name, version)
        since = [record for record in self._since.get(name, []) if record.version == version]
        return since[0] if since else await self._store.get(name, version)

    async def register(self, draft: VersionRecord) -> VersionRecord:
        record = await self._store.register(draft)
        known = self._living.get(record.name, ())
        if record.version not in (*known, *(one.version for one in self._since[record.name])):
            self._since[record.name].append(record)
        return record

    async def mark_used(self, record: VersionRecord) -> bool:
        """As the store does it; without asking it where the listing shows a mark of today: who prunes saw that too."""
        if self._is_marked(record):
            return False
        return await self._store.mark_used(record)

    async def mark_all_used(self, records: Sequence[VersionRecord]) -> Mapping[str, Book]:
        """As the store does it, and only what has no mark of today."""
        if wanted := [record for record in records if not self._is_marked(record)]:
            self._take(await self._store.mark_all_used(wanted))
        return self._books

    def _take(self, books: Mapping[str, Book]) -> None:
        self._books = books
        self._living = {name: book.living for name, book in books.items()}
        self._slugs = {slug(name) for name in books}

    def _is_unknown(self, name: str) -> bool:
        """Whether another name owns the slug, which the store says best."""
        return name not in self._books and slug(name) in self._slugs

    def _record(self, name: str, number: int) -> VersionRecord:
        if (name, number) not in self._loaded:
            self._loaded[name, number] = self._books[name].load(number)
        return self._loaded[name, number]

    def _is_marked(self, record: VersionRecord) -> bool:
        known = record.version in self._living.get(record.name, ())
        return known and last_used(self._books[record.name], record) >= datetime.now(UTC).date()


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
