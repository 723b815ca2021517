"""A proxy between us and a real registry that breaks what it is told to break.

A `Rule` names requests by a pattern on `METHOD /path?query` and the fault that they meet; everything else passes.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from tests.core.distribution.odd import drop, serve

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "date", "server"})


@dataclass(frozen=True)
class Passed:
    """What the registry answered."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Rule:
    """A fault for the requests that `where` is found in: `skip` of them pass, then `times` meet it (None: all)."""

    where: str
    fault: "Fault"
    times: int | None = 1
    skip: int = 0

    def takes(self, line: str) -> bool:
        if self.times == 0 or not re.search(self.where, line):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Proxy:
    """A running proxy; `seen` has the headers of each request in order, `hits` the lines that met a fault."""

    upstream: str
    session: aiohttp.ClientSession
    authorization: str = ""
    """Sent to the registry in place of what came: this is storage, which trusts whoever has its address."""
    address: str = ""
    rules: list[Rule] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)
    hits: list[str] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append({name.lower(): value for name, value in request.headers.items()})
        line = f"{request.method} {request.path_qs}"
        rule = next((rule for rule in self.rules if rule.takes(line)), None)
        if rule is None:
            return reply(await self.forward(request))
        self.hits.append(line)
        self.reached.set()
        return await rule.fault(self, request)

    async def forward(self, request: web.Request, *, target: str = "", change: "Change | None" = None) -> Passed:
        """Hand a request on, streamed through `change`, and read the answer; the Host stays what the client sent."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        if self.authorization:
            headers["Authorization"] = self.authorization
        body = request.content.iter_any() if request.body_exists else None
        async with self.session.request(
            request.method,
            f"http://{self.upstream}{target or request.path_qs}",
            headers=headers,
            data=change(body) if change and body else body,
            allow_redirects=False,
        ) as response:
            answered = {name: value for name, value in response.headers.items() if name.lower() not in _HOP}
            return Passed(response.status, answered, await response.read())


Fault = Callable[[Proxy, web.Request], Awaitable[web.StreamResponse]]
Change = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]


@asynccontextmanager
async def proxy_to(
    upstream: str, *rules: Rule, authorization: str = "", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Proxy]:
    """A proxy to the registry at `host:port`."""
    async with aiohttp.ClientSession(
        auto_decompress=False, skip_auto_headers=("Content-Type", "User-Agent"), connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        proxy = Proxy(upstream, session, authorization, rules=list(rules))
        async with serve(proxy.answer, tls) as odd:
            proxy.address = odd.address
            yield proxy


def reply(passed: Passed, **changed: str) -> web.Response:
    """The registry's answer with other headers; an empty one is left out."""
    headers = {**passed.headers, **{name.replace("_", "-"): value for name, value in changed.items()}}
    return web.Response(status=passed.status, headers={k: v for k, v in headers.items() if v}, body=passed.body or None)


# ---- faults


def status(code: int, headers: Mapping[str, str] = {}, body: bytes = b"", kind: str = "text/plain") -> Fault:
    """Answer with a status, the registry not asked."""

    async def fault(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=code, headers={"Content-Type": kind, **headers}, body=body)

    return fault


async def drop_at_once(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    """Close the connection before anything of a body is read."""
    return drop(request)


def drop_in_request(after: int) -> Fault:
    """Hand on `after` bytes of the request's body, then close both connections."""

    async def cut(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        left = after
        async for piece in body:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                raise ConnectionResetError

    async def fault(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        try:
            await proxy.forward(request, change=cut)
        except (aiohttp.ClientError, ConnectionError):
            return drop(request)
        raise AssertionError(f"{request.method} {request.path} has no body of {after} bytes")

    return fault


async def lose_reply(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    """Let the registry do its work, then close the connection."""
    await proxy.forward(request)
    return drop(request)


def drop_in_response(after: int) -> Fault:
    """Send `after` bytes of the answer's body under its full length, then close the connection."""

    async def fault(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        passed = await proxy.forward(request)
        response = web.StreamResponse(status=passed.status, headers=passed.headers)
        await response.prepare(request)
        await response.write(passed.body[:after])
        return drop(request)

    return fault


async def stall(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    """Read nothing and say nothing."""
    await asyncio.sleep(600)
    return drop(request)


async def stall_before_reply(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    """Let the registry do its work, and say nothing."""
    await proxy.forward(request)
    return await stall(proxy, request)


def stall_in_response(after: int) -> Fault:
    """Send `after` bytes of the answer's body, then nothing more."""

    async def fault(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        passed = await proxy.forward(request)
        response = web.StreamResponse(status=passed.status, headers=passed.headers)
        await response.prepare(request)
        await response.write(passed.body[:after])
        return await stall(proxy, request)

    return fault


def truncate(after: int) -> Fault:
    """Send `after` bytes of the answer's body as if they were all."""

    async def fault(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        passed = await proxy.forward(request)
        return reply(Passed(passed.status, passed.headers, passed.body[:after]), Content_Length="")

    return fault


async def corrupt(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    """Change a byte in the middle of the answer's body."""
    passed = await proxy.forward(request)
    return reply(Passed(passed.status, passed.headers, _flipped(passed.body)))


async def corrupt_request(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    """Change the first byte of the request's body."""

    async def changed(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        first = True
        async for piece in body:
            yield bytes([piece[0] ^ 1]) + piece[1:] if first and piece else piece
            first = first and not piece

    return reply(await proxy.forward(request, change=changed))


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def header(name: str, value: str) -> Fault:
    """The registry's answer with another header; {address} is the proxy's own. An empty value leaves it out."""

    async def fault(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        return reply(await proxy.forward(request), **{name: value.format(address=proxy.address)})

    return fault


def redirect(to: str, code: int = 307) -> Fault:
    """Send the request on to another host."""
    return lambda proxy, request: status(code, {"Location": f"http://{to}{request.path_qs}"})(proxy, request)


async def unmounted(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    """Open an upload session instead of mounting, as registries may (distribution-spec, "Mounting a blob")."""
    return reply(await proxy.forward(request, target=request.path))
