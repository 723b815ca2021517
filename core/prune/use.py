"""Marks of use while a job runs, however long: what is used today is not pruned."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from prefect_environments.core import steps
from prefect_environments.core.redact import redact
from prefect_environments.core.versions import VersionRecord
from prefect_environments.core.workspace import Workspace

EVERY = 6 * 3600.0
"""Seconds between two marks; a day must not go by without one."""

logger = logging.getLogger(__name__)


@asynccontextmanager
async def marked_as_used(workspace: Workspace, record: VersionRecord, every: float = EVERY) -> AsyncIterator[None]:
    """Mark a version as used now, and again while the block runs.

    Raises `VersionPruned` for one whose image is gone or going; marks that fail later are warnings.
    """
    if record.version == 0 or not record.reference:
        yield
        return
    await steps.mark_used(workspace, record)
    marking = asyncio.create_task(_mark(workspace, record, every))
    try:
        yield
    finally:
        marking.cancel()
        with suppress(asyncio.CancelledError):
            await marking


async def _mark(workspace: Workspace, record: VersionRecord, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        try:
            await steps.mark_used(workspace, record)
        except Exception as error:  # whatever it is: the job's end would raise it in place of its result
            logger.warning("the running job could not note that it uses its version: %s", redact(str(error)))
