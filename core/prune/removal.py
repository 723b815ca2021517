"""Manifests out of a repository, and back: nothing is deleted whose bytes are not remembered first."""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from prefect_environments.core.distribution.listings import fallback_tag
from prefect_environments.core.errors import NotFound, RegistryAuthError, RegistryError
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.repository import Manifest, Repository
from prefect_environments.core.site import Site

_REFUSED = (400, 405, 501)


@dataclass(frozen=True, slots=True)
class Remembered:
    """An image's manifest and those of what was attached to it; without the image where it was gone already."""

    digest: str
    tags: tuple[str, ...]
    image: Manifest | None
    attached: tuple[Manifest, ...]


async def check_deletion(repository: Repository) -> None:
    """Raise `RegistryError` where manifests cannot be deleted, by asking for the deletion of one that is not there."""
    try:
        await repository.delete_manifest(f"sha256:{secrets.token_hex(32)}")
    except RegistryAuthError:
        raise
    except RegistryError as error:
        if error.status not in _REFUSED:
            raise
        raise RegistryError(
            f"the registry {repository.address} does not allow manifests to be deleted (HTTP {error.status}), so "
            "nothing was pruned. Allow it (docker-registry: storage.delete.enabled: true in its configuration, or "
            "REGISTRY_STORAGE_DELETE_ENABLED=true) and run again",
            status=error.status,
            code=error.code,
        ) from error


async def remember(repository: Repository, digest: str, tags: Sequence[str] = ()) -> Remembered:
    """The bytes of an image's manifest and of all that is attached to it."""
    listed = await repository.referrers(digest)
    attached = [await _get(repository, item.digest) for item in listed]
    image = await _get(repository, digest)
    return Remembered(digest, tuple(tags), image, tuple(filter(None, attached)))


async def take_away(site: Site, repository: Repository, known: Remembered, *, image: bool = True) -> None:
    """Delete an image with its tags, then what is attached to it, then the list of that; in this order, so that an
    interrupted run finds what is left. Without `image` only what is attached goes."""
    if image and known.image is not None:
        await _unlock(site, repository, known.digest)
        await repository.delete_manifest(known.digest)
    for manifest in known.attached:
        await repository.delete_manifest(manifest.descriptor.digest)
    if not isinstance(site.store, Layout):
        index = await repository.find_manifest(fallback_tag(known.digest))
        if index is not None:
            await repository.delete_manifest(index.digest)


async def put_back(site: Site, repository: Repository, known: Remembered) -> None:
    """Store an image again, with its tags and what was attached to it."""
    if known.image is not None:
        for tag in known.tags or (None,):
            await repository.put_manifest(known.image.content, known.image.descriptor.media_type, tag=tag)
    for manifest in known.attached:
        await repository.put_manifest(manifest.content, manifest.descriptor.media_type)
    if known.image is not None:
        await lock_again(site, repository, known.digest)


async def lock_again(site: Site, repository: Repository, digest: str) -> None:
    """Lock an image that stays after all, where the workspace wants locks."""
    settings = site.workspace.registry_settings
    if settings.azure is not None and settings.azure.lock_registered:
        from prefect_environments.core.azure import acr  # noqa: PLC0415  # Azure's SDK

        await acr.lock_registered(settings, site.workspace.secrets, f"{repository.name}@{digest}")


async def _get(repository: Repository, digest: str) -> Manifest | None:
    try:
        return await repository.get_manifest(digest)
    except NotFound:
        return None


async def _unlock(site: Site, repository: Repository, digest: str) -> None:
    settings = site.workspace.registry_settings
    if settings.azure is None or not settings.azure.lock_registered:
        return
    from prefect_environments.core.azure import acr  # noqa: PLC0415  # Azure's SDK

    with suppress(NotFound):  # somebody else deleted it
        await acr.set_lock(await settings.resolved(site.workspace.secrets), repository.path, digest, locked=False)
