"""One cold build with a clock at each stage, in a process of its own; prints the spans as JSON.

python -m benchmarks.stages '{"registry": "127.0.0.1:5000", "base": "…", "requirements": ["numpy"], …}'
"""

import time

STARTED, CPU_STARTED = time.perf_counter(), time.process_time()

from prefect_environments.cli import collect_seldom  # noqa: E402

if __name__ == "__main__":
    collect_seldom()  # before all other imports, as the command line does

import asyncio  # noqa: E402
import functools  # noqa: E402
import inspect as introspection  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from collections.abc import AsyncIterator, Callable  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks import ours  # noqa: E402
from prefect_environments.core import attachments, resolving, steps  # noqa: E402
from prefect_environments.core.build import converters, fetch  # noqa: E402
from prefect_environments.core.distribution import registry  # noqa: E402
from prefect_environments.core.lock import uv  # noqa: E402

Span = tuple[float, float]


class Clock:
    """When each stage was at work, in seconds since the start. Stages run side by side."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Span]] = {"import": [(0.0, time.perf_counter() - STARTED)]}

    def watch(self, stage: str, owner: Any, name: str) -> None:
        """Note when `owner.name` starts and ends, whether it is a function, a coroutine or a stream."""
        work = getattr(owner, name)
        if introspection.isasyncgenfunction(work) or name == "read_blob":
            setattr(owner, name, self._stream(stage, work))
        elif introspection.iscoroutinefunction(work):
            setattr(owner, name, self._coroutine(stage, work))
        else:
            setattr(owner, name, self._function(stage, work))

    def _note(self, stage: str, began: float) -> None:
        self.spans.setdefault(stage, []).append((began - STARTED, time.perf_counter() - STARTED))

    def _function(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*given, **named)
            finally:
                self._note(stage, began)

        return timed

    def _coroutine(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        async def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return await work(*given, **named)
            finally:
                self._note(stage, began)

        return timed

    def _stream(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*given: Any, **named: Any) -> AsyncIterator[bytes]:
            began = time.perf_counter()
            try:
                async for chunk in work(*given, **named):
                    yield chunk
            finally:
                self._note(stage, began)

        return timed


def watched() -> Clock:
    """A clock at each stage of the path that images take."""
    clock = Clock()
    clock.watch("inspect the base", resolving, "inspect_base")
    clock.watch("resolve", uv.UvResolver, "resolve")
    clock.watch("download", fetch.WheelCache, "_download")
    clock.watch("convert", converters.Converters, "_convert")
    clock.watch("upload", registry.RegistryRepository, "write_blob")
    clock.watch("mount", registry.RegistryRepository, "mount_blob")
    clock.watch("manifests", registry.RegistryRepository, "put_manifest")
    clock.watch("manifests", registry.RegistryRepository, "get_manifest")
    clock.watch("manifests", registry.RegistryRepository, "find_manifest")
    clock.watch("attach", attachments, "attach")
    clock.watch("register", steps, "register")
    return clock


def busy(spans: list[Span]) -> float:
    """Seconds in which at least one of the spans was at work."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def main() -> None:
    clock = watched()
    told = asyncio.run(ours.build(json.loads(sys.argv[1])))
    stages = {
        name: {"busy": busy(spans), "from": min(spans)[0], "to": max(stop for _, stop in spans), "calls": len(spans)}
        for name, spans in clock.spans.items()
    }
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() - CPU_STARTED + others.ru_utime + others.ru_stime
    seconds = {"wall": time.perf_counter() - STARTED, "cpu": cpu}
    print(json.dumps({**told, "spans": stages, "seconds": seconds}))


if __name__ == "__main__":
    main()
