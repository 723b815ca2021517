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
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
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
        # A helper of the tool may live on after it: the group goes whatever the way out.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return Finished(process.returncode or 0, _text(stdout), _text(stderr))


def _text(raw: bytes) -> str:
    return urls.without_user_info(_COLOUR.sub("", raw.decode("utf-8", "replace")))
