"""A job's process on this machine: started in its own group, followed to its end, its lines logged as they come."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from prefect_environments.core.concurrency import settled
from prefect_environments.core.errors import JobError
from prefect_environments.core.jobs.launcher import GRACE
from prefect_environments.core.jobs.log import JobLog, Lines

_CHUNK = 64 * 1024
_REST = 2.0  # seconds for what is still in the pipe after the end of the job


async def run_process(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], log: JobLog, limit: float | None
) -> tuple[int, bool]:
    """Run a command in `folder` with `variables` alone; gives its status (128 + N for signal N), and whether `limit`
    (seconds) ended it. Whatever the way out, nothing of its group is left.

    Raises `JobError` for what cannot be started.
    """
    ours, theirs = os.pipe()  # asyncio's own pipe would make `wait` wait for all who have it open
    with os.fdopen(ours, "rb", buffering=0) as printed:
        with os.fdopen(theirs, "wb") as out:
            process = await settled(_start(command, folder, variables, out), GRACE, _end_at_once)
        return await _follow(process, printed, log, limit)


async def _start(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], out: IO[bytes]
) -> asyncio.subprocess.Process:
    program = _find(command[0], folder, variables.get("PATH", os.defpath))
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            executable=program,
            cwd=folder,
            env=variables,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise JobError(f"the job's command {command[0]!r:.200} cannot be started: {error.strerror}") from error


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
        await asyncio.wait([reader])  # it hands on its last line, and lets go of the pipe before that is closed
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
