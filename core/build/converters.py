"""Wheels become layers in processes of their own, so that all cores work on them.

Threads of one process take turns for Python's part of the work, with each other and with what downloads and sends.
"""

import asyncio
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from prefect_environments.core.build.convert import convert_wheels
from prefect_environments.core.build.convert_worker import START, Done, Job
from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.lock.target import Target

if TYPE_CHECKING:
    from prefect_environments.core.build.bytecode import Compiler

_T = TypeVar("_T")

WORTH_IT = 16 * 1024 * 1024
"""Bytes of wheels that one image may need converted, from which on starting processes, 0.1 s of a core each, pays."""

_WORKERS_MAX = 4
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""The container's share of the cores (Linux, "Control Group v2", cpu.max), in microseconds; of v1 it is not read."""

logger = logging.getLogger(__name__)


class Converters:
    """The processes of one machine that convert wheels; any number of builds of one event loop may share them.

    As many work at once as there are cores. The processes live from `start` to `close`, but for those whose work is
    cancelled; where none can be started, or one dies, threads do their work. A child that is forked from this process
    holds their pipes: they live for as long as it does, should this one be killed.
    """

    def __init__(self, count: int | None = None) -> None:
        cores = _cores()
        self._left = _most(cores) if count is None else count
        self._turns = asyncio.Semaphore(max(2, cores))
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []

    @property
    def pids(self) -> list[int]:
        """The processes that there are."""
        return [worker.pid for worker in self._workers]

    def start(self, size: int) -> None:
        """Start the processes, which are ready 0.1 s later, for wheels of `size` bytes in all: nothing where that is
        little, or where they were started before."""
        if size < WORTH_IT:
            return
        while self._left:
            self._left -= 1
            try:
                worker = _Worker()
            except OSError as error:
                logger.info("no process can be started to convert wheels, threads do it: %s", error)
                self._left = 0
            else:
                self._workers.add(worker)
                self._idle.append(worker)

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._left = 0
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._idle.clear()

    async def convert(
        self,
        wheels: Sequence[tuple[LockedPackage, Path]],
        target: Target,
        out: BinaryIO,
        scratch: Path,
        *,
        compiler: "Compiler | None" = None,
    ) -> Done:
        """`convert_wheels`, into the named file `out`: by an idle process where there is nothing to compile, else by a
        thread. Raises what that raises."""
        async with self._turns:
            given = [(package, path.absolute()) for package, path in wheels]
            job = Job(given, target, Path(out.name).absolute(), scratch.absolute())
            return await self._convert(job, out, compiler)

    async def _convert(self, job: Job, out: BinaryIO, compiler: "Compiler | None") -> Done:
        if self._idle and compiler is None:
            try:
                return await self._by_worker(self._idle.pop(), job)
            except _WorkerGone as error:
                logger.info("a process that converts wheels %s; a thread takes its place", error)
                out.truncate(0)
        return await asyncio.to_thread(convert_wheels, job.wheels, job.target, out, job.scratch, compiler=compiler)

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """Other work of this kind, which takes its turn."""
        async with self._turns:
            return await asyncio.to_thread(work)

    async def _by_worker(self, worker: "_Worker", job: Job) -> Done:
        try:
            answer = await asyncio.to_thread(worker.do, job)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and worker in self._workers:
                self._left += 1  # nothing is wrong with processes: the next build may start another
            self._workers.discard(worker)
            worker.kill()
            asyncio.get_running_loop().run_in_executor(None, worker.end)
            raise
        self._idle.append(worker)
        if isinstance(answer, PrefectEnvironmentsError):
            raise answer
        return answer


class _WorkerGone(Exception):
    """A process ended before it answered."""


class _Worker:
    """One process, and the pipes to it. What it prints goes nowhere: its answers have a pipe of their own."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self._answers = os.fdopen(reading, "rb")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I" if sys.flags.isolated else "-P", "-c", START, str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[writing],
                start_new_session=True,  # an interrupt from the keyboard is ours to handle
            )
        except BaseException:
            self._answers.close()
            raise
        finally:
            os.close(writing)
        try:
            self._send([path for path in sys.path if type(path) is str])
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def do(self, job: Job) -> Done | PrefectEnvironmentsError:
        """Have a job done. Raises `_WorkerGone`, once the process has ended."""
        try:
            self._send(job)
            answer: Done | PrefectEnvironmentsError = pickle.load(self._answers)  # noqa: S301  # of our own process
        except Exception as error:
            self.end()
            raise _WorkerGone(f"ended (status {self._process.returncode})") from error
        return answer

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        pickle.dump(message, self._process.stdin)
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._answers):
            if pipe is not None:
                with suppress(OSError):  # what was not sent to a dead process
                    pipe.close()


def _cores() -> int:
    """The cores that this process may use: of the machine's, or those that its container is limited to."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = _QUOTA.read_text("ascii").split()  # "max 100000" without a limit
        cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)


def _most(cores: int) -> int:
    """How many processes: none where there is one core to share, or where our own program is not Python itself, but one
    that has it inside: it would be started again."""
    program = Path(sys.executable or "").name.lower()
    if cores < 2 or getattr(sys, "frozen", False) or not program.startswith(("python", "pypy")):
        return 0
    return min(_WORKERS_MAX, cores)
