"""The transport to one registry: retries, authentication, redirects, size caps."""

import asyncio
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
from yarl import URL

from prefect_environments.core.distribution.auth import Auth
from prefect_environments.core.distribution.connection import Limits, Stall, open_session, proxy_for, tls_context
from prefect_environments.core.distribution.credentials import Advice, Credentials, CredentialSource
from prefect_environments.core.distribution.failures import (
    TRANSIENT,
    Again,
    is_final,
    refused,
    retry_after,
    unreachable,
)
from prefect_environments.core.distribution.messages import Answer, Request, Scopes
from prefect_environments.core.errors import RegistryError
from prefect_environments.core.oci.repository import Traffic

_ERROR_LIMIT = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECT_LIMIT = 5
_ADDRESS = re.compile(r"[\x21-\x7e]+")
_REFUSALS = 2
_FIRST_CONTACT_ATTEMPTS = 3
_FIRST_CONTACT_SECONDS = 4.0


class Transport:
    """Sends requests to one registry. `fetch` repeats what may be repeated; `once` and `stream` raise `Again`."""

    def __init__(
        self,
        origin: URL,
        host: str,
        *,
        credentials: Credentials | CredentialSource | None,
        ca_file: Path | None,
        limits: Limits,
        traffic: Traffic,
        advice: Advice | None = None,
    ) -> None:
        self.origin = origin
        self.limits = limits
        self.auth = Auth(origin, advice=advice)
        self._host = host
        self._credentials = credentials
        self._ca_file = ca_file
        self._traffic = traffic
        self._tls: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(limits.requests)
        self._learning = asyncio.Lock()
        self._authorizing: dict[Scopes, asyncio.Lock] = {}
        self._probed = False
        self._reached = False

    async def close(self) -> None:
        """Close all connections. Harmless when repeated."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def fetch(self, request: Request) -> Answer:
        """The answer, if its status is one of `request.expect`, after retries; else the error for it."""
        started, attempt = asyncio.get_running_loop().time(), 0
        while True:
            try:
                return await self.once(request)
            except Again as failure:
                attempt += 1
                await self.pause(failure, attempt, started)

    async def once(self, request: Request) -> Answer:
        """One attempt (two, if the first is to learn that a token is needed)."""
        async with self._slots:
            if request.body is not None:
                await self.learn(request.traffic)
            response = await self._authorized(request)
            try:
                return await self._accepted(request, response)
            finally:
                response.close()

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """One attempt at a response whose body is read by the caller, inside `mapped`; redirects are followed."""
        response = await self._followed(request)
        try:
            if response.status not in request.expect:
                await self._accepted(request, response)
            yield response
        finally:
            response.close()

    async def pause(self, failure: Again, attempt: int, started: float) -> None:
        """Wait before attempt number `attempt + 1`, or raise the failure's error if there is none left.

        Until the registry has answered once, it gets few attempts within some seconds: a wrong address must be
        told at once, not after a minute.
        """
        allowed = self.limits.attempts
        if not self._reached:
            elapsed = asyncio.get_running_loop().time() - started
            allowed = min(allowed, _FIRST_CONTACT_ATTEMPTS) if elapsed < _FIRST_CONTACT_SECONDS else 0
        if attempt >= allowed:
            raise failure.error
        delay = min(8.0, self.limits.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        await asyncio.sleep(max(delay, failure.retry_after or 0.0))

    async def authorization(self, scopes: Scopes) -> str | None:
        """The `Authorization` header for others' requests that need `scopes`; `None` if there is none to send."""
        request = await self._contact()
        return await self._authorization(request, scopes)

    async def identity_token(self) -> str | None:
        """The registry's identity token for the credentials, if they are one or are exchanged for one."""
        request = await self._contact()
        async with self._authorizing.setdefault(frozenset(), asyncio.Lock()):
            await self._ask_source()
            return await self._driven(self.auth.identity_token(), request.traffic)

    async def _contact(self) -> Request:
        """Know how the registry wants to be signed in to."""
        started, attempt = asyncio.get_running_loop().time(), 0
        while True:
            try:
                await self.learn(())
                return Request(method="GET", url=self.origin / "v2/", where=self._host, step="sign-in")
            except Again as failure:
                attempt += 1
                await self.pause(failure, attempt, started)

    async def learn(self, traffic: tuple[Traffic, ...]) -> None:
        """Learn the authentication scheme with one `GET /v2/`, so that no body is sent just to be refused."""
        async with self._learning:
            if self._probed or self.auth.challenge is not None:
                return
            request = Request(
                method="GET", url=self.origin / "v2/", where=self._host, step="first contact", traffic=traffic
            )
            response = await self._send(request, request.url, None)
            try:
                if response.status == 401:
                    self.auth.learn(response.headers.getall("WWW-Authenticate", []))
                elif response.status in TRANSIENT:
                    await self._accepted(request, response)
            finally:
                response.close()
            self._probed = True

    @contextmanager
    def mapped(self, request: Request, url: URL) -> Generator[None]:
        """Turn what aiohttp and the system raise into `Again` or `RegistryUnreachable`."""
        try:
            yield
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = unreachable(request, url, error)
            failure.__cause__ = error
            if is_final(error):
                raise failure from error
            raise Again(failure) from error

    # ---- one request

    async def _authorized(self, request: Request) -> aiohttp.ClientResponse:
        """Send with what is known; on a 401 learn, authorize afresh and send again, at the latest with a new token."""
        if not self.is_own(request.url):
            return await self._send(request, request.url, None)
        header = await self._authorization(request, request.scopes)
        for _ in range(_REFUSALS):
            sent = self.auth.now()
            response = await self._send(request, request.url, header)
            if response.status != 401:
                # A registry that lets somebody write has asked for all that it will ask.
                self._probed = self._probed or (request.method not in ("GET", "HEAD") and response.status < 300)
                return response
            refused_at = self.auth.now()
            try:
                wanted = self.auth.learn(response.headers.getall("WWW-Authenticate", []))
                fresh = await self._authorization(request, request.scopes | wanted, header, sent)
            except BaseException:
                response.close()
                raise
            if fresh is None:
                return response
            response.close() if request.body is not None else response.release()
            header = fresh
            if self.auth.is_since(fresh, refused_at):
                break  # else it is another request's, and may be as old as what ended the first one
        return await self._send(request, request.url, header)

    async def _authorization(
        self, request: Request, scopes: Scopes, refused: str | None = None, sent: float = float("-inf")
    ) -> str | None:
        """Drive the rules of `Auth`. One at a time for the same scopes, so that a token is asked for once."""
        if self.auth.challenge is None:
            return None
        async with self._authorizing.setdefault(scopes, asyncio.Lock()):
            await self._ask_source()
            return await self._driven(self.auth.authorize(scopes, refused, sent), request.traffic)

    async def _ask_source(self) -> None:
        known = self.auth.credentials
        if self._credentials is None or (known is not None and known.expires > time.time()):
            return
        found = self._credentials
        self.auth.credentials = found if isinstance(found, Credentials) else await found.get(self._host)
        if self.auth.credentials is None:
            self._credentials = None  # the source has none; do not ask it again

    async def _driven(self, steps: Generator[Request, Answer, str | None], traffic: tuple[Traffic, ...]) -> str | None:
        try:
            question = next(steps)
            while True:
                question = steps.send(await self._token_answer(replace(question, traffic=traffic)))
        except StopIteration as end:
            value: str | None = end.value
            return value

    async def _token_answer(self, request: Request) -> Answer:
        started, attempt = asyncio.get_running_loop().time(), 0
        while True:
            try:
                response = await self._send(request, request.url, request.headers.get("Authorization"))
                try:
                    return await self._accepted(request, response)
                finally:
                    response.close()
            except Again as failure:
                attempt += 1
                await self.pause(failure, attempt, started)

    async def _followed(self, request: Request) -> aiohttp.ClientResponse:
        """Follow redirects by hand: no credentials to another origin, and never from https to http."""
        response = await self._authorized(request)
        for _ in range(_REDIRECT_LIMIT):
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location")
            came_from = response.url
            response.release()
            target = self.resolve(request, came_from, location)
            request = replace(request, url=target)
            response = await self._authorized(request)
        if response.status in _REDIRECTS:
            response.close()
            raise RegistryError(
                f"{request.where}: {request.step} was redirected more than {_REDIRECT_LIMIT} times; "
                "check the registry's storage settings"
            )
        return response

    async def _send(self, request: Request, url: URL, authorization: str | None) -> aiohttp.ClientResponse:
        """Send once and give the response with its body unread. Raises `Again` if there is none."""
        headers = {"Accept-Encoding": "identity", **request.headers}
        if authorization is not None:
            headers["Authorization"] = authorization
        for traffic in {id(known): known for known in (self._traffic, *request.traffic)}.values():
            if request.is_token_request:
                traffic.token_requests += 1
            else:
                traffic.requests += 1
        body, limits = request.body, self.limits
        answer_limit = limits.stall if body is None or request.is_token_request else limits.commit
        with self.mapped(request, url):
            try:
                # With a body the limit moves on with each piece of it; a head that trickles in has no such excuse.
                async with asyncio.timeout(limits.connect + answer_limit) as timer:
                    data = None
                    if body is not None:
                        headers["Content-Length"] = str(body.size)
                        data = body.pieces(Stall(timer, limits.stall, answer_limit))
                    response = await self._connected().request(
                        request.method,
                        url,
                        headers=headers,
                        data=data,
                        allow_redirects=False,
                        proxy=proxy_for(url),
                        ssl=self._verified() if url.scheme == "https" else True,
                        timeout=aiohttp.ClientTimeout(sock_connect=limits.connect, sock_read=answer_limit),
                    )
            except Exception:
                if body is not None and body.failure is not None:
                    raise body.failure from None
                raise
        if not request.is_token_request:
            self._reached = True
        return response

    def _verified(self) -> ssl.SSLContext:
        if self._tls is None:  # made late: reading all authorities takes longer than a request
            self._tls = tls_context(self._ca_file)
        return self._tls

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session()
        return self._session

    async def _accepted(self, request: Request, response: aiohttp.ClientResponse) -> Answer:
        """Read the body, capped, and judge the status."""
        expected = response.status in request.expect
        limit = request.limit if expected else _ERROR_LIMIT
        pieces, size = [], 0
        with self.mapped(request, response.url):
            async with asyncio.timeout(self.limits.answer):
                async for piece in response.content.iter_any():
                    pieces.append(piece)
                    size += len(piece)
                    if size > limit:
                        break
        if size > limit and expected:
            raise RegistryError(
                f"{request.where}: {request.step} was answered with more than {limit} bytes, which is refused; "
                "check that the address is a registry's",
                status=response.status,
            )
        answer = Answer(response.status, response.headers, b"".join(pieces)[:limit])
        if expected:
            return answer
        error = refused(request, answer, self.auth.user, self.auth.advice(request.scopes))
        if response.status in TRANSIENT:
            raise Again(error, retry_after(response.headers.get("Retry-After")))
        raise error

    # ---- addresses

    def is_own(self, url: URL) -> bool:
        """Whether `url` is on the registry's own origin, so that it may see the Authorization header."""
        return (url.scheme, url.host, url.port) == (self.origin.scheme, self.origin.host, self.origin.port)

    def resolve(self, request: Request, base: URL, location: str | None) -> URL:
        """The address that a `Location` or `Link` names. Raises `RegistryError` if following it is not safe."""
        try:
            url = base.join(URL(location or "", encoded=True))
            usable = (
                bool(_ADDRESS.fullmatch(location or ""))
                and url.scheme in ("http", "https")
                and bool(url.host)
                and not url.user
            )
        except ValueError:
            usable = False
        if not usable:
            raise RegistryError(
                f"{request.where}: {request.step} was answered with no usable address to go on ({location!r:.200}); "
                "the registry does not follow the distribution specification: look into its settings and its log"
            )
        if base.scheme == "https" and url.scheme == "http":
            if url.host == self.origin.host and self.is_own(base):
                # A registry behind a proxy that ends TLS often does not know its own scheme.
                return URL.build(
                    scheme="https", authority=self.origin.authority, path=url.raw_path,
                    query_string=url.raw_query_string, encoded=True,
                )  # fmt: skip
            raise RegistryError(
                f"{request.where}: {request.step} was sent on from https to plain http at {url.authority}, refused; "
                "correct the registry's own address in its settings"
            )
        return url
