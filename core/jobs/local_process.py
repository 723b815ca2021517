"""Jobs as a process on this machine, in an environment with the lock's versions: where there is no Docker engine."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from prefect_environments.core.jobs.bootstrap import JobNode, make_folder, nodes_of, source_of, together
from prefect_environments.core.jobs.follow import run_process
from prefect_environments.core.jobs.launcher import JobExit, JobRequest
from prefect_environments.core.jobs.local_environment import ensure_environment
from prefect_environments.core.jobs.log import JobLog
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
        _tell_what_does_not_count(request)
        started = time.monotonic()
        python = await ensure_environment(self.site, request.lock)
        seconds = {"environment": time.monotonic() - started}
        started = time.monotonic()
        folder = make_folder(request)
        async with request.channel.serve(folder):
            nodes = nodes_of(request, python=str(python), folder=folder, seen=str(folder), grouped=True)
            code, timed_out = await together(self._run(request, node, python, log) for node in nodes)
        seconds["run"] = time.monotonic() - started
        return JobExit(code, seconds, timed_out=timed_out)

    async def _run(self, request: JobRequest, node: JobNode, python: Path, log: JobLog) -> tuple[int, bool]:
        source = await asyncio.to_thread(source_of, request, node.rank)
        _link_outputs(request, source)
        variables = self._variables(request, node.variables, python)
        return await run_process(node.command, source, variables, log, request.config.time_limit_seconds or None)

    def _variables(self, request: JobRequest, given: Mapping[str, str], python: Path) -> dict[str, str]:
        kept = {k: v for k, v in self.inherited.items() if k in _INHERITED or k.startswith("LC_")}
        found = {**kept, "PYTHONNOUSERSITE": "1", **given}
        path = f"{python.parent}{os.pathsep}{found.get('PATH', os.defpath)}"
        own = {"CONDA_PREFIX" if request.lock.conda else "VIRTUAL_ENV": str(python.parent.parent), "PATH": path}
        return {**found, **own}


def _tell_what_does_not_count(request: JobRequest) -> None:
    config = request.config
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
