"""Builds on other machines: one deployment run for each image hash, whoever asks, and whatever dies.

A run is created with the idempotency key `build-{image hash}-{workspace}-{attempt}`: of all who ask with one key,
Prefect makes a run for the first, and gives it to the others. The attempt is the number of runs that ended under
earlier ones without leaving the image. A worker that is killed leaves a run that Prefect calls Running for ever, as
nothing on the server looks for lost ones: a run whose heartbeats stopped is set to Crashed here, and tried again.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelling, Crashed
from prefect.types._datetime import now

from prefect_environments.blocks import Workspace
from prefect_environments.core import steps
from prefect_environments.core.build.docker.checkout import GitContext
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BuildError, DefinitionError
from prefect_environments.core.fleet.locks import keep_lock
from prefect_environments.core.fleet.share import share
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.names import slug
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.site import Site
from prefect_environments.core.steps import BuiltImage
from prefect_environments.tasks.own_deployment import find_own, is_own, make_own

FLOW = "build-environment"
ENTRYPOINT = "prefect_environments.flows.build.build_environment"
AT_ONCE = 100
"""Environments in work at once: most of them wait for their runs."""

_GLANCE = 2.0  # seconds between two looks at all runs
_LATE = 30.0  # seconds after which we say what runs wait for
_PATIENCE = 600.0  # seconds without an answer of the API, after which runs are given up
BEATS = 60.0  # seconds between two looks at a run's heartbeats
SILENCE = 600.0  # seconds; Prefect's heartbeats come every 180 by default
PENDING = 1800.0  # seconds that a worker may take from taking a run to its start: a cluster may add a machine first
_CRASHES = 2  # runs that crash under our eyes and are followed by another one
_PAGE = 200

logger = logging.getLogger("prefect_environments.core.fleet")  # core's lines go to the run's log


@asynccontextmanager
async def open_dispatcher(deployment: str, workspace: Workspace) -> AsyncIterator["Dispatcher"]:
    """What builds by runs of `deployment`, FLOW/DEPLOYMENT or the name of a work pool. Runs that it created are
    cancelled where it is. Raises `DefinitionError` for an unknown deployment, or a workspace that is not saved."""
    block = workspace._block_document_id
    if block is None:
        raise DefinitionError(
            f"runs of {deployment} load the workspace {workspace.name!r} from its block, but it is not saved: "
            "workspace.save(NAME) first"
        )
    async with get_client() as client:
        dispatcher = Dispatcher(client, await _deployment(client, deployment), str(block), slug(workspace.name))
        watch = asyncio.ensure_future(dispatcher.runs.watch())
        try:
            yield dispatcher
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(dispatcher.cancel()))
            raise
        finally:
            watch.cancel()


async def _deployment(client: PrefectClient, name: str) -> UUID:
    flow, slash, _ = name.partition("/")
    try:
        if slash:
            return (await client.read_deployment_by_name(name)).id
        await client.read_work_pool(name)
    except (ObjectNotFound, ValueError):
        what = f"deployment {name}" if slash else f"work pool {name}"
        raise DefinitionError(
            f"there is no {what} on the Prefect API; deploy the flow {flow if slash else FLOW} (`prefect deploy`), or "
            "leave deployment empty to build on this machine"
        ) from None
    found = await find_own(client, FLOW, name)
    if found is not None and not is_own(found, name, ENTRYPOINT):
        raise DefinitionError(
            f"the deployment {FLOW}/{name} is somebody's own: it is for another work pool than {name}, or of another "
            f"entrypoint. Give FLOW/DEPLOYMENT, such as {FLOW}/{name}, to build by it all the same"
        )
    if found is not None:
        return found.id
    said = "Builds environments for build-environments, which made it."
    return await make_own(client, FLOW, name, ENTRYPOINT, said)


@dataclass(slots=True)
class Dispatcher:
    """A `core.fleet.build.Builder` that has images built by runs of a deployment."""

    client: PrefectClient
    deployment: UUID
    block: str
    workspace: str
    mark: str = field(default_factory=lambda: f"fleet-{uuid4().hex[:12]}")
    """The tag of the runs that this dispatcher created."""
    runs: "Runs" = field(init=False)

    def __post_init__(self) -> None:
        self.runs = Runs(self.client)

    async def __call__(self, site: Site, definition: EnvironmentDefinition, lock: Lock) -> BuiltImage:
        """The image of a lock in the environment's repository, built by a run. What nobody has to assemble, and what
        needs a folder of this machine, is done here. Raises `BuildError` where the run fails."""
        local = bool(definition.build_context) and not GitContext.is_git(definition.build_context)
        image_hash = await keep_lock(site, lock)
        tag = digests.hex_of(image_hash)
        repository = site.repository(definition.name)
        if local or not lock.managed or await repository.find_manifest(tag) is not None:
            return await steps.build(site, definition, lock)
        attempt = crashes = 0
        while True:
            run = await self._start(definition, image_hash, attempt)
            attempt += 1
            was_over = run.state is not None and run.state.is_final()
            state = run.state if was_over else await self.runs.end_of(run.id)
            if state is not None and state.is_completed():
                if (built := await self._taken(site, definition, lock, run)) is not None:
                    return replace(built, reused=was_over)
                # an image of another environment that cannot be mounted is built for this one by the next attempt
                if not was_over and _owner(run) == definition.name:
                    raise BuildError(_said(run, state, "its image is not in this workspace's registry"))
            elif not was_over and state is not None:
                crashes += state.is_crashed()
                # of two who wait for one run, the one that is cancelled cancels it for itself only
                foreign = state.is_cancelled() and self.mark not in run.tags
                if not (state.is_crashed() or foreign) or crashes > _CRASHES:
                    raise BuildError(_said(run, state, state.message or "without a message"))
                logger.warning("%s", _said(run, state, "trying again"))

    async def _taken(
        self, site: Site, definition: EnvironmentDefinition, lock: Lock, run: FlowRun
    ) -> BuiltImage | None:
        """The image that a run built, perhaps for another environment with an equal lock."""
        owner = _owner(run)
        found = await site.repository(owner).find_manifest(digests.hex_of(str(run.parameters["image_hash"])))
        if found is None:
            return None
        if owner == definition.name:
            return await steps.build(site, definition, lock)
        return await share(site, definition, lock, owner, found)

    async def _start(self, definition: EnvironmentDefinition, image_hash: str, attempt: int) -> FlowRun:
        """The run of an attempt; somebody else may have made it."""
        parameters = {
            "environment": definition.model_dump(mode="json"),
            "workspace": {"$ref": {"block_document_id": self.block}},
            "image_hash": image_hash,
        }
        try:
            return await arun_deployment(
                self.deployment,
                client=self.client,
                parameters=parameters,
                timeout=0,
                tags=["prefect-environments", self.mark],
                idempotency_key=f"build-{image_hash}-{self.workspace}-{attempt}",
            )
        except (httpx.HTTPError, PrefectException) as error:
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
            raise BuildError(
                f"no run of the deployment could be made for {definition.name!r} ({status}); if it was deployed by an "
                "earlier release, which knows no image_hash, deploy it again"
            ) from error

    async def cancel(self) -> None:
        """Cancel the runs that were created here and have not ended, as far as the API answers."""
        found = list[FlowRun]()
        with suppress(httpx.HTTPError, PrefectException):
            found = await self.runs.open_ones()
        for run in found:
            if self.mark in run.tags:
                with suppress(httpx.HTTPError, PrefectException):
                    await self.client.set_flow_run_state(run.id, Cancelling(message="build-environments was cancelled"))


@dataclass(slots=True)
class Runs:
    """Runs that somebody waits for, all looked at by one request."""

    client: PrefectClient
    glance: float = _GLANCE
    silence: float = field(default_factory=lambda: SILENCE)
    """Seconds without a heartbeat after which a run is taken for lost, if it ever gave one."""
    beats: float = field(default_factory=lambda: BEATS)
    pending: float = field(default_factory=lambda: PENDING)
    """Seconds after which a run that a worker took, and that never started, is taken for lost."""
    _ends: dict[UUID, "asyncio.Future[State]"] = field(default_factory=dict)
    _looked: dict[UUID, float] = field(default_factory=dict)
    """When a run's heartbeats were last looked at."""

    async def end_of(self, run: UUID) -> State:
        """A run's last state, once it has ended. Raises `BuildError` where the API does not answer any more."""
        end = self._ends.setdefault(run, asyncio.get_running_loop().create_future())
        return await asyncio.shield(end)

    async def watch(self) -> None:
        """Look at all runs again and again; ends by being cancelled."""
        started = answered = time.monotonic()
        told = False
        while True:
            await asyncio.sleep(self.glance)
            try:
                waited_for = set(self._ends)
                found = await self.open_ones()
                for run in found:
                    if run.state is not None and run.state.is_final():
                        self._ends.pop(run.id).set_result(run.state)
                for deleted in waited_for - {run.id for run in found}:
                    self._ends.pop(deleted).set_exception(BuildError(f"flow run {deleted} was deleted while it built"))
                answered = time.monotonic()
                waiting = [run for run in found if run.state is not None and run.state.is_scheduled()]
                if waiting and not told and time.monotonic() - started > _LATE:
                    told = True
                    logger.info("some runs wait for a worker; is one running? (prefect worker start --pool …)")
                # last: where the API does not tell of one run's heartbeats, the others have ended all the same
                for run in found:
                    await self._check_alive(run)
            except Exception as error:  # whatever it is: without this watch all would wait for ever
                if time.monotonic() - answered > _PATIENCE:
                    self._give_up(error)

    async def open_ones(self) -> list[FlowRun]:
        """The runs that are waited for, as the API knows them."""
        ids, found = list(self._ends), list[FlowRun]()
        for start in range(0, len(ids), _PAGE):
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + _PAGE]))
            found += await self.client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE)
        return found

    async def _check_alive(self, run: FlowRun) -> None:
        if run.state is not None and run.state.is_running():
            await self._check_beat(run)
        elif run.state is not None and run.state.is_pending():
            await self._check_start(run, run.state)

    async def _check_beat(self, run: FlowRun) -> None:
        """Set a run to Crashed whose process is gone: it gave heartbeats, and gives none any more."""
        if time.monotonic() - self._looked.get(run.id, 0.0) < self.beats:
            return
        self._looked[run.id] = time.monotonic()
        last = await self._last_beat(run.id)
        if last is None:
            return
        quiet = (now("UTC") - last).total_seconds()
        if quiet > self.silence:
            message = f"no heartbeat for {quiet:.0f} seconds: its worker or process is gone"
            await self._crash(run, message)

    async def _check_start(self, run: FlowRun, state: State) -> None:
        """Set a run to Crashed whose worker died between taking it and starting it: nobody else takes it then."""
        waited = (now("UTC") - state.timestamp).total_seconds()
        if waited > self.pending:
            await self._crash(run, f"taken by a worker {waited:.0f} seconds ago and not started: the worker is gone")

    async def _crash(self, run: FlowRun, message: str) -> None:
        await self.client.set_flow_run_state(run.id, Crashed(message=message), force=True)

    async def _last_beat(self, run: UUID) -> datetime | None:
        wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
        answer = await self.client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
        events = answer.json()["events"]
        return datetime.fromisoformat(events[0]["occurred"]) if events else None

    def _give_up(self, error: Exception) -> None:
        for run, end in self._ends.items():
            end.set_exception(
                BuildError(
                    f"the Prefect API has not answered for {_PATIENCE:g} seconds ({type(error).__name__}); flow run "
                    f"{run} may still build: run build-environments again once the API answers"
                )
            )
        self._ends.clear()


def _owner(run: FlowRun) -> str:
    """The environment that a run builds for."""
    return str(run.parameters["environment"]["name"])


def _said(run: FlowRun, state: State, what: str) -> str:
    return f"flow run {run.name} ({run.id}) is {state.name}: {what}"
