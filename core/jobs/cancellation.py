"""A job beside the question whether anybody still wants it."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from prefect_environments.core.errors import JobCancelled

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


async def unless_cancelled(work: Coroutine[Any, Any, _T], cancelled: Coroutine[Any, Any, object]) -> _T:
    """What `work` gives. `cancelled` is to return as soon as the job is not wanted any more.

    Raises `JobCancelled` where it returned first; `work` was cancelled then, and has ended. Where it fails, the work
    goes on: a server that cannot be reached does not end a job.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(cancelled)
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and (error := watch.exception()) is not None:
            logger.warning("from here on a cancellation is not noticed: %s: %s", type(error).__name__, error)
        elif not task.done():
            raise JobCancelled("the job was cancelled, and stopped; start it again when it is wanted")
        return await task
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
