"""Is each registered image still there? One request for each, many at once."""

import asyncio
from collections.abc import Sequence
from typing import Literal

from prefect_environments.core import steps
from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, PrefectEnvironmentsError, RegistryError, SecretError
from prefect_environments.core.fleet.outcome import ImageStatus
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord

AT_ONCE = 32


async def check_images(site: Site, records: Sequence[VersionRecord]) -> list[ImageStatus]:
    """The state of each version's image, in the order of `records`.

    Raises the errors of the workspace's own registry: one that cannot be reached has lost no image. Where somebody
    else's registry, to which a user-managed version points, gives no answer, the state is `unknown` with the reason.
    """
    limit = asyncio.Semaphore(AT_ONCE)

    async def look(record: VersionRecord) -> ImageStatus:
        async with limit:
            return await _look(site, record)

    return await gather(map(look, records))


async def _look(site: Site, record: VersionRecord) -> ImageStatus:
    try:
        there = await steps.has_image(site, record)
    except (RegistryError, SecretError, DefinitionError) as error:
        if not isinstance(error, DefinitionError) and not _elsewhere(record):
            raise
        return _told(record, "unknown", str(error))
    if there:
        return _told(record, "there")
    return _told(record, "missing", "the registry no longer has the image; build_environments builds it again")


def _told(record: VersionRecord, state: Literal["there", "missing", "unknown"], reason: str = "") -> ImageStatus:
    return ImageStatus(name=record.name, version=record.version, reference=record.reference, state=state, reason=reason)


def _elsewhere(record: VersionRecord) -> bool:
    try:
        return EnvironmentDefinition(**record.definition).stays_where_it_is
    except PrefectEnvironmentsError:
        return False
