"""What only Azure Container Registry has, by Azure's own SDK: listings with times and sizes, locks, deletion.

Tokens are our own client's, so that there is one way of signing in, for all kinds of credentials.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_environments.core.azure.transport import client_options
from prefect_environments.core.distribution.reference import check_path, check_reference
from prefect_environments.core.errors import DefinitionError, RegistryAuthError, RegistryError
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretStore
from prefect_environments.core.stores import ImageLocation, open_registry

if TYPE_CHECKING:
    from azure.containerregistry import ContainerRegistryClient

_T = TypeVar("_T")
_PAGE = 1000
_RETRIES = 4
_CATALOG = frozenset({("registry:catalog", "*")})


@dataclass(frozen=True, slots=True)
class AcrTag:
    """A tag with what the registry knows of it and its manifest. Times are in UTC."""

    name: str
    digest: str
    created: datetime
    updated: datetime
    size: int | None
    """Bytes of the image as it is stored; `None` where the registry does not say, as for an index."""
    locked: bool
    """Whether the tag or its manifest can neither be overwritten nor deleted."""


async def list_repositories(settings: RegistrySettings) -> list[str]:
    """The paths of all repositories. Settings are resolved; raises the errors of a registry."""

    def listed(client: "ContainerRegistryClient", options: dict[str, Any]) -> list[str]:
        return list(client.list_repository_names(results_per_page=_PAGE, **options))

    return await _ask(settings, _CATALOG, "listing of repositories", listed)


async def list_tags(settings: RegistrySettings, repository: str) -> list[AcrTag]:
    """All tags of a repository, the newest first, with times and sizes. Raises `NotFound` without the repository."""

    def listed(client: "ContainerRegistryClient", options: dict[str, Any]) -> list[AcrTag]:
        manifests = {
            found.digest: found
            for found in client.list_manifest_properties(repository, results_per_page=_PAGE, **options)
        }
        tags = [
            AcrTag(
                name=tag.name,
                digest=tag.digest,
                created=tag.created_on.astimezone(UTC),
                updated=tag.last_updated_on.astimezone(UTC),
                size=manifests[tag.digest].size_in_bytes if tag.digest in manifests else None,
                locked=_is_locked(tag) or (tag.digest in manifests and _is_locked(manifests[tag.digest])),
            )
            for tag in client.list_tag_properties(repository, results_per_page=_PAGE, **options)
        ]
        return sorted(tags, key=lambda tag: (tag.updated, tag.name), reverse=True)

    return await _ask(settings, scopes_of(repository, "metadata_read"), f"listing of tags of {repository}", listed)


async def set_lock(settings: RegistrySettings, repository: str, reference: str, *, locked: bool) -> None:
    """Lock a tag or (by digest) a manifest against being overwritten and deleted, or open it again.

    A tag's lock keeps it on its manifest; a manifest's keeps the image. Raises `NotFound` without it.
    """
    check_reference(reference)
    allowed = {"can_write": not locked, "can_delete": not locked}

    def change(client: "ContainerRegistryClient", options: dict[str, Any]) -> None:
        if ":" in reference:
            client.update_manifest_properties(repository, reference, **allowed, **options)
        else:
            client.update_tag_properties(repository, reference, **allowed, **options)

    step = f"{'locking' if locked else 'unlocking'} of {repository} {reference}"
    await _ask(settings, scopes_of(repository, "metadata_read", "metadata_write"), step, change)


async def delete(settings: RegistrySettings, repository: str, reference: str) -> None:
    """Delete a tag, or by digest a manifest with all its tags. Raises `NotFound`; `RegistryError` if it is locked."""
    check_reference(reference)
    is_digest = ":" in reference

    def remove(client: "ContainerRegistryClient", options: dict[str, Any]) -> None:
        # The SDK takes "it is not there" for done; a mistyped name must not look like a deletion.
        if is_digest:
            client.get_manifest_properties(repository, reference, **options)
            client.delete_manifest(repository, reference, **options)
        else:
            client.get_tag_properties(repository, reference, **options)
            client.delete_tag(repository, reference, **options)

    await _ask(settings, scopes_of(repository, "metadata_read", "delete"), f"deleting {repository} {reference}", remove)


async def delete_repository(settings: RegistrySettings, repository: str) -> None:
    """Delete a repository with all that is in it. Raises `NotFound`, and `RegistryError` if some of it is locked."""

    def remove(client: "ContainerRegistryClient", options: dict[str, Any]) -> None:
        client.get_repository_properties(repository, **options)
        client.delete_repository(repository, **options)

    await _ask(settings, scopes_of(repository, "metadata_read", "delete"), f"deleting repository {repository}", remove)


async def lock_registered(settings: RegistrySettings, secrets: SecretStore, reference: str) -> None:
    """Lock the manifest behind `repository@sha256:…` where the settings want that, and it is in this registry."""
    image = ImageLocation.parse(reference)
    if settings.azure is None or not settings.azure.lock_registered or image.address != settings.address:
        return
    await set_lock(await settings.resolved(secrets), image.path, image.identifier, locked=True)


async def _ask(
    settings: RegistrySettings,
    scopes: frozenset[tuple[str, str]],
    step: str,
    work: Callable[["ContainerRegistryClient", dict[str, Any]], _T],
) -> _T:
    """Do `work` with the SDK's client, in a thread; what it raises comes out as this package's errors."""
    if settings.azure is None:
        raise DefinitionError(f"{step} is for an Azure Container Registry; {settings.address} is not set up as one")
    try:
        return await _attempt(settings, settings.azure.where, scopes, step, work)
    except RegistryAuthError as error:
        if error.status != HTTPStatus.UNAUTHORIZED:
            raise
    # The token may have ended or been revoked on the way, which the registry answers as it does a missing right.
    return await _attempt(settings, settings.azure.where, scopes, step, work)


async def _attempt(
    settings: RegistrySettings,
    where: str,
    scopes: frozenset[tuple[str, str]],
    step: str,
    work: Callable[["ContainerRegistryClient", dict[str, Any]], _T],
) -> _T:
    async with open_registry(settings) as registry:
        header, url = await registry.authorization(scopes), registry.url
        advice = registry.advice(scopes)
    options: dict[str, Any] = {"headers": {"Authorization": header} if header else {}}
    options["enforce_https"] = url.scheme == "https"

    def ask() -> _T:
        from azure.containerregistry import ContainerRegistryClient  # noqa: PLC0415
        from azure.core.exceptions import AzureError  # noqa: PLC0415

        from prefect_environments.core.azure.acr_failures import explain  # noqa: PLC0415

        kept = client_options(settings.ca_file, _RETRIES)
        try:
            with ContainerRegistryClient(str(url).rstrip("/"), None, **kept) as client:
                return work(client, options)
        except AzureError as error:
            raise explain(error, where, step, advice) from None
        except (ValueError, AttributeError, TypeError, LookupError) as error:  # the SDK takes any answer for its own
            raise RegistryError(
                f"{where}: {step} was answered with what is none of a Container Registry's answers "
                f"({type(error).__name__}). Check that login_server is one, and proxies on the way"
            ) from None

    return await asyncio.to_thread(ask)


def scopes_of(repository: str, *actions: str) -> frozenset[tuple[str, str]]:
    """The scopes of actions on a repository. Raises `DefinitionError` for a wrong path."""
    return frozenset((f"repository:{check_path(repository)}", action) for action in actions)


def _is_locked(kept: Any) -> bool:
    return kept.can_write is False and kept.can_delete is False
