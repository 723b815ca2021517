"""A dispatcher and the runs that it waits for, on an API, by workers and beside others that do not behave."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import Event
from prefect.states import Completed, Pending, Running
from prefect.types._datetime import now

from prefect_environments import Workspace
from prefect_environments.core import steps
from prefect_environments.core.errors import BuildError
from prefect_environments.core.site import open_site
from prefect_environments.tasks.dispatch import Dispatcher, Runs, open_dispatcher
from tests.flows.parts import Run, define, unique
from tests.support.base import BaseLayout


async def test_a_run_whose_heartbeats_stopped_is_set_to_crashed(prefect_server: str) -> None:
    """A killed process leaves its run Running for ever; one that never gave heartbeats is left alone."""

    @flow(name="lost")
    def lost() -> None: ...

    async with get_client() as client:
        dead, quiet = [await client.create_flow_run(lost, state=Running()) for _ in range(2)]
        beat = Event.model_validate(
            {
                "event": "prefect.flow-run.heartbeat",
                "occurred": now("UTC") - timedelta(minutes=20),
                "resource": {"prefect.resource.id": f"prefect.flow-run.{dead.id}"},
                "id": uuid4(),
            }
        )
        await client.request("POST", "/events", json=[beat.model_dump(mode="json")])
        runs = Runs(client, glance=0.2, beats=0.2)
        watch = asyncio.ensure_future(runs.watch())
        other = asyncio.ensure_future(runs.end_of(quiet.id))
        async with asyncio.timeout(60):
            state = await runs.end_of(dead.id)
        assert not other.done()
        watch.cancel()
        other.cancel()
    assert state.is_crashed()
    assert "no heartbeat for 1" in str(state.message)
    assert Run(dead.id).run.state_type == StateType.CRASHED


async def test_a_run_that_its_worker_took_and_never_started_is_set_to_crashed(prefect_server: str) -> None:
    """A worker that is killed between the two leaves it Pending for ever, as no other worker takes it."""

    @flow(name="taken")
    def taken() -> None: ...

    async with get_client() as client:
        lost = await client.create_flow_run(taken, state=Pending())
        runs = Runs(client, glance=0.1)
        watch = asyncio.ensure_future(runs.watch())
        waiting = asyncio.ensure_future(runs.end_of(lost.id))
        await asyncio.sleep(1)
        assert not waiting.done()  # a worker may take its time
        runs.pending = 0.5
        async with asyncio.timeout(60):
            state = await waiting
        watch.cancel()
    assert state.is_crashed()
    assert "not started" in str(state.message)


async def test_nobody_waits_for_a_run_that_was_deleted(prefect_server: str) -> None:
    """Nor does what one look at the runs meets, such as a page that a proxy answered, end the looking."""

    @flow(name="deleted")
    def deleted() -> None: ...

    class Odd(Runs):
        async def open_ones(self) -> list[FlowRun]:
            looks.append(1)
            if len(looks) == 1:
                raise ValueError("a web page in place of JSON")
            return await super().open_ones()

    looks: list[int] = []
    async with get_client() as client:
        gone = await client.create_flow_run(deleted, state=Running())
        runs = Odd(client, glance=0.2)
        watch = asyncio.ensure_future(runs.watch())
        waiting = asyncio.ensure_future(runs.end_of(gone.id))
        while len(looks) < 3:  # noqa: ASYNC110 - what another task does
            await asyncio.sleep(0.05)
        assert not waiting.done()
        await client.delete_flow_run(gone.id)
        async with asyncio.timeout(60):
            with pytest.raises(BuildError, match="was deleted"):
                await waiting
        watch.cancel()


async def run_of(dispatcher: Dispatcher, mark: str) -> None:
    """Wait until a dispatcher waits for a run that the one with this mark made."""
    while not [run for run in await dispatcher.runs.open_ones() if mark in run.tags]:  # noqa: ASYNC110 - the API tells
        await asyncio.sleep(0.1)


async def test_who_is_cancelled_cancels_for_itself_only(
    base_layout: BaseLayout, wheels: Path, saved: Workspace
) -> None:
    """Two wait for one run; when the one that made it is cancelled, the other has it built by a run of its own."""
    pool, definition = unique("pool"), define(base_layout, wheels)
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    async with open_site(saved) as site, open_dispatcher(pool, saved) as first, open_dispatcher(pool, saved) as second:
        lock = await steps.resolve(site, definition)
        one = asyncio.ensure_future(first(site, definition, lock))
        async with asyncio.timeout(120):
            await run_of(first, first.mark)
            two = asyncio.ensure_future(second(site, definition, lock))
            await run_of(second, first.mark)
            await first.cancel()
            with pytest.raises(BuildError, match="is Cancel"):
                await one
            await run_of(second, second.mark)
        two.cancel()
        await second.cancel()


async def test_a_run_has_ended_also_where_the_heartbeats_of_others_are_not_told(prefect_server: str) -> None:
    """An API that gives no events keeps nobody waiting."""

    @flow(name="busy")
    def busy() -> None: ...

    class Odd(Runs):
        async def open_ones(self) -> list[FlowRun]:
            return sorted(await super().open_ones(), key=lambda run: run.id == ended.id)

        async def _last_beat(self, run: UUID) -> datetime | None:
            raise httpx.ReadTimeout("no answer")

    async with get_client() as client:
        works, ended = [await client.create_flow_run(busy, state=Running()) for _ in range(2)]
        runs = Odd(client, glance=0.1, beats=0.0)
        watch = asyncio.ensure_future(runs.watch())
        other = asyncio.ensure_future(runs.end_of(works.id))
        waiting = asyncio.ensure_future(runs.end_of(ended.id))
        await client.set_flow_run_state(ended.id, Completed(), force=True)
        async with asyncio.timeout(20):
            assert (await waiting).is_completed()
        assert not other.done()
        watch.cancel()
        other.cancel()


async def test_an_image_of_another_environment_that_cannot_be_taken_over_is_built_by_an_own_run(
    base_layout: BaseLayout, wheels: Path, saved: Workspace
) -> None:
    """Two ask for one image under two names; the run of the first gives the second none, and its own run is made."""
    pool, definition = unique("pool"), define(base_layout, wheels)
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    async with open_site(saved) as site, open_dispatcher(pool, saved) as first, open_dispatcher(pool, saved) as second:
        lock = await steps.resolve(site, definition)
        twin = definition.model_copy(update={"name": unique("twin")})
        async with asyncio.timeout(60):
            one = asyncio.ensure_future(first(site, twin, lock))
            await run_of(first, first.mark)
            two = asyncio.ensure_future(second(site, definition, lock))
            await run_of(second, first.mark)
            (run,) = await first.runs.open_ones()
            await first.client.set_flow_run_state(run.id, Completed(), force=True)
            with pytest.raises(BuildError, match="is not in this workspace's registry"):
                await one
            await run_of(second, second.mark)
        two.cancel()
        await second.cancel()


async def test_a_cancellation_stays_one_where_the_api_is_away(saved: Workspace) -> None:
    """Runs that cannot be asked for are not cancelled, and that is all."""

    class Away(Runs):
        async def open_ones(self) -> list[FlowRun]:
            raise httpx.ConnectError("nobody listens")

    pool, begun = unique("pool"), asyncio.Event()
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))

    async def work() -> None:
        async with open_dispatcher(pool, saved) as dispatcher:
            dispatcher.runs = Away(dispatcher.client)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
