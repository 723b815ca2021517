"""A job in the container that was made for it: started, followed and stopped there, its outputs looked at."""

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect_environments.core.jobs import outputs
from prefect_environments.core.jobs.bootstrap import nodes_of, together, write_inside
from prefect_environments.core.jobs.channel import Channel, allowed_secrets
from prefect_environments.core.jobs.config import ScriptRunConfig
from prefect_environments.core.jobs.follow import run_process
from prefect_environments.core.jobs.log import JobLog
from prefect_environments.core.jobs.remote import RemoteJob, RemoteResult
from prefect_environments.core.jobs.variables import resolved
from prefect_environments.core.secrets import SecretStore

_KILLS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Where the kernel counts the processes that it ended for lack of memory (cgroup 2, cgroup 1)."""
_NOT_OURS = ("PREFECT_", "OTEL_")
"""Variables of the container that are the worker's affair, the keys to Prefect's API among them."""


@dataclass(frozen=True, slots=True)
class _Work:
    config: ScriptRunConfig
    variables: Mapping[str, str] = field(repr=False)


async def run_here(
    job: RemoteJob, folder: Path, secrets: SecretStore, log: JobLog, keep: Callable[[Path], Awaitable[str]]
) -> RemoteResult:
    """Run a job in `folder`. `keep` stores the outputs folder and gives where.

    Raises `SecretError`, and `JobError` for what cannot be started. A cancellation ends the job's processes first.
    """
    started, before = time.monotonic(), out_of_memory_kills()
    place = folder / job.config.outputs
    place.mkdir(parents=True, exist_ok=True)
    work = _Work(job.config, await resolved({}, job.variables, secrets))
    channel = Channel(
        job.id,
        secrets,
        allowed_secrets(job.config.secrets, job.variables),
        bootstrap_seconds=job.config.bootstrap_time_limit_seconds,
    )
    with TemporaryDirectory(prefix="job-") as inside:
        write_inside(Path(inside))
        async with channel.serve(Path(inside)):
            path = os.environ.get("PYTHONPATH", "")
            nodes = nodes_of(work, python=job.python, folder=Path(inside), seen=inside, grouped=True, python_path=path)
            limit = job.config.time_limit_seconds or None
            code, timed_out = await together(
                run_process(node.command, folder, {**_inherited(), **node.variables}, log, limit) for node in nodes
            )
    wanted = bool(job.config.outputs)
    found = outputs.list_files(place) if wanted else ()
    return RemoteResult(
        exit_code=code,
        timed_out=timed_out,
        out_of_memory=code != 0 and out_of_memory_kills() > before,
        seconds=round(time.monotonic() - started, 3),
        place=await keep(place) if found else "",
        files=found,
        metrics={**(outputs.read_metrics(place) if wanted else {}), **channel.metrics.last},
        series=channel.metrics.series,
    )


def out_of_memory_kills() -> int:
    """How many processes of this container the kernel has ended for lack of memory."""
    for path in _KILLS:
        with suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])
    return 0


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
