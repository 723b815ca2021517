"""Images of Dockerfiles as bases: built once for what went into them, by a Docker engine or by ACR Tasks as the
workspace says, then found in the registry."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from prefect_environments.core.build.base import load_base
from prefect_environments.core.build.builder import Builder
from prefect_environments.core.build.docker.build import build_image
from prefect_environments.core.build.docker.client_config import Logins
from prefect_environments.core.build.docker.engine import remove_image
from prefect_environments.core.build.docker.export import KnownLayer, known_layers, push_built
from prefect_environments.core.build.docker.inputs import BuildInputs, inputs_digest, open_inputs
from prefect_environments.core.concurrency import settled
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.distribution.reference import check_host
from prefect_environments.core.errors import BuildError, ImageError, NotFound
from prefect_environments.core.lock.model import LockedBase
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.redact import remember
from prefect_environments.core.secrets import resolve as resolve_secret
from prefect_environments.core.site import Site, open_repository
from prefect_environments.core.stores import ImageLocation, tool_login
from prefect_environments.core.workspace import BuildsElsewhere

logger = logging.getLogger(__name__)

NAME = "dockerfile"
"""What locks call a base that was built: `dockerfile:<hash of the inputs>`, the same in every registry."""

_CLEANUP = 60.0  # seconds for the engine to take the image away, also where the run is cancelled meanwhile


async def built_base(site: Site, definition: EnvironmentDefinition) -> LockedBase:
    """The image that the definition's Dockerfile describes, in the workspace's registry: found there by the hash of
    Dockerfile, context, arguments and the digests of its own base images, else built and pushed.

    Raises `SpecificationError` for what cannot be read, `EngineUnavailable`, `BuildError` for a build that fails, and
    the registry's errors.
    """
    async with open_inputs(definition, site.scratch) as inputs:
        wanted = await _hash(site, definition, inputs)
        name = f"{NAME}:{wanted}"
        existing = await site.built_repository.find_manifest(wanted)
        if existing is None:

            async def unmoved() -> None:
                if await _hash(site, definition, inputs) != wanted:
                    raise BuildError(
                        f"a base image or the context of {definition.name!r} changed while its Dockerfile was built, "
                        "so it is not known what the image holds; build again"
                    )

            existing = await _builder(site, definition).build(inputs, wanted, unmoved)
        else:
            logger.info("the Dockerfile's image is there already: %s@%s", site.built_repository.name, existing.digest)
        return LockedBase(name, existing.digest)


async def current_name(site: Site, definition: EnvironmentDefinition) -> str:
    """What a lock would call the image of the definition's Dockerfile as it is now, with the bases that tags name."""
    async with open_inputs(definition, site.scratch) as inputs:
        return f"{NAME}:{await _hash(site, definition, inputs)}"


async def _hash(site: Site, definition: EnvironmentDefinition, inputs: BuildInputs) -> str:
    """64 hex digits of all that goes into the build, the digests that its base images have now among it."""
    return digests.hex_of(await inputs_digest(inputs, lambda image: _digest_of(site, definition, image)))


def _builder(site: Site, definition: EnvironmentDefinition) -> Builder:
    """What builds in this workspace."""
    workspace = site.workspace
    settings = workspace.acr_tasks if isinstance(workspace, BuildsElsewhere) else None
    if settings is None:
        return EngineBuilder(site, definition)
    # it loads Azure's identities: only where it builds
    from prefect_environments.core.build.acr_tasks.builder import TasksBuilder  # noqa: PLC0415

    async def logins() -> Logins:
        return await _logins(site, definition, own=False)

    return TasksBuilder(settings, site.built_repository, site.scratch, logins, site.progress)


@dataclass(frozen=True, slots=True)
class EngineBuilder:
    """Builds in a Docker engine, and pushes what the registry lacks of the image. See `Builder`."""

    site: Site
    definition: EnvironmentDefinition

    async def build(self, inputs: BuildInputs, tag: str, unmoved: Callable[[], Awaitable[None]]) -> Descriptor:
        site, store = self.site, self.site.workspace.secrets
        image = await build_image(
            inputs,
            secrets={
                name: str(await resolve_secret(reference, store, f"build_secrets.{name}"))
                for name, reference in inputs.secrets.items()
            },
            logins=await _logins(site, self.definition),
            scratch=site.scratch,
            progress=site.progress,
        )
        try:
            await unmoved()
            async with AsyncExitStack() as stack:
                known: dict[str, KnownLayer] = {}
                for name in inputs.images():
                    known |= await _layers_of(site, self.definition, name, inputs, stack)
                return await push_built(
                    image,
                    site.built_repository,
                    tag,
                    site.scratch,
                    catalog=site.catalog,
                    known=known,
                    progress=site.progress,
                )
        finally:
            await settled(remove_image(image), _CLEANUP)


async def _layers_of(
    site: Site, definition: EnvironmentDefinition, image: str, inputs: BuildInputs, stack: AsyncExitStack
) -> dict[str, KnownLayer]:
    """The layers of an image that the build starts from, as its registry has them: they need not be compressed."""
    location = ImageLocation.parse(image)
    repository = await stack.enter_async_context(open_repository(site, definition, location))
    try:
        base = await load_base(repository, location.identifier, location.name, inputs.platform)
    except (ImageError, NotFound) as error:
        logger.info("the layers of %s are taken from the engine: %s", image, error)
        return {}
    return known_layers(base.manifest, base.config, base.repository)


async def _digest_of(site: Site, definition: EnvironmentDefinition, image: str) -> str:
    """The digest that a base image of the Dockerfile has now, by its registry."""
    location = ImageLocation.parse(image)
    async with open_repository(site, definition, location) as repository:
        found = await repository.find_manifest(location.identifier)
    if found is None:
        raise NotFound(f"the Dockerfile of {definition.name!r} names the image {image}, which does not exist")
    return found.digest


async def _logins(site: Site, definition: EnvironmentDefinition, *, own: bool = True) -> dict[str, tuple[str, str]]:
    """User and password by registry, for private base images: the definition's, and with `own` the workspace's."""
    settings, store = site.workspace.registry_settings, site.workspace.secrets
    host, logins = definition.base_image_registry and check_host(definition.base_image_registry), {}
    if host and definition.base_image_username and (own or host != settings.address):
        user = str(await resolve_secret(definition.base_image_username, store, "base_image_username"))
        logins[host] = user, str(await resolve_secret(definition.base_image_password, store, "base_image_password"))
    if own and settings.address not in logins and (login := await tool_login(settings, store)):
        logins[settings.address] = login
    for _, password in logins.values():
        remember(password)
    return logins
