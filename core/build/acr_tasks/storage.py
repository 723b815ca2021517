"""The storage behind ACR Tasks: a context goes there, and a run's log grows there (Azure REST API, "Put Blob" and
"Get Blob"). Addresses are signed: they need no credential, and are never shown."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from prefect_environments.core.distribution.connection import Stall, open_session, proxy_for, tls_context
from prefect_environments.core.distribution.content import Content
from prefect_environments.core.errors import BuildError, RegistryUnreachable
from prefect_environments.core.lock import feeds

_VERSION = {"x-ms-version": "2019-12-12"}  # the first to take 5,000 MiB in one request
_ATTEMPTS = 4
_STALL = 60.0  # seconds without a byte
_TIMES = aiohttp.ClientTimeout(connect=30, sock_read=_STALL)
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 30.0


class Storage:
    """A session with the storage; close it after use."""

    def __init__(self, ca_file: str | None = None) -> None:
        self._session = open_session()
        self._tls = tls_context(Path(ca_file) if ca_file else None)

    async def close(self) -> None:
        await self._session.close()

    async def upload(self, url: str, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Send a file as a block blob. Raises `RegistryUnreachable`, and `BuildError` if the storage refuses it."""
        size = path.stat().st_size

        content = Content(path, size, "the build context", on_bytes)

        async def send() -> "Answer":
            async with asyncio.timeout(_STALL) as timer:
                headers = {"x-ms-blob-type": "BlockBlob", "Content-Length": str(size)}
                return await self._ask("PUT", url, headers, data=content.pieces(Stall(timer, _STALL, _STALL)))

        answer = await self._patiently(send, "send the build context to", url)
        if answer.status != 201:
            raise BuildError(
                f"the storage of ACR Tasks refused the build context ({size} bytes) with HTTP status {answer.status}; "
                "try again, and keep what the build does not need out of the context with .dockerignore"
            )

    async def read(self, url: str, start: int, end: int) -> "Answer":
        """The bytes of a blob from `start` to before `end`."""

        async def ask() -> "Answer":
            return await self._ask("GET", url, {"Range": f"bytes={start}-{end - 1}"})

        return await self._patiently(ask, "read the log from", url)

    async def look(self, url: str) -> "Answer":
        """A blob's properties: its size and what is noted on it, as headers."""

        async def ask() -> "Answer":
            return await self._ask("HEAD", url, {})

        return await self._patiently(ask, "look at the log in", url)

    async def _ask(self, method: str, url: str, headers: dict[str, str], **options: Any) -> "Answer":
        target = URL(url, encoded=True)  # the signature is of this spelling
        async with self._session.request(
            method,
            target,
            headers=headers | _VERSION,
            ssl=self._tls,
            proxy=proxy_for(target),
            timeout=_TIMES,
            allow_redirects=False,
            **options,
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def _patiently(self, ask: Callable[[], Awaitable["Answer"]], what: str, url: str) -> "Answer":
        host = URL(url, encoded=True).authority
        reason = ""
        for attempt in range(_ATTEMPTS):
            pause = 0.5 * 2.0**attempt
            try:
                answer = await ask()
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = type(error).__name__  # its text may hold the address
            else:
                if answer.status not in _AGAIN:
                    return answer
                reason = f"HTTP status {answer.status}"
                pause = feeds.pause(answer.headers, pause)
            if attempt + 1 < _ATTEMPTS:
                await asyncio.sleep(min(pause, _LONGEST_PAUSE))
        raise RegistryUnreachable(
            f"could not {what} the storage of ACR Tasks at {host}, also after {_ATTEMPTS - 1} retries: {reason}. Check "
            "this network's firewall and proxies: besides Azure Resource Manager, the storage must be reachable"
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the storage."""

    status: int
    headers: Any
    body: bytes
