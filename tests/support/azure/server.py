"""What all stand-ins share: an HTTP server in a thread of the test's process, its log, and faults on demand."""

import asyncio
import re
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from aiohttp import web

_T = TypeVar("_T")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Fault:
    """Answer `status` instead of the truth, `times` times, to requests whose `METHOD /path` fits `pattern`."""

    status: int
    times: int
    headers: Mapping[str, str] = field(default_factory=dict)
    pattern: str = ".*"


class StandIn(ABC):
    """A server on a free port of 127.0.0.1, from `with` to its end: http, or https with a TLS context.

    Tests may read and change its public attributes while it runs.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.log: list[str] = []
        """`METHOD /path?query` of each request, in order."""
        self.faults: list[Fault] = []
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__, daemon=True)
        self._runner: web.AppRunner | None = None

    @abstractmethod
    def routes(self) -> Iterable[web.RouteDef]:
        """What the server answers."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}"

    def throttle(self, times: int = 1, retry_after: int = 1, pattern: str = ".*") -> None:
        """Answer 429 with `Retry-After` (seconds) to the next requests."""
        self.faults.append(Fault(429, times, {"Retry-After": str(retry_after)}, pattern))

    def __enter__(self) -> Self:
        self._thread.start()
        self.resume()
        return self

    def __exit__(self, *unused: object) -> None:
        self.go_down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def go_down(self) -> None:
        """Stop listening: connections are refused until `resume`, which takes the same port."""
        if self._runner is not None:
            self._run(self._runner.cleanup())
            self._runner = None

    def resume(self) -> None:
        """Listen, again on the same port if there was one."""
        self._run(self._listen())

    def error(self, request: web.Request, status: int) -> web.Response:
        """The body of an injected fault, in the way of this service."""
        return web.json_response({"error": {"code": str(status), "message": "injected"}}, status=status)

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self) -> None:
        application = web.Application(middlewares=[self._watch], client_max_size=1 << 30)
        application.add_routes(self.routes())
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    @property
    def _watch(self) -> Any:
        @web.middleware
        async def watch(request: web.Request, handler: _Handler) -> web.StreamResponse:
            self.log.append(f"{request.method} {request.path_qs}")
            for fault in self.faults:
                if fault.times > 0 and re.fullmatch(fault.pattern, f"{request.method} {request.path}"):
                    fault.times -= 1
                    answer = self.error(request, fault.status)
                    answer.headers.update(fault.headers)
                    return answer
            return await handler(request)

        return watch
