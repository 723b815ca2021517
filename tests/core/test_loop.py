"""The background loop behind the synchronous surface."""

import asyncio
import os

from prefect_environments.core import loop


async def _answer() -> int:
    await asyncio.sleep(0)
    return 42


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """A fork has the parent's loop and not its thread; a call there would wait for ever."""
    assert loop.run(_answer()) == 42
    child = os.fork()
    if child == 0:
        os._exit(0 if loop.run(_answer()) == 42 else 1)
    assert os.waitpid(child, 0)[1] == 0


async def test_it_works_inside_a_running_loop() -> None:
    assert loop.run(_answer()) == 42
