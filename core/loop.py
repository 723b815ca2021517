"""One event loop in a background thread, so that the synchronous surface works everywhere: in scripts, notebooks and
functions that already run in a loop."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

_T = TypeVar("_T")
_ATTENTION = 0.5  # seconds
_CLEANUP = 10.0  # seconds
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _after_fork() -> None:
    """A forked child has the loop but not its thread: it starts its own."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end and give its result; Ctrl-C and a flow's cancellation cancel it first."""
    loop = _running_loop()
    if _inside(loop):
        coroutine.close()
        raise RuntimeError("a synchronous call was made inside the background loop; await the asynchronous one")
    future: Future[_T] = Future()
    tasks: list[asyncio.Task[_T]] = []

    def start() -> None:
        tasks.append(loop.create_task(coroutine))
        tasks[0].add_done_callback(lambda task: _hand_over(task, future))

    def stop() -> None:  # runs after `start`, so that there is a task
        tasks[0].cancel()

    loop.call_soon_threadsafe(start)
    try:
        while not wait([future], _ATTENTION).done:
            pass  # a flow's time-out in a thread reaches this one only between two waits
        return future.result()
    except BaseException:
        if not future.done():
            loop.call_soon_threadsafe(stop)
            wait([future], _CLEANUP)  # the cancelled coroutine removes its files and uploads first
        raise


def _hand_over(task: asyncio.Task[_T], future: "Future[_T]") -> None:
    """Tell the waiting thread how the task ended, once it has: a future of asyncio's own says so at once."""
    if task.cancelled():
        future.set_exception(asyncio.CancelledError())
    elif error := task.exception():
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _inside(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop  # noqa: PLW0603 - one loop a process is the point
    with _lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="prefect-environments", daemon=True).start()
        return _loop
