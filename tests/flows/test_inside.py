"""The flow wherever users call it: in their own flows, in running event loops, in notebooks, in threads."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest
from prefect import flow

from prefect_environments import EnvironmentDefinition, ReadyImage, Workspace
from prefect_environments.flows import build_environment
from prefect_environments.tasks import get_environment, hash_environment, resolve_environment
from tests.flows.parts import Run, define
from tests.support.base import BaseLayout


@pytest.fixture
def definition(base_layout: BaseLayout, wheels: Path) -> EnvironmentDefinition:
    return define(base_layout, wheels)


def test_in_a_users_own_flow(definition: EnvironmentDefinition, local: Workspace) -> None:
    """As a subflow, whose run is a child of the user's."""

    @flow(persist_result=False)
    def train() -> ReadyImage:
        return build_environment(definition, local)

    state = train(return_state=True)
    ready = state.result()
    assert isinstance(ready, ReadyImage)
    assert get_environment(definition.name, local).reference == ready.reference
    (subflow,) = Run(state.state_details.flow_run_id).tasks()
    assert subflow.name.startswith("build-environment")


async def test_in_a_users_own_async_flow(definition: EnvironmentDefinition, local: Workspace) -> None:
    """The sync flow is called without await, tasks and all."""

    @flow(persist_result=False)
    async def train() -> ReadyImage:
        resolve_environment(definition, local)
        return build_environment(definition, local)

    ready = await train()
    assert ready.version == 1


def test_in_a_running_loop(definition: EnvironmentDefinition, local: Workspace) -> None:
    """`asyncio.run(main())` that calls the flow and the tasks; the loop goes on afterwards."""

    async def main() -> tuple[ReadyImage, str]:
        lock = resolve_environment(definition, local)
        ready = build_environment(definition, local)
        await asyncio.sleep(0)
        return ready, hash_environment(definition, local, lock)["image_hash"]

    ready, image_hash = asyncio.run(main())
    assert ready.image_hash == image_hash


def test_in_a_notebook(definition: EnvironmentDefinition, local: Workspace) -> None:
    """A cell is plain code that a running loop calls; one cell after the other, in the same loop."""
    cells: list[ReadyImage] = []
    loop = asyncio.new_event_loop()
    try:
        for _ in range(2):
            loop.call_soon(lambda: cells.append(build_environment(definition, local)))
            loop.call_soon(loop.stop)
            loop.run_forever()
    finally:
        loop.close()
    assert [ready.reused for ready in cells] == [False, True]


def test_from_several_threads_at_once(base_layout: BaseLayout, wheels: Path, local: Workspace) -> None:
    """Two definitions at a time, and the same one twice: one version for each, and the same image."""
    spam, ham = (define(base_layout, wheels, package) for package in ("spam", "ham"))
    with ThreadPoolExecutor(4) as threads:
        # the tests' settings are in this thread's context, where users have theirs in the environment
        runs = [
            threads.submit(copy_context().run, build_environment, definition, local)
            for definition in (spam, ham, spam, ham)
        ]
        found: list[ReadyImage] = [run.result() for run in runs]
    assert [ready.version for ready in found] == [1] * 4
    assert found[0].digest == found[2].digest != found[1].digest == found[3].digest
