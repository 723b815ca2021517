"""Is each registered image still there? One request for each, many at once."""

import asyncio
from collections.abc import Sequence
from typing import Literal

from prefect_environments.core import steps
from prefect_environments.core.concurrency import gather
from prefect_environments.core.errors import DefinitionError, RegistryError, SecretError
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
    if not _stays_where_it_is(record):  # as most: nothing of the definition is needed, and a thousand take a second
        digest = record.reference.rpartition("@")[2]
        there = await site.repository(record.name).find_manifest(digest) is not None
        return _told(record, "there") if there else _missing(record)
    try:
        there = await steps.has_image(site, record)
    except (RegistryError, SecretError, DefinitionError) as error:
        return _told(record, "unknown", str(error))
    return _told(record, "there") if there else _missing(record)


def _told(record: VersionRecord, state: Literal["there", "missing", "unknown"], reason: str = "") -> ImageStatus:
    return ImageStatus(name=record.name, version=record.version, reference=record.reference, state=state, reason=reason)


def _missing(record: VersionRecord) -> ImageStatus:
    return _told(record, "missing", "the registry no longer has the image; build_environments builds it again")


def _stays_where_it_is(record: VersionRecord) -> bool:
    """As `EnvironmentDefinition.stays_where_it_is`, of what is stored."""
    stored = record.definition
    return bool(stored.get("user_managed")) and not any(
        stored.get(key) for key in ("mirror", "dockerfile", "build_context")
    )
