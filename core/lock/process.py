"""Running a tool (uv, git) so that nothing of it outlives the call."""

import asyncio
import os
import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock import urls

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a tool ended. Both texts are without colours and without user-info in addresses."""

    status: int
    stdout: str
    stderr: str


async def run(arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, seconds: float) -> Finished:
    """Run a tool in a process group of its own, which is killed on cancellation and after `seconds`.

    Raises `ResolveError` if it cannot be started or takes too long.
    """
    start = asyncio.create_task(_start(arguments, env, cwd))
    try:
        process = await asyncio.shield(start)
    except asyncio.CancelledError:
        # asyncio, cancelled while it starts a process, would kill that one and not its children.
        with suppress(OSError):
            await _end(await start)
        raise
    except OSError as error:
        tool = Path(arguments[0]).name
        raise ResolveError(f"{tool} cannot be started ({error.strerror}); install it where this runs") from error
    try:
        async with asyncio.timeout(seconds):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        what = " ".join(Path(arguments[0]).name if n == 0 else word for n, word in enumerate(arguments[:3]))
        raise ResolveError(
            f"{what} took longer than {seconds:g} seconds and was stopped; is an index slow or unreachable?"
        ) from None
    finally:
        await _end(process)
    return Finished(process.returncode or 0, _text(stdout), _text(stderr))


async def _start(arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *arguments,
        env=dict(env),
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the group, whatever the way out: a child of the tool may live on after it.

    Again and again for some seconds, because a child that starts at that very moment can miss the first signal; it
    would hold the pipes open, and Python waits for those too."""
    for _ in range(50):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await process.wait()
                break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _text(raw: bytes) -> str:
    return urls.without_user_info(_COLOUR.sub("", raw.decode("utf-8", "replace")))
