"""Running the docker command so that nothing of it outlives the call."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from prefect_environments.core.errors import EngineUnavailable

_LONGEST_LINE = 64 * 1024
_PATIENCE = 5.0  # seconds for a command to stop what it began, when it is asked to
_ANSWER = 30.0  # seconds for a question to the command


def docker_commands(env: Mapping[str, str]) -> list[str]:
    """Every docker command on PATH, the first one first: one may lack what another can."""
    found: dict[str, str] = {}
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        path = shutil.which("docker", path=folder) if folder else None
        if path:
            found.setdefault(str(Path(path).resolve()), path)
    return list(found.values())


async def answer(command: Sequence[str], env: Mapping[str, str]) -> str | None:
    """What a command prints on standard output, `None` if it fails or says nothing in time."""
    try:
        async with asyncio.timeout(_ANSWER), started(command, env, errors=False) as process:
            text = "\n".join([line async for line in lines(process)])
            return text if await process.wait() == 0 else None
    except (TimeoutError, EngineUnavailable):
        return None


@asynccontextmanager
async def started(
    command: Sequence[str], env: Mapping[str, str], *, errors: bool = True
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command in a process group of its own, which is ended with the block: asked first, then killed.

    Its standard error goes with its standard output, or with `errors=False` nowhere. Raises `EngineUnavailable` for a
    command that cannot be started.
    """
    start = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *command,
            env=dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if errors else asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(start)
    except asyncio.CancelledError:
        # asyncio, cancelled while it starts a process, would kill that one and not its children
        with suppress(OSError):
            await _end(await start)
        raise
    except OSError as error:
        raise EngineUnavailable(f"{command[0]} cannot be started: {error.strerror}; install it again") from error
    try:
        yield process
    finally:
        await _end(process)


async def lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    """What a process prints, line by line as it comes; one without an end is cut."""
    assert process.stdout is not None  # noqa: S101
    rest = b""
    while chunk := await process.stdout.read(_LONGEST_LINE):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
        if len(rest) > _LONGEST_LINE:
            yield rest.decode("utf-8", "replace")
            rest = b""
    if rest:
        yield rest.decode("utf-8", "replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Interrupt what still runs, so that it tells the engine; then kill what is left of the group."""
    if process.returncode is None:
        _signal(process.pid, signal.SIGINT)
        drained = asyncio.ensure_future(_drained(process))
        await asyncio.wait([drained], timeout=_PATIENCE)
        drained.cancel()
    while process.returncode is None:
        _signal(process.pid, signal.SIGKILL)  # again, because a child that starts just now can miss the first one
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await process.wait()
    _signal(process.pid, signal.SIGKILL)


async def _drained(process: asyncio.subprocess.Process) -> None:
    """Read on to the end: a command that nobody reads waits for a reader instead of stopping."""
    assert process.stdout is not None  # noqa: S101
    while await process.stdout.read(_LONGEST_LINE):
        pass
    await process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
