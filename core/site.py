"""A workspace's registry, opened, with the places beside it: what every step of a build works with."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_environments.core import files
from prefect_environments.core.build.wheel_store import RegistryWheelStore
from prefect_environments.core.cache import limit, trim_now_and_then
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.distribution.reference import check_host
from prefect_environments.core.names import slug
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.repository import Repository, Store
from prefect_environments.core.progress import SILENT, Progress
from prefect_environments.core.redact import remember
from prefect_environments.core.references import feed_logins
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.stores import ImageLocation, open_store
from prefect_environments.core.workspace import Workspace

if TYPE_CHECKING:
    from prefect_environments.core.build.base import KnownBases
    from prefect_environments.core.build.catalog import Catalog
    from prefect_environments.core.build.converters import Converters


def default_cache() -> Path:
    """The user's cache folder for wheels and scratch files."""
    import platformdirs  # noqa: PLC0415 - for those who name no folder

    return platformdirs.user_cache_path("prefect-environments")


@dataclass(slots=True)
class Site:
    """A workspace's registry, opened, and the places beside it: what every step works with."""

    workspace: Workspace
    store: Store
    cache: Path
    progress: Progress = SILENT
    index_credentials: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    bases: "KnownBases" = field(default_factory=dict, init=False, repr=False)
    """The base images of its own store that were read."""
    _catalog: "Catalog | None" = field(default=None, init=False, repr=False)
    _converters: "Converters | None" = field(default=None, init=False, repr=False)

    @property
    def catalog(self) -> "Catalog":
        """What the registry remembers beside images."""
        if self._catalog is None:
            # it knows layers, and so loads what makes them: only a build needs that
            from prefect_environments.core.build.catalog import Catalog  # noqa: PLC0415

            self._catalog = Catalog(self.store.repository(f"{self.workspace.repository_prefix}-layers"))
        return self._catalog

    @property
    def converters(self) -> "Converters":
        """What converts wheels for all builds here."""
        if self._converters is None:
            from prefect_environments.core.build.converters import Converters  # noqa: PLC0415  # as above

            self._converters = Converters()
        return self._converters

    def close(self) -> None:
        """End the processes that were started for builds here. The store is its opener's to close."""
        if self._converters is not None:
            self._converters.close()

    def repository(self, name: str) -> Repository:
        """The repository of an environment."""
        return self.store.repository(f"{self.workspace.repository_prefix}/{slug(name)}")

    @property
    def wheel_store(self) -> RegistryWheelStore:
        repository = self.store.repository(f"{self.workspace.repository_prefix}-wheels")
        return RegistryWheelStore(repository, self.cache / "built")

    @property
    def built_repository(self) -> Repository:
        """Where images that a Dockerfile describes are kept, by the hash of what they were built from."""
        return self.store.repository(f"{self.workspace.repository_prefix}-builds")

    @property
    def scratch(self) -> Path:
        return self.cache / "scratch"


@asynccontextmanager
async def open_site(
    workspace: Workspace, *, cache: Path | None = None, progress: Progress = SILENT
) -> AsyncIterator[Site]:
    """Open a workspace's registry, secret references resolved, and close it at the end."""
    most = limit()
    store = await open_store(workspace.registry_settings, workspace.secrets)
    try:
        credentials = {}
        for url, (user, password) in (await feed_logins(workspace)).items():
            remember(password or user)  # some indexes take a token as the user name
            credentials[url] = (user, password)
        with closing(Site(workspace, store, cache or default_cache(), progress, credentials)) as site:
            _sweep(site)
            yield site
    finally:
        await store.close()
        await asyncio.to_thread(trim_now_and_then, cache or default_cache(), most)


def _sweep(site: Site) -> None:
    """Remove what dead processes left: at each start, because a run that finds all in place writes nothing."""
    folders = [site.scratch, *(site.cache / name for name in ("wheels", "built", "resolve"))]
    folders += (site.cache / "private-wheels").glob("*")
    for folder in [*folders, site.store.scratch] if isinstance(site.store, Layout) else folders:
        files.sweep(folder)


@asynccontextmanager
async def open_repository(
    site: Site, definition: EnvironmentDefinition, location: ImageLocation
) -> AsyncIterator[Repository]:
    """The repository of an image that a definition names, with the definition's credentials where it has some."""
    async with AsyncExitStack() as stack:
        store = site.store
        if location.address != store.address or definition.base_image_username:
            settings = _settings(definition, location, site.workspace.registry_settings)
            store = await open_store(settings, site.workspace.secrets)
            stack.push_async_callback(store.close)
        yield store.repository(location.path)


def _settings(definition: EnvironmentDefinition, location: ImageLocation, own: RegistrySettings) -> RegistrySettings:
    """With the definition's credentials, and on the workspace's own host by its way of connecting."""
    if location.address.startswith("oci:"):
        return RegistrySettings(location.address)
    login = definition.base_image_username or None, definition.base_image_password or None
    if definition.base_image_registry and check_host(definition.base_image_registry) != location.address:
        login = None, None  # a Dockerfile may name images of any registry: credentials are for the one that they name
    fields = "base_image_username", "base_image_password"
    if location.address == own.address:
        return replace(own, username=login[0], password=login[1], fields=fields)
    return RegistrySettings(location.address, *login, fields=fields)
