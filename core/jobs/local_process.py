"""Jobs as a process on this machine, in an environment with the lock's versions: where there is no Docker engine."""

import asyncio
import logging
import os
import shutil
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from prefect_environments.core import files
from prefect_environments.core.errors import JobError
from prefect_environments.core.jobs.bootstrap import JobNode, make_folder, nodes_of, source_of, together
from prefect_environments.core.jobs.follow import run_process
from prefect_environments.core.jobs.inside import wire
from prefect_environments.core.jobs.launcher import JobExit, JobRequest
from prefect_environments.core.jobs.local_environment import environment
from prefect_environments.core.jobs.log import JobLog
from prefect_environments.core.jobs.strays import end_strays
from prefect_environments.core.site import Site

_INHERITED = frozenset(
    (
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "PATH",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
    )
)
"""What a job gets of this process's variables, beside `LC_*`. A list of what stays: the others are this process's own
affair, such as its PYTHONPATH and the keys to its API."""

GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What the drivers of NVIDIA, AMD and of Windows' own Linux show."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessLauncher:
    """Runs jobs as processes of this machine."""

    site: Site
    inherited: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)

    elsewhere: ClassVar[bool] = False

    @property
    def target(self) -> str:
        return "process"

    async def run(self, request: JobRequest, log: JobLog) -> JobExit:
        """See `Launcher.run`. Raises `JobError` where this machine cannot have the environment."""
        logger.warning(
            "no Docker engine is used: the job runs with the same versions of all packages as %s, but not in the same "
            "image",
            request.record.reference,
        )
        _check_resources(request)
        started = time.monotonic()
        async with environment(self.site, request.lock) as python:
            seconds = {"environment": time.monotonic() - started}
            started = time.monotonic()
            folder = make_folder(request)
            try:
                async with request.channel.serve(folder):
                    nodes = nodes_of(request, python=str(python), folder=folder, seen=str(folder), grouped=True)
                    code, timed_out = await together(self._run(request, node, python, log) for node in nodes)
            finally:
                await asyncio.shield(asyncio.to_thread(end_strays, wire.VARIABLE, str(folder)))
        seconds["run"] = time.monotonic() - started
        return JobExit(code, seconds, timed_out=timed_out)

    async def _run(self, request: JobRequest, node: JobNode, python: Path, log: JobLog) -> tuple[int, bool]:
        source = await asyncio.to_thread(source_of, request, node.rank)
        _link_outputs(request, source)
        variables = self._variables(request, node.variables, python)
        limit = request.config.time_limit_seconds or None
        try:
            return await run_process(node.command, source, variables, log, limit)
        finally:
            _gather_outputs(request, source)

    def _variables(self, request: JobRequest, given: Mapping[str, str], python: Path) -> dict[str, str]:
        kept = {k: v for k, v in self.inherited.items() if k in _INHERITED or k.startswith("LC_")}
        found = {**kept, "PYTHONNOUSERSITE": "1", **given}
        path = f"{python.parent}{os.pathsep}{found.get('PATH', os.defpath)}"
        own = {"CONDA_PREFIX" if request.lock.conda else "VIRTUAL_ENV": str(python.parent.parent), "PATH": path}
        return {**found, **own}


def _check_resources(request: JobRequest) -> None:
    config = request.config
    if config.gpus > 0 and not any(map(os.path.exists, GPUS)):
        raise JobError(
            f"the job wants {config.gpus} GPUs, and this machine shows no GPU; choose a machine or a work pool that "
            "has some, or set gpus to 0"
        )
    given = {"cpus": config.cpus, "memory": config.memory, "gpus": config.gpus}
    if ignored := [name for name, value in given.items() if value]:
        logger.warning("a local process has no limits of its own: %s does not count", ", ".join(ignored))


def _link_outputs(request: JobRequest, source: Path) -> None:
    if not request.config.outputs:
        return
    place = source / request.config.outputs
    if place.is_dir() and not place.is_symlink():
        place.rename(request.folder / f"former-outputs-of-{source.name}")
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(request.outputs, target_is_directory=True)


def _gather_outputs(request: JobRequest, source: Path) -> None:
    """Keep also what a job wrote that removed our link and made a folder in its place."""
    place = source / request.config.outputs
    if request.config.outputs and place.is_dir() and place.resolve() == source.resolve() / request.config.outputs:
        with files.storage("keeping the outputs of a job", request.outputs):
            shutil.copytree(place, request.outputs, symlinks=True, dirs_exist_ok=True, ignore=_special)


def _special(folder: str, names: list[str]) -> list[str]:
    """Pipes and sockets, which cannot be copied."""
    kinds = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}  # noqa: PTH118
    return [
        name for name, mode in kinds.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))
    ]
