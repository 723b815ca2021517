"""Many things at once, and the one error that counts."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

_T = TypeVar("_T")
_U = TypeVar("_U")


async def gather(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run all, in order of results; at the first failure cancel the rest, wait for them, and raise that failure."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:
        raise first_of(failures) from None
    return [task.result() for task in tasks]


async def both(first: Coroutine[Any, Any, _T], second: Coroutine[Any, Any, _U]) -> tuple[_T, _U]:
    """`gather` for two of different kinds."""
    results: list[Any] = await gather([cast("Coroutine[Any, Any, Any]", first), second])
    return results[0], results[1]


async def settled(
    work: Coroutine[Any, Any, _T], seconds: float, undo: Callable[[_T], Coroutine[Any, Any, object]] | None = None
) -> _T:
    """`work`'s result. A cancellation is raised once `work` has ended, at most `seconds` later, and `undo` undid it:
    for what another machine has done already when nobody waits for its answer any more."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is None and undo is not None:
            await undo(task.result())
        raise


def first_of(failures: BaseExceptionGroup[Any]) -> BaseException:
    """The first single exception in a group, however deep."""
    found: BaseException = failures
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
