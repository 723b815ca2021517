"""One event loop in a background thread, so that the synchronous surface works everywhere: in scripts, notebooks and
functions that already run in a loop."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, wait
from typing import Any, TypeVar

_T = TypeVar("_T")
_ATTENTION = 0.5  # seconds
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end and give its result; Ctrl-C and a flow's cancellation cancel it first."""
    loop = _running_loop()
    if _inside(loop):
        coroutine.close()
        raise RuntimeError("a synchronous call was made inside the background loop; await the asynchronous one")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        while not wait([future], _ATTENTION).done:
            pass  # a flow's time-out in a thread reaches this one only between two waits
        return future.result()
    except BaseException as error:
        if not future.done():
            future.cancel()
            _wait(future)
        if isinstance(error, CancelledError):
            raise asyncio.CancelledError from None
        raise


def _wait(future: Any) -> None:
    """Let the cancelled coroutine remove its files and uploads."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    done.wait(10)


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
