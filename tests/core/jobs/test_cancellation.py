"""A job beside its cancellation: whichever comes first, and a watch that fails."""

import asyncio

import pytest

from prefect_environments.core.errors import JobCancelled
from prefect_environments.core.jobs.cancellation import unless_cancelled


class Work:
    """A job that takes its time, and knows how it ended."""

    def __init__(self) -> None:
        self.go, self.ended = asyncio.Event(), ""

    async def run(self) -> int:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # it has something to remove
            self.ended = "cancelled"
            raise
        self.ended = "well"
        return 7


async def test_a_cancelled_job_has_ended_when_that_is_told() -> None:
    work = Work()
    with pytest.raises(JobCancelled):
        await unless_cancelled(work.run(), asyncio.sleep(0))
    assert work.ended == "cancelled"


async def test_a_job_that_ends_by_itself_ends_the_watch() -> None:
    """Its failure is its own, not a cancellation."""
    work, watching = Work(), asyncio.Event()

    async def watch() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            watching.set()

    work.go.set()
    assert await unless_cancelled(work.run(), watch()) == 7
    assert work.ended == "well"

    async def fail() -> None:
        raise ValueError("no data")

    watching.clear()
    with pytest.raises(ValueError, match="no data"):
        await unless_cancelled(fail(), watch())


async def test_a_watch_that_fails_does_not_end_the_job(caplog: pytest.LogCaptureFixture) -> None:
    work = Work()

    async def watch() -> None:
        asyncio.get_running_loop().call_later(0.01, work.go.set)
        raise OSError("the server is gone")

    assert await unless_cancelled(work.run(), watch()) == 7
    assert "a cancellation is not noticed: OSError: the server is gone" in caplog.text


async def test_a_cancellation_from_outside_reaches_the_job() -> None:
    work = Work()
    task = asyncio.create_task(unless_cancelled(work.run(), asyncio.Event().wait()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended == "cancelled"
