"""Many environments at once, as tasks and flows see them: status of their images, progress, and the table of a run."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from prefect_environments.blocks import Workspace
from prefect_environments.core import loop
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import VersionNotFound
from prefect_environments.core.fleet import status as images
from prefect_environments.core.fleet.locks import kept_lock
from prefect_environments.core.fleet.outcome import FleetOutcome, ImageStatus, told
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.names import slug
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord
from prefect_environments.tasks.provenance import current_origin
from prefect_environments.tasks.site import at

logger = logging.getLogger("prefect_environments.core.fleet")  # core's lines go to the run's log

_EVERY = 2.0  # seconds between two updates of the progress: each is a call to the API
_FIRST = {"failed": 0, "missing": 0, "unknown": 1, "built": 1, "reused": 2}


@task(name="check-images", persist_result=False, cache_policy=NO_CACHE)
def check_images(workspace: Workspace, names: list[str] | None = None) -> list[ImageStatus]:
    """Whether the registry still has the image of each environment's newest version, with a table artifact.

    `names` limits it to some environments, archived ones too. One request for each, many at once. Raises
    `VersionNotFound` for a name that is none, and the errors of the registry.
    """
    records = newest_versions(workspace) if names is None else _named(workspace, names)
    statuses = at(workspace, lambda site: images.check_images(site, records))
    report_images(statuses, workspace.name)
    return statuses


def newest_versions(workspace: Workspace) -> list[VersionRecord]:
    """The newest version of every environment, by one listing."""
    return loop.run(workspace.versions.names())


def _named(workspace: Workspace, names: list[str]) -> list[VersionRecord]:
    known = {record.name: record for record in loop.run(workspace.versions.names(archived=True))}
    if missing := sorted(set(names) - known.keys()):
        raise VersionNotFound(f"{', '.join(missing)}: not registered in the workspace {workspace.name!r}")
    return [known[name] for name in dict.fromkeys(names)]


def stored_lock(image_hash: str, workspace: Workspace) -> Lock:
    """The lock of an image hash that `build_environments` kept in the registry. Raises `NotFound`, `ImageError`."""
    return at(workspace, lambda site: kept_lock(site, image_hash))


def build_fleet(
    definitions: Sequence[EnvironmentDefinition],
    workspace: Workspace,
    *,
    upgrade: bool = False,
    concurrency: int = 0,
    deployment: str = "",
) -> list[FleetOutcome]:
    """Find, or build and register, every environment; see `core.fleet.build`. Progress goes to the current run.

    With `deployment` (FLOW/DEPLOYMENT, or the name of a work pool), what is to be built is built by its runs, one for
    each image hash. Raises `DefinitionError` where there is no such deployment, or the workspace is not saved.
    """
    from prefect_environments.core.fleet import build  # noqa: PLC0415  # what builds: only here

    origin = current_origin()

    async def work(site: Site) -> list[FleetOutcome]:
        options: dict[str, Any] = {"upgrade": upgrade, "on_outcome": count, "created_by": origin}
        if not deployment:
            return await build.build_environments(site, definitions, concurrency=concurrency, **options)
        from prefect_environments.tasks.dispatch import AT_ONCE, open_dispatcher  # noqa: PLC0415  # only with one

        async with open_dispatcher(deployment, workspace) as dispatcher:
            many = concurrency or AT_ONCE
            return await build.build_environments(site, definitions, concurrency=many, builder=dispatcher, **options)

    with _progress(len(definitions)) as count:
        return at(workspace, work)


class _Counts:
    """How many environments are done, for the progress artifact."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.outcomes: list[FleetOutcome] = []

    @property
    def percent(self) -> float:
        return 100.0 * len(self.outcomes) / self.total if self.total else 100.0

    def __str__(self) -> str:
        return f"{len(self.outcomes)} of {self.total} environments: {told(self.outcomes)}"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[FleetOutcome], None]]:
    """What takes each outcome, and shows how many there are on the current run's progress artifact."""
    counts = _Counts(total)
    if not total or (FlowRunContext.get() is None and TaskRunContext.get() is None):
        yield counts.outcomes.append
        return
    artifact = create_progress_artifact(0.0, description=f"Building {total} environments")
    stop = threading.Event()
    context = copy_context()
    poller = threading.Thread(target=context.run, args=(_poll, counts, artifact, stop), name="progress", daemon=True)
    poller.start()
    try:
        yield counts.outcomes.append
    finally:
        stop.set()
        poller.join(10)


def _poll(counts: _Counts, artifact: UUID, stop: threading.Event) -> None:
    shown, finished = -1, False
    while not finished:
        finished = stop.wait(_EVERY)
        if len(counts.outcomes) != shown:
            shown = len(counts.outcomes)
            try:
                update_progress_artifact(artifact, counts.percent, description=str(counts))
            except Exception as error:  # the next one may be shown again: an API that is away stops no build
                logger.info("progress could not be shown (%s)", type(error).__name__)


def report_outcomes(outcomes: Sequence[FleetOutcome], workspace: str) -> None:
    """The outcomes as a table artifact of the current run, failures first; nothing outside of one."""
    rows: list[dict[str, Any]] = [
        # the UI doesn't wrap lines: what is longest comes last
        {
            "environment": one.name,
            "status": one.status,
            "version": one.version or "",
            "seconds": round(one.seconds, 1),
            "reason": one.reason,
            "image": one.reference,
        }
        for one in sorted(outcomes, key=lambda one: (_FIRST.get(one.status, 3), one.name.lower()))
    ]
    _table(rows, f"environments-{slug(workspace)}", f"Environments of {workspace}: {told(outcomes)}")


def report_images(statuses: Sequence[ImageStatus], workspace: str) -> None:
    """The states as a table artifact of the current run, what is missing first; nothing outside of one."""
    rows = [
        {
            "environment": one.name,
            "state": one.state,
            "version": one.version,
            "reason": one.reason,
            "image": one.reference,
        }
        for one in sorted(statuses, key=lambda one: (_FIRST.get(one.state, 3), one.name.lower()))
    ]
    there = sum(one.state == "there" for one in statuses)
    _table(rows, f"images-{slug(workspace)}", f"Images of {workspace}: {there} of {len(statuses)} are there")


def _table(rows: list[dict[str, Any]], key: str, description: str) -> None:
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    create_table_artifact(rows, key=key[:200], description=description)
