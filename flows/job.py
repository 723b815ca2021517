"""`run_job_here`: the flow that runs in a job's container, started by a work pool's worker.

Nothing but Prefect's client and the standard library is there beside this package: see core/jobs/runtime.py.
"""

import asyncio
import inspect
import logging
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import State, flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from prefect_environments.blocks.secrets import PrefectSecretStore
from prefect_environments.core.errors import JobError, PrefectEnvironmentsError
from prefect_environments.core.jobs.here import run_here
from prefect_environments.core.jobs.log import JobLog
from prefect_environments.core.jobs.remote import JOB_LEVEL, JOB_LOGGER, RemoteJob, RemoteResult
from prefect_environments.core.secrets import SecretStore

_GLANCE = 2.0  # seconds between two looks at whether the run is to be cancelled
_ENDED = 143  # as a shell tells of a process that was asked to end

logging.addLevelName(JOB_LEVEL, "JOB")


@flow(name="run-job-here", persist_result=False, retries=0)
async def run_job_here(job: RemoteJob) -> State[Any]:
    """Run a job in this container.

    Args:
        job: What to run, as its launcher wrote it.
    """
    logger = logging.getLogger(JOB_LOGGER)
    logger.setLevel(JOB_LEVEL)  # a quieter Prefect does not make a job quieter
    printed = logging.LoggerAdapter(logger, dict(get_run_logger().extra or {}))  # type: ignore[union-attr]
    count = 0

    def on_line(line: str) -> None:
        nonlocal count
        count += 1
        printed.log(JOB_LEVEL, "%s", line)

    result = (await _run(job, JobLog(on_line))).model_copy(update={"lines": count})
    await acreate_table_artifact([result.model_dump(mode="json")], description=f"How the job {job.id} ended")
    return _state(result)


def _state(result: RemoteResult) -> State[Any]:
    if result.cancelled:
        return Cancelled(message="the job was cancelled")
    if result.error:
        return Failed(message=result.error)
    if result.exit_code or result.timed_out:
        return Failed(message=f"the job ended with exit status {result.exit_code}")
    return Completed(message="the job ended well")


async def _run(job: RemoteJob, log: JobLog) -> RemoteResult:
    async def keep(place: Path) -> str:
        return await _keep(job, place) if job.storage else ""

    try:
        work = run_here(job, Path.cwd(), await _secrets(job), log, keep)
        return await _unless_cancelled(work) or RemoteResult(exit_code=_ENDED, cancelled=True)
    except PrefectEnvironmentsError as error:
        return RemoteResult(exit_code=1, error=str(error))


async def _secrets(job: RemoteJob) -> SecretStore:
    if not job.workspace:
        return PrefectSecretStore()
    from prefect_environments.blocks import Workspace  # noqa: PLC0415  # only for references to Key Vaults

    workspace: Any = await Workspace.aload(job.workspace)
    store: SecretStore = workspace.secrets
    return store


async def _unless_cancelled(work: Coroutine[Any, Any, RemoteResult]) -> RemoteResult | None:
    """What `work` gives; `None` where the run was cancelled first, and the job's processes are gone."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_cancelling())
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _cancelling() -> None:
    """Return when the run is to be cancelled. A server that cannot be reached does not end the job."""
    async with get_client() as client:
        while True:
            await asyncio.sleep(_GLANCE)
            with suppress(httpx.HTTPError, PrefectException):
                state = (await client.read_flow_run(UUID(str(flow_run.id)))).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    return


async def _keep(job: RemoteJob, place: Path) -> str:
    """Put the outputs into the storage block; gives where they are."""
    from prefect.blocks.core import Block  # noqa: PLC0415  # only for jobs with storage

    try:
        block: Any = await Block.aload(job.storage)
        sending = block.put_directory(local_path=str(place), to_path=job.id)
        if inspect.isawaitable(sending):
            await sending
    except Exception as error:  # of any storage's client
        raise JobError(
            f"the job came to its end, but its outputs could not be put into the storage block {job.storage}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return f"{job.storage}/{job.id}"
