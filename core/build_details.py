"""A build that goes on in the background, as `Environment.build` of Azure ML's SDK v1 gives one."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Literal

from prefect_environments.core import loop, registration
from prefect_environments.core.console import megabytes
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BuildError
from prefect_environments.core.progress import Progress
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.redact import redact
from prefect_environments.core.versions import VersionRecord
from prefect_environments.core.workspace import Workspace

Status = Literal["Running", "Succeeded", "Failed", "Canceled"]

_ATTENTION = 0.5  # seconds


class Recorded(Progress):
    """Keeps every line, for who looks at any time."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._closed = False

    def step(self, name: str) -> None:
        self._add(f"== {name}")

    def printed(self, line: str) -> None:
        self._add(line)

    def layer(self, title: str, size: int, reused: bool) -> None:
        self._add(f"{'reused' if reused else 'built '} {title} ({megabytes(size)})")

    def close(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def lines(self) -> list[str]:
        """What there is by now."""
        with self._changed:
            return list(self._lines)

    def follow(self) -> Iterator[str]:
        """All lines from the first one on, as they come, until there are no more."""
        shown = 0
        while True:
            with self._changed:
                while shown == len(self._lines) and not self._closed:
                    self._changed.wait(_ATTENTION)
                new = self._lines[shown:]
                if not new:
                    return
            shown += len(new)
            yield from new

    def _add(self, line: str) -> None:
        with self._changed:
            self._lines.append(redact(line))
            self._changed.notify_all()


class ImageBuildDetails:
    """A build on its way. It goes on in a background thread until it ends, is cancelled, or the process ends."""

    def __init__(self, task: "asyncio.Task[VersionRecord]", log: Recorded, workspace: Workspace) -> None:
        self._task = task
        self._log = log
        self._workspace = workspace

    @property
    def status(self) -> Status:
        """Running, Succeeded, Failed or Canceled."""
        if not self._task.done():
            return "Running"
        if self._task.cancelled():
            return "Canceled"
        return "Failed" if self._task.exception() else "Succeeded"

    @property
    def log(self) -> str:
        """What the build has said by now."""
        return "\n".join(self._log.lines)

    def wait_for_completion(self, show_output: bool = True) -> ReadyImage:
        """The registered image, when it is there; with `show_output` the log is printed, from its beginning, live.

        Raises the build's error (`BuildError` with the failed step and its last lines, and others); Ctrl-C cancels it.
        """
        try:
            for line in self._log.follow():
                if show_output:
                    print(line, file=sys.stdout, flush=True)
        except BaseException:
            self.cancel()
            raise
        if self._task.cancelled():
            raise BuildError("the build was cancelled; build again")
        return registration.details(self._workspace, loop.run(_result(self._task)))

    def cancel(self) -> None:
        """Stop the build, also where it runs elsewhere; one that has ended stays as it is."""
        loop.run(_stop(self._task))

    def __repr__(self) -> str:
        return f"ImageBuildDetails(status={self.status!r})"


def begin(workspace: Workspace, definition: EnvironmentDefinition) -> ImageBuildDetails:
    """Begin to build and register a definition."""
    log = Recorded()

    async def start() -> "asyncio.Task[VersionRecord]":
        task = asyncio.create_task(registration.registered(workspace, definition, log))
        task.add_done_callback(lambda _: log.close())
        return task

    return ImageBuildDetails(loop.run(start()), log, workspace)


async def _result(task: "asyncio.Task[VersionRecord]") -> VersionRecord:
    return await task


async def _stop(task: "asyncio.Task[VersionRecord]") -> None:
    task.cancel()
    await asyncio.wait([task])
