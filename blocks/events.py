"""Events of the Prefect API that automations can wait for."""

import asyncio
import logging

from prefect.client.orchestration import get_client
from prefect.events import Event, Resource
from prefect.events.related import related_resources_from_run_context

from prefect_environments.core.names import slug
from prefect_environments.core.versions import VersionRecord

REGISTERED = "prefect-environments.environment.registered"
"""A version of an environment was registered that was not there before."""

_PATIENCE = 15.0  # seconds

logger = logging.getLogger(__name__)


def registered_event(record: VersionRecord) -> Event:
    """The event of a new version. Its resource is the environment; its payload has the version's `name`, `version`
    (a number), `reference` (`repository@sha256:…`), `digest` and `workspace`, and no more."""
    labels = {
        "prefect.resource.id": f"prefect-environments.environment.{slug(record.workspace)}.{slug(record.name)}",
        "prefect.resource.name": record.name,
        "prefect-environments.workspace": record.workspace,
    }
    payload = {key: getattr(record, key) for key in ("name", "version", "reference", "digest", "workspace")}
    return Event(event=REGISTERED, resource=Resource(labels), payload=payload)


async def announce(record: VersionRecord) -> None:
    """Tell the Prefect API of a new version, once it is written. A version counts without its event, too: what fails
    is a warning.

    It is posted, and not left to Prefect's background thread: it goes to the API that has the version, has arrived
    when this returns, and a script that ends has nothing to wait for.
    """
    event = registered_event(record)
    try:
        async with asyncio.timeout(_PATIENCE), get_client() as client:
            event.related = await related_resources_from_run_context(client)
            await client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except Exception as error:
        logger.warning(
            "%s version %d is registered, but its event %s could not be sent (%s): automations that wait for it "
            "don't start; run their deployments by hand",
            record.name,
            record.version,
            REGISTERED,
            type(error).__name__,
        )
