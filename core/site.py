"""A workspace's registry, opened, with the places beside it: what every step of a build works with."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import platformdirs

from prefect_environments.core import files
from prefect_environments.core.build.base import BaseImage, load_base
from prefect_environments.core.build.catalog import Catalog
from prefect_environments.core.build.wheel_store import RegistryWheelStore
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.names import slug
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.repository import Repository, Store
from prefect_environments.core.progress import SILENT, Progress
from prefect_environments.core.redact import remember
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import resolve as resolve_secret
from prefect_environments.core.stores import ImageLocation, open_store
from prefect_environments.core.workspace import Workspace


def default_cache() -> Path:
    """The user's cache folder for wheels and scratch files."""
    return platformdirs.user_cache_path("prefect-environments")


@dataclass(slots=True)
class Site:
    """A workspace's registry, opened, and the places beside it: what every step works with."""

    workspace: Workspace
    store: Store
    cache: Path
    progress: Progress = SILENT
    index_credentials: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    catalog: Catalog = field(init=False)

    def __post_init__(self) -> None:
        self.catalog = Catalog(self.store.repository(f"{self.workspace.repository_prefix}-layers"))

    def repository(self, name: str) -> Repository:
        """The repository of an environment."""
        return self.store.repository(f"{self.workspace.repository_prefix}/{slug(name)}")

    @property
    def wheel_store(self) -> RegistryWheelStore:
        repository = self.store.repository(f"{self.workspace.repository_prefix}-wheels")
        return RegistryWheelStore(repository, self.cache / "built")

    @property
    def scratch(self) -> Path:
        return self.cache / "scratch"


@asynccontextmanager
async def open_site(
    workspace: Workspace, *, cache: Path | None = None, progress: Progress = SILENT
) -> AsyncIterator[Site]:
    """Open a workspace's registry, secret references resolved, and close it at the end."""
    store = await open_store(workspace.registry_settings, workspace.secrets)
    try:
        credentials = {}
        for url, (user, password) in workspace.index_credentials.items():
            pair = await resolve_secret(user, workspace.secrets), await resolve_secret(password, workspace.secrets)
            remember(str(pair[1] or pair[0]))  # some indexes take a token as the user name
            credentials[url] = (str(pair[0]), str(pair[1]))
        site = Site(workspace, store, cache or default_cache(), progress, credentials)
        _sweep(site)
        yield site
    finally:
        await store.close()


def _sweep(site: Site) -> None:
    """Remove what dead processes left: at each start, because a run that finds all in place writes nothing."""
    folders = [site.scratch, *(site.cache / name for name in ("wheels", "built", "resolve"))]
    for folder in [*folders, site.store.scratch] if isinstance(site.store, Layout) else folders:
        files.sweep(folder)


@asynccontextmanager
async def open_base(site: Site, definition: EnvironmentDefinition) -> AsyncIterator[BaseImage]:
    """The definition's base image, loaded from wherever it is."""
    reference = definition.base_image or site.workspace.default_base_image
    if not reference:
        raise DefinitionError(
            f"the environment {definition.name!r} names no base image, and the workspace {site.workspace.name!r} "
            "has no default: set base_image, such as python:3.12-slim"
        )
    location = ImageLocation.parse(reference)
    async with AsyncExitStack() as stack:
        store = site.store
        if location.address != store.address or definition.base_image_username:
            settings = _base_settings(definition, location, site.workspace.registry_settings)
            store = await open_store(settings, site.workspace.secrets)
            stack.push_async_callback(store.close)
        platform = Platform.parse(definition.platform)
        yield await load_base(store.repository(location.path), location.identifier, location.name, platform)


def _base_settings(
    definition: EnvironmentDefinition, location: ImageLocation, own: RegistrySettings
) -> RegistrySettings:
    """With the definition's credentials, and on the workspace's own host by its way of connecting."""
    if location.address.startswith("oci:"):
        return RegistrySettings(location.address)
    login = definition.base_image_username or None, definition.base_image_password or None
    if location.address == own.address:
        return replace(own, username=login[0], password=login[1])
    return RegistrySettings(location.address, *login)


def pinned_base(site: Site, definition: EnvironmentDefinition, lock: Lock) -> str:
    """The base image's reference by the lock's digest: its tag may have moved since."""
    location = ImageLocation.parse(definition.base_image or site.workspace.default_base_image or lock.base.name)
    separator = ":" if location.address.startswith("oci:") else "/"
    return f"{location.address}{separator}{location.path or location.identifier}@{lock.base.digest}"
