"""Images of Dockerfiles as bases: built by a Docker engine once for what went into them, then found in the registry."""

import logging
from contextlib import AsyncExitStack

from prefect_environments.core.build.base import load_base
from prefect_environments.core.build.docker.build import build_image
from prefect_environments.core.build.docker.engine import remove_image
from prefect_environments.core.build.docker.export import KnownLayer, known_layers, push_built
from prefect_environments.core.build.docker.inputs import BuildInputs, inputs_digest, open_inputs
from prefect_environments.core.concurrency import settled
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BuildError, ImageError, NotFound
from prefect_environments.core.lock.model import LockedBase
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.redact import remember
from prefect_environments.core.secrets import resolve as resolve_secret
from prefect_environments.core.site import Site, open_repository
from prefect_environments.core.stores import ImageLocation

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
    site.progress.step("docker build")
    async with open_inputs(definition, site.scratch) as inputs:
        wanted = await _hash(site, definition, inputs)
        name = f"{NAME}:{wanted}"
        existing = await site.built_repository.find_manifest(wanted)
        if existing is None:
            existing = await _build(site, definition, inputs, wanted)
        else:
            logger.info("the Dockerfile's image is there already: %s@%s", site.built_repository.name, existing.digest)
        return LockedBase(name, existing.digest)


async def _hash(site: Site, definition: EnvironmentDefinition, inputs: BuildInputs) -> str:
    """64 hex digits of all that goes into the build, the digests that its base images have now among it."""
    return digests.hex_of(await inputs_digest(inputs, lambda image: _digest_of(site, definition, image)))


async def _build(site: Site, definition: EnvironmentDefinition, inputs: BuildInputs, tag: str) -> Descriptor:
    secrets = {name: str(await resolve_secret(ref, site.workspace.secrets)) for name, ref in inputs.secrets.items()}
    image = await build_image(
        inputs,
        secrets=secrets,
        logins=await _logins(site, definition),
        scratch=site.scratch,
        progress=site.progress,
    )
    try:
        if await _hash(site, definition, inputs) != tag:
            raise BuildError(
                f"a base image or the context of {definition.name!r} changed while its Dockerfile was built, so it is "
                "not known what the image holds; build again"
            )
        async with AsyncExitStack() as stack:
            known: dict[str, KnownLayer] = {}
            for name in inputs.images():
                known |= await _layers_of(site, definition, name, inputs, stack)
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


async def _logins(site: Site, definition: EnvironmentDefinition) -> dict[str, tuple[str, str]]:
    """User and password by registry, for private base images: the definition's and the workspace's own."""
    own = site.workspace.registry_settings
    given = {definition.base_image_registry: (definition.base_image_username, definition.base_image_password)}
    given[own.address] = given.get(own.address) or (own.username or "", own.password or "")
    logins = {}
    for host, (user, password) in given.items():
        if host and user and password:
            pair = [await resolve_secret(part, site.workspace.secrets) for part in (user, password)]
            remember(str(pair[1]))
            logins[host] = (str(pair[0]), str(pair[1]))
    return logins
