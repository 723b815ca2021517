"""Wheels and conda packages into a cache, verified: what is in the cache is what the lock names."""

import asyncio
import hashlib
import logging
import os
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp

from prefect_environments.core import files
from prefect_environments.core.errors import PackageError
from prefect_environments.core.lock import feeds
from prefect_environments.core.lock.model import LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.source_builds import WheelStore
from prefect_environments.core.oci import digest as digests

_ATTEMPTS = 4
_CHUNK = 256 * 1024
_AT_ONCE = 8
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=20, sock_read=60)

_Package = LockedPackage | LockedCondaPackage

logger = logging.getLogger(__name__)


class WheelCache:
    """A folder of wheels and conda packages by sha256, filled from the lock's addresses. An async context manager.

    `credentials` gives user and password by host, `host:port` or URL prefix; they are sent to these only.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: WheelStore | None = None,
        credentials: Mapping[str, tuple[str, str]] | None = None,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.folder = folder
        self._store = store
        self._credentials = credentials or {}
        self._on_bytes = on_bytes
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._running: dict[str, asyncio.Lock] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "WheelCache":
        with files.storage("using the wheel cache", self.folder):
            files.sweep(self.folder)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def has(self, package: _Package) -> bool:
        """Whether the wheel needs no download."""
        return self._path(package).is_file()

    async def get(self, package: _Package) -> Path:
        """The wheel as a local file; raises `PackageError` where it cannot be had or has other bytes."""
        path = self._path(package)
        async with self._running.setdefault(package.sha256, asyncio.Lock()), self._limit:
            if not await self._is_sound(package, path):
                await self._fetch(package, path)
        return path

    async def _is_sound(self, package: _Package, path: Path) -> bool:
        """Whether the cache has the wheel as it was put there; a file that was damaged since is removed."""
        if not path.is_file():
            return False
        with files.storage("reading the wheel cache", self.folder):
            if await asyncio.to_thread(digests.of_file, path) == f"sha256:{package.sha256}":
                os.utime(path)  # for the cache's limit: not every file system notes when a file was read
                return True
            logger.warning("the cached %s was damaged; fetching it again", package.filename)
            path.unlink(missing_ok=True)
        return False

    def _path(self, package: _Package) -> Path:
        return self.folder / package.sha256

    async def _fetch(self, package: _Package, path: Path) -> None:
        if package.url is None:
            await self._from_store(package, path)
            return
        try:
            address = urlsplit(package.url)
        except ValueError:
            message = f"the lock's address of {package.filename} is no URL; build with upgrade=True to resolve afresh"
            raise PackageError(message) from None
        if address.scheme == "file":
            await asyncio.to_thread(self._keep, package, path, Path(unquote(address.path)))
            return
        damaged = False
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._download(package, path, anew=damaged)
                return
            except PackageError:
                if damaged or attempt == _ATTEMPTS:
                    raise  # an index with other bytes gives them again; what was damaged on the way comes whole
                damaged = True
                logger.warning("%s came with other bytes than the lock's, fetching it once more", package.filename)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
                if attempt == _ATTEMPTS or (status is not None and status not in _TRY_AGAIN):
                    raise PackageError(_explain(package, address.hostname, error, status)) from None
                logger.warning("download of %s failed, trying again (%s)", package.filename, type(error).__name__)
                own = min(8.0, 0.25 * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311
                await asyncio.sleep(feeds.pause(getattr(error, "headers", None), own))

    async def _download(self, package: _Package, path: Path, *, anew: bool) -> None:
        """One try; `anew` asks caches on the way to fetch the file themselves, where theirs may be damaged."""
        if self._session is None:
            self._session = feeds.open_session(_TIMEOUT)
        headers = {"Cache-Control": "no-cache"} if anew else {}
        given = feeds.request(self._session, "GET", str(package.url), self._credentials, headers=headers)
        async with given as response:
            response.raise_for_status()
            with files.storage("writing the wheel cache", self.folder), files.temporary_file(self.folder) as file:
                hasher, size = hashlib.sha256(), 0
                async for chunk in response.content.iter_chunked(_CHUNK):
                    size += len(chunk)
                    _check_size(package, size, finished=False)
                    hasher.update(chunk)
                    file.write(chunk)
                    self._on_bytes(len(chunk))
                _check_size(package, size, finished=True)
                _check_hash(package, hasher.hexdigest())
                file.flush()
                files.publish(Path(file.name), path)

    async def _from_store(self, package: _Package, path: Path) -> None:
        if isinstance(package, LockedCondaPackage):
            raise PackageError(
                f"the lock has no address of {package.filename}; build with upgrade=True to resolve afresh"
            )
        found = None if self._store is None else await self._store.fetch(package.sha256)
        if found is None:
            raise PackageError(
                f"{package.filename} was built from source, and the registry no longer has it; build with upgrade=True"
            )
        await asyncio.to_thread(self._keep, package, path, found)

    def _keep(self, package: _Package, path: Path, source: Path) -> None:
        """Copy a package of this machine, in pieces: it may be larger than the memory that a worker has."""
        with files.storage(f"reading the package {package.filename}", source):
            given = source.open("rb")
        with given, files.storage("writing the wheel cache", self.folder), files.temporary_file(self.folder) as file:
            hasher = hashlib.sha256()
            while chunk := given.read(_CHUNK):
                hasher.update(chunk)
                file.write(chunk)
            _check_hash(package, hasher.hexdigest())
            file.flush()
            files.publish(Path(file.name), path)


def _source(package: _Package) -> str:
    return "channel" if isinstance(package, LockedCondaPackage) else "index"


def _check_size(package: _Package, size: int, *, finished: bool) -> None:
    if package.size is not None and (size > package.size or (finished and size != package.size)):
        raise PackageError(f"{package.filename} has {size} bytes so far; the lock says {package.size}: refused")


def _check_hash(package: _Package, sha256: str) -> None:
    if sha256 != package.sha256:
        raise PackageError(
            f"{package.filename} is refused: its sha256 is {sha256}, the lock says {package.sha256}. "
            f"The file was changed on its way or at its {_source(package)}"
        )


def _explain(package: _Package, host: str | None, error: Exception, status: int | None) -> str:
    answer = f"HTTP status {status}" if status else type(error).__name__
    source = _source(package)
    advice = {
        401: f"give the {source}'s credentials in a PackageIndexCredentials block, a netrc file or the environment",
        403: f"check that the {source}'s credentials may read this package",
        404: f"the {source} no longer has this file; build with upgrade=True",
    }
    text = ""
    with suppress(Exception):
        # an address that cannot be used is quoted whole by aiohttp, with what it carries
        text = "" if status or isinstance(error, aiohttp.InvalidURL) else f" ({error})"
    what = advice.get(status or 0, f"check the connection to the {source}, then run again: what was fetched is kept")
    return f"{package.filename} could not be downloaded from {host}: {answer}{text}; {what}"
