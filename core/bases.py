"""Where an environment's base image is: in a registry or layout by its name, or built from a Dockerfile."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from prefect_environments.core.build.base import BaseImage, load_base
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.lock.model import Lock, LockedBase
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.site import Site, open_repository
from prefect_environments.core.stores import ImageLocation


@asynccontextmanager
async def open_base(
    site: Site, definition: EnvironmentDefinition, *, lock: Lock | None = None
) -> AsyncIterator[BaseImage]:
    """The definition's base image, loaded from wherever it is; what a Dockerfile describes is built first.

    With a `lock` it is the image of the lock's digest, whatever a tag says by now.
    Raises `DefinitionError` where there is none, `NotFound`, `BaseImageError`, and a build's `BuildError`.
    """
    platform = Platform.parse(definition.platform)
    if definition.dockerfile or definition.build_context:
        built = lock.base if lock else await _built(site, definition)
        yield await load_base(site.built_repository, built.digest, built.name, platform, site.bases)
        return
    location = _location(site, definition, lock.base if lock else None)
    # what another login may read is not known to everybody
    known = site.bases if location.address == site.store.address and not definition.base_image_username else None
    async with open_repository(site, definition, location) as repository:
        yield await load_base(repository, location.identifier, location.name, platform, known)


async def _built(site: Site, definition: EnvironmentDefinition) -> LockedBase:
    from prefect_environments.core import dockerfiles  # noqa: PLC0415  # the docker package: only where it is needed

    return await dockerfiles.built_base(site, definition)


def _location(site: Site, definition: EnvironmentDefinition, pinned: LockedBase | None) -> ImageLocation:
    reference = definition.base_image or site.workspace.default_base_image or ""
    if pinned is not None and not definition.base_image and _is_full(pinned.name):
        reference = pinned.name  # the workspace's default may be another one by now
    if not reference:
        raise DefinitionError(
            f"the environment {definition.name!r} names no base image, and the workspace {site.workspace.name!r} "
            "has no default: set base_image, such as python:3.12-slim"
        )
    location = ImageLocation.parse(reference)
    if pinned is None:
        return location
    path = location.path or location.identifier
    return replace(location, path=path, identifier=pinned.digest, name=pinned.name)


def _is_full(name: str) -> bool:
    """Whether a lock's name of its base says where that is; in an image-layout folder, it doesn't."""
    try:
        return ImageLocation.parse(name).name == name
    except DefinitionError:
        return False
