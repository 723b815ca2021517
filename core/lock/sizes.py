"""The sizes of wheels that their index does not tell: pages of links (PEP 503) and folders have none.

A size follows from a wheel's sha256, and decides the place of its layer. If it were known for some mirrors only, one
image hash would stand for several images.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp

from prefect_environments.core.concurrency import gather
from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock import feeds
from prefect_environments.core.lock.model import LockedPackage

_AT_ONCE = 16
_ATTEMPTS = 3
_LIMIT = aiohttp.ClientTimeout(total=None, connect=20, sock_read=60)


async def complete(
    packages: Iterable[LockedPackage], credentials: feeds.Logins, known: Mapping[str, int | None]
) -> tuple[LockedPackage, ...]:
    """The packages, each with its size in bytes; `known` has sizes by sha256 of an earlier lock.

    Costs one request for each wheel whose size nobody told. Raises `ResolveError` where a wheel cannot be asked for.
    """
    given = [replace(p, size=known.get(p.sha256) if p.size is None else p.size) for p in packages]
    if all(package.size is not None for package in given):
        return tuple(given)
    slots = asyncio.Semaphore(_AT_ONCE)
    async with feeds.open_session(_LIMIT) as session:

        async def sized(package: LockedPackage) -> LockedPackage:
            if package.size is not None or package.url is None:
                return package
            async with slots:
                return replace(package, size=await _size(session, package, package.url, credentials))

        return tuple(await gather(sized(package) for package in given))


async def _size(session: aiohttp.ClientSession, package: LockedPackage, url: str, credentials: feeds.Logins) -> int:
    address = urlsplit(url)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            if address.scheme == "file":
                return Path(unquote(address.path)).stat().st_size
            return await _asked(session, url, credentials)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
            if attempt == _ATTEMPTS or address.scheme == "file" or (status and status < 500 and status != 429):
                reason = f"HTTP status {status}" if status else type(error).__name__
                raise ResolveError(
                    f"the size of {package.filename} cannot be learned from {address.hostname or 'its folder'}: "
                    f"{reason}; check the index and its credentials, then resolve again"
                ) from None
            await asyncio.sleep(feeds.pause(getattr(error, "headers", None), 0.25 * 2**attempt))
    raise AssertionError("the last attempt returns or raises")


async def _asked(session: aiohttp.ClientSession, url: str, credentials: feeds.Logins) -> int:
    """By the headers of the file; where a server gives none or knows no HEAD, by reading it."""
    async with feeds.request(session, "HEAD", url, credentials) as response:
        length = response.headers.get("Content-Length", "")
        if response.status == 200 and length.isascii() and length.isdigit():
            return int(length)
    async with feeds.request(session, "GET", url, credentials) as response:
        response.raise_for_status()
        return sum([len(chunk) async for chunk in response.content.iter_chunked(1 << 18)])
