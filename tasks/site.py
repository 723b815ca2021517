"""From a task to core and back: the workspace opened in the background loop, core's log lines in the run's log."""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from prefect_environments.core import loop
from prefect_environments.core.errors import RegistryUnreachable
from prefect_environments.core.progress import Progress, current
from prefect_environments.core.redact import redact
from prefect_environments.core.site import Site, open_site
from prefect_environments.core.workspace import Workspace

_T = TypeVar("_T")


def at(workspace: Workspace, work: Callable[[Site], Awaitable[_T]], *, progress: Progress | None = None) -> _T:
    """Open the workspace's registry, do the work in the background loop, close it, give the result."""

    async def opened() -> _T:
        async with open_site(workspace, progress=progress or current()) as site:
            return await work(site)

    return loop.run(opened())


def is_transient(_task: object, _run: object, state: object) -> bool:
    """Whether a failed task is worth another try: only where the registry was out of reach, never for a bad input."""
    error = getattr(state, "data", None)
    return isinstance(getattr(error, "exception", error), RegistryUnreachable)


class RunLogHandler(logging.Handler):
    """Hands core's log lines to the current flow or task run, secrets masked; outside of runs to the parent logger."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            logger = get_run_logger()
        except MissingContextError:
            logging.getLogger("prefect_environments").handle(record)
            return
        logger.log(record.levelno, redact(record.getMessage()))


def forward_logs() -> None:
    """Send the lines of `prefect_environments.core` to runs; once a process."""
    logger = logging.getLogger("prefect_environments.core")
    if not any(isinstance(handler, RunLogHandler) for handler in logger.handlers):
        logger.addHandler(RunLogHandler())
        logger.propagate = False  # else each line would stand twice on the console
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


forward_logs()
