"""`run_job_here`: the flow that runs in a job's container, started by a work pool's worker.

Nothing but Prefect's client and the standard library is there beside this package: see core/jobs/runtime.py.
"""

import asyncio
import inspect
import logging
import os
from collections.abc import Mapping
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

from prefect_environments.core.errors import JobCancelled, JobError, PrefectEnvironmentsError
from prefect_environments.core.jobs.cancellation import unless_cancelled
from prefect_environments.core.jobs.here import run_here
from prefect_environments.core.jobs.log import JobLog
from prefect_environments.core.jobs.remote import JOB_LEVEL, JOB_LOGGER, RemoteJob, RemoteResult
from prefect_environments.core.secrets import SecretReference, SecretStore

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
        told = job.model_copy(update={"variables": {**_references(os.environ), **job.variables}})
        work = run_here(told, Path.cwd(), await _secrets(job), log, keep)
        return await unless_cancelled(work, _cancelling())
    except JobCancelled:
        return RemoteResult(exit_code=_ENDED, cancelled=True)
    except PrefectEnvironmentsError as error:
        return RemoteResult(exit_code=1, error=str(error))


def _references(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of the container, which its work pool gave it, that are references to secrets."""
    return {
        name: value
        for name, value in variables.items()
        if SecretReference.is_reference(value) and not name.startswith("PREFECT_")
    }


class _SecretBlocks:
    """A `SecretStore` of Prefect's Secret blocks. Our blocks take a while to load: only jobs with secrets wait."""

    async def get(self, reference: SecretReference) -> str:
        from prefect_environments.blocks.secrets import PrefectSecretStore  # noqa: PLC0415

        return await PrefectSecretStore().get(reference)


async def _secrets(job: RemoteJob) -> SecretStore:
    if not job.workspace:
        return _SecretBlocks()
    from prefect_environments.blocks import Workspace  # noqa: PLC0415  # only for references to Key Vaults

    try:
        workspace: Any = await Workspace.aload(job.workspace)
    except (ValueError, httpx.HTTPError, RuntimeError) as error:
        raise JobError(
            f"the job's references to Key Vaults are resolved through the workspace block {job.workspace!r}, which its "
            f"container cannot load ({type(error).__name__}); check that the block is there and that the container "
            "reaches the Prefect API, or put the secrets into Secret blocks (secret:NAME)"
        ) from None
    store: SecretStore = workspace.secrets
    return store


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
