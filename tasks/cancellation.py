"""A job ends with the flow run that it is for: whoever cancels that in the UI stops the job, worker or no worker."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

from prefect_environments.core.jobs.cancellation import unless_cancelled

_T = TypeVar("_T")
_GLANCE = 2.0  # seconds between two looks at the runs


async def unless_run_is_cancelled(work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` gives. Raises `JobCancelled` where the current flow run is cancelled first, or one that it is a part
    of in this process. A worker stops what it started by itself; nobody else looks after a flow in a script."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return await work
    return await unless_cancelled(work, _cancelled(context.flow_run))


async def _cancelled(run: FlowRun) -> None:
    """Return when a run is to be cancelled."""
    ids: list[UUID] = []
    async with get_client() as client:
        while True:
            with suppress(httpx.HTTPError, PrefectException):
                ids = ids or await _with_ancestors(client, run)
                found = await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)))
                if any(one.state and (one.state.is_cancelling() or one.state.is_cancelled()) for one in found):
                    return
            await asyncio.sleep(_GLANCE)


async def _with_ancestors(client: PrefectClient, run: FlowRun) -> list[UUID]:
    """A run, and the runs above it that are in this process: a deployment's run is in one of its own."""
    ids = [run.id]
    while run.deployment_id is None and run.parent_task_run_id is not None:
        above = (await client.read_task_run(run.parent_task_run_id)).flow_run_id
        if above is None:
            break
        run = await client.read_flow_run(above)
        ids.append(run.id)
    return ids
