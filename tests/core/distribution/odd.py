"""A server in the test's own process that answers as the test says: lies, drops, redirects, pages."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from prefect_environments.core.distribution.connection import Limits

QUICK = Limits(backoff=0.01)
"""Retries without the patience that a real registry needs."""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Odd:
    """A running server; `log` has the requests in order, `address` is `127.0.0.1:PORT`."""

    address: str = ""
    log: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@asynccontextmanager
async def serve(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Odd]:
    """Serve `answer` for each request on a free port."""
    odd = Odd()

    async def handle(request: web.Request) -> web.StreamResponse:
        odd.log.append(f"{request.method} {request.path_qs}")
        odd.headers.append({name.lower(): value for name, value in request.headers.items()})
        return await answer(request)

    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    odd.address = f"127.0.0.1:{port}"
    try:
        yield odd
    finally:
        await runner.cleanup()


def drop(request: web.Request) -> web.Response:
    """Close the connection under the request."""
    assert request.transport is not None
    request.transport.abort()
    raise asyncio.CancelledError
