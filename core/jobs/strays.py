"""Processes of a job that left its process group, such as daemons: found by a variable that all of them inherit."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROUNDS = 50  # each waits a fiftieth of a second
_PROC = Path("/proc")


def end_strays(variable: str, value: str) -> None:
    """End all processes that were started with `variable` set to `value`, which no other job's have.

    Again and again for a second, as one may start others meanwhile. Nothing where there is no /proc.
    """
    mark = f"{variable}={value}".encode()
    for _ in range(_ROUNDS):
        found = list(_with(mark))
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _with(mark: bytes) -> Iterator[int]:
    with suppress(OSError):
        for name in os.listdir(_PROC):  # noqa: PTH208 - of all processes
            if name.isdigit() and int(name) != os.getpid():
                with suppress(OSError):  # another user's, or gone
                    if mark in (_PROC / name / "environ").read_bytes().split(b"\0"):
                        yield int(name)
