"""Jobs as a process on this machine, in an environment with the lock's versions: where there is no Docker engine."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from prefect_environments.core.concurrency import settled
from prefect_environments.core.errors import JobError
from prefect_environments.core.jobs.command import command_of
from prefect_environments.core.jobs.launcher import GRACE, JobExit, JobRequest
from prefect_environments.core.jobs.local_environment import ensure_environment
from prefect_environments.core.jobs.log import JobLog, Lines
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

_CHUNK = 64 * 1024
_REST = 2.0  # seconds for what is still in the pipe after the end of the job

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessLauncher:
    """Runs jobs as processes of this machine."""

    site: Site
    inherited: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)

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
        _link_outputs(request)
        ours, theirs = os.pipe()  # asyncio's own pipe would make `wait` wait for all who have it open
        with os.fdopen(ours, "rb", buffering=0) as printed:
            with os.fdopen(theirs, "wb") as out:
                process = await settled(self._start(request, python, out), GRACE, _end_at_once)
            code, timed_out = await _follow(process, printed, log, request.config.time_limit_seconds or None)
        seconds["run"] = time.monotonic() - started
        return JobExit(code, seconds, timed_out=timed_out)

    async def _start(self, request: JobRequest, python: Path, out: IO[bytes]) -> asyncio.subprocess.Process:
        command = command_of(request.config, str(python))
        variables = self._variables(request, python)
        program = _find(command[0], request.source, variables["PATH"])
        try:
            return await asyncio.create_subprocess_exec(
                *command,
                executable=program,
                cwd=request.source,
                env=variables,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise JobError(f"the job's command {command[0]!r:.200} cannot be started: {error.strerror}") from error

    def _variables(self, request: JobRequest, python: Path) -> dict[str, str]:
        kept = {k: v for k, v in self.inherited.items() if k in _INHERITED or k.startswith("LC_")}
        found = {**kept, "PYTHONNOUSERSITE": "1", **request.variables}
        path = f"{python.parent}{os.pathsep}{found.get('PATH', os.defpath)}"
        own = {"CONDA_PREFIX" if request.lock.conda else "VIRTUAL_ENV": str(python.parent.parent), "PATH": path}
        return {**found, **own}


def _tell_what_does_not_count(request: JobRequest) -> None:
    config = request.config
    given = {"cpus": config.cpus, "memory": config.memory, "gpus": config.gpus}
    if ignored := [name for name, value in given.items() if value]:
        logger.warning("a local process has no limits of its own: %s does not count", ", ".join(ignored))


def _link_outputs(request: JobRequest) -> None:
    if not request.config.outputs:
        return
    place = request.source / request.config.outputs
    if place.is_dir() and not place.is_symlink():
        place.rename(request.folder / "former-outputs")
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(request.outputs, target_is_directory=True)


def _find(program: str, folder: Path, path: str) -> str:
    """The file of a program by the job's own PATH, not by this process's."""
    if "/" in program:
        return str(folder / program)
    for place in path.split(os.pathsep):
        if os.access(found := folder / place / program, os.X_OK) and found.is_file():
            return str(found)
    raise JobError(f"the job's command {program!r:.200} is not there: neither in the environment nor on PATH")


async def _follow(
    process: asyncio.subprocess.Process, printed: IO[bytes], log: JobLog, limit: float | None
) -> tuple[int, bool]:
    """Read what a process prints until it ends; gives its status, and whether the time limit ended it.

    Whatever the way out, nothing of its group is left.
    """
    reader = asyncio.create_task(_read(printed, log))
    timed_out = False
    try:
        try:
            async with asyncio.timeout(limit):
                await process.wait()
        except TimeoutError:
            timed_out = True
            await _ask_to_end(process)
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(_ask_to_end(process)))
        raise
    finally:
        _kill(process)
        await asyncio.wait([reader], timeout=_REST)
        reader.cancel()
    code = await process.wait()
    return (code if code >= 0 else 128 - code), timed_out


async def _read(printed: IO[bytes], log: JobLog) -> None:
    stream, lines = asyncio.StreamReader(), Lines(log)
    protocol = asyncio.StreamReaderProtocol(stream)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, printed)
    try:
        while data := await stream.read(_CHUNK):
            lines.feed(data)
    finally:
        lines.close()
        transport.close()


async def _ask_to_end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the whole group, then some seconds for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE):
            await process.wait()


async def _end_at_once(process: asyncio.subprocess.Process) -> None:
    _kill(process)
    await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
