"""`run_job_here`: the flow that runs in a job's container, started by a work pool's worker.

Nothing but Prefect's client and the standard library is there beside this package: see core/jobs/runtime.py.
"""

import asyncio
import inspect
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from prefect import State, flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from prefect_environments.blocks.secrets import PrefectSecretStore
from prefect_environments.core.jobs import outputs
from prefect_environments.core.jobs.follow import run_process
from prefect_environments.core.jobs.log import JobLog
from prefect_environments.core.jobs.remote import RemoteJob, RemoteResult
from prefect_environments.core.jobs.variables import resolved
from prefect_environments.core.secrets import SecretStore

JOB_LOGGER = "job"
"""The last part of the name of the logger that has the lines of the job alone."""

_GLANCE = 2.0  # seconds between two looks at whether the run is to be cancelled
_KILLS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Where the kernel counts the processes that it ended for lack of memory (cgroup 2, cgroup 1)."""


@flow(name="run-job-here", flow_run_name="{job.id}", persist_result=False, retries=0)
async def run_job_here(job: RemoteJob) -> State[Any]:
    """Run a job in this container.

    Args:
        job: What to run, as its launcher wrote it.
    """
    printed = get_run_logger().getChild(JOB_LOGGER)
    printed.logger.setLevel(logging.INFO)  # a quieter Prefect does not make a job quieter
    count = 0

    def on_line(line: str) -> None:
        nonlocal count
        count += 1
        printed.info("%s", line)

    result = await _run(job, JobLog(on_line))
    result = result.model_copy(update={"lines": count})
    await acreate_table_artifact([result.model_dump(mode="json")], description=f"How the job {job.id} ended")
    if result.cancelled:
        return Cancelled(message="the job was cancelled")
    if result.exit_code or result.timed_out:
        return Failed(message=f"the job ended with exit status {result.exit_code}")
    return Completed(message="the job ended well")


async def _run(job: RemoteJob, log: JobLog) -> RemoteResult:
    folder, started, before = Path.cwd(), time.monotonic(), _out_of_memory()
    variables = await resolved({}, job.variables, await _secrets(job))
    place = folder / job.outputs
    place.mkdir(parents=True, exist_ok=True)
    cancelled, ended = await _until_cancelled(
        run_process(job.command, folder, _environment(os.environ, variables), log, job.time_limit_seconds or None)
    )
    code, timed_out = ended or (143, False)
    result = RemoteResult(
        exit_code=code,
        timed_out=timed_out,
        cancelled=cancelled,
        out_of_memory=code != 0 and _out_of_memory() > before,
        seconds=round(time.monotonic() - started, 3),
    )
    if not job.outputs or cancelled:
        return result
    found, metrics = outputs.list_files(place), outputs.read_metrics(place)
    kept = await _keep(job, place) if found and job.storage else ""
    return result.model_copy(update={"files": found, "metrics": metrics, "place": kept})


def _environment(inherited: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The container's variables but Prefect's: the keys to its API are no business of the job."""
    return {**{name: value for name, value in inherited.items() if not name.startswith("PREFECT_")}, **variables}


async def _secrets(job: RemoteJob) -> SecretStore:
    if not job.workspace:
        return PrefectSecretStore()
    from prefect_environments.blocks import Workspace  # noqa: PLC0415  # only for references to Key Vaults

    return (await Workspace.aload(job.workspace)).secrets


async def _until_cancelled(work: Any) -> tuple[bool, tuple[int, bool] | None]:
    """Whether the run was cancelled, and what `work` gave if it came to its end."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_cancelling())
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return False, task.result()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return True, None
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)  # the job's processes are gone after this


async def _cancelling() -> None:
    """Return when the run is to be cancelled. A server that cannot be reached does not end the job."""
    async with get_client() as client:
        while True:
            await asyncio.sleep(_GLANCE)
            with suppress(httpx.HTTPError, PrefectException):
                state = (await client.read_flow_run(str(flow_run.id))).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    return


async def _keep(job: RemoteJob, place: Path) -> str:
    """Put the outputs into the storage block; gives where they are."""
    from prefect.blocks.core import Block  # noqa: PLC0415  # only for jobs with storage

    block: Any = await Block.aload(job.storage)
    sending = block.put_directory(local_path=str(place), to_path=job.id)
    if inspect.isawaitable(sending):
        await sending
    return f"{job.storage}/{job.id}"


def _out_of_memory() -> int:
    for path in _KILLS:
        with suppress(OSError, ValueError):
            counts = dict(line.split() for line in path.read_text().splitlines())
            return int(counts["oom_kill"]) if "oom_kill" in counts else 0
    return 0
