"""Wheels from a real server that serves, fails, lies and hangs up: the right file in the cache, or an error."""

import asyncio
import base64
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.errors import PackageError, StorageError
from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.lock.source_builds import FolderWheelStore
from tests.support.wheels import make_wheel

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
_WANTED = "Basic " + base64.b64encode(b"ann:s3cret-8f21").decode()


class Server:
    """Answers by the first part of the path, and counts the requests."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: Counter[str] = Counter()
        self.authorizations: list[str | None] = []

    def url(self, kind: str) -> str:
        return f"http://{self.address}/{kind}/demo-1.0-py3-none-any.whl"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        kind = request.match_info["kind"]
        self.requests[kind] += 1
        self.authorizations.append(request.headers.get("Authorization"))
        if kind == "truncated" or (kind == "truncated-once" and self.requests[kind] == 1):
            response = web.StreamResponse(headers={"Content-Length": str(len(CONTENT))})
            await response.prepare(request)
            await response.write(CONTENT[:5000])
            assert request.transport is not None
            request.transport.close()
            return response
        if kind == "shaky" and self.requests[kind] <= 2:
            return web.Response(status=500)
        if kind == "private" and request.headers.get("Authorization") != _WANTED:
            return web.Response(status=401)
        if kind == "redirect":
            raise web.HTTPFound(self.url("good"))
        if kind == "damaged-once" and self.requests[kind] == 1:
            return web.Response(body=CONTENT[:-1] + b"!")
        bodies = {"corrupt": CONTENT[:-1] + b"!", "short": CONTENT[:-1], "long": CONTENT + b"!"}
        if kind in ("good", "shaky", "private", "slow", "truncated-once", "damaged-once", *bodies):
            await asyncio.sleep(0.05 if kind == "slow" else 0)
            return web.Response(body=bodies.get(kind, CONTENT))
        return web.Response(status={"broken": 503, "forbidden": 403}.get(kind, 404))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    own = Server()
    app = web.Application()
    app.router.add_get("/{kind}/{file}", own.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    own.address = f"127.0.0.1:{runner.addresses[0][1]}"
    yield own
    await runner.cleanup()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waits between attempts are cut short; what is between them is the real thing."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    yield


def _package(url: str | None, *, size: int | None = len(CONTENT), sha256: str = SHA256) -> LockedPackage:
    return LockedPackage("demo", "1.0", "demo-1.0-py3-none-any.whl", sha256, size, url)


@pytest.mark.parametrize(
    ("kind", "requests"),
    [("good", 1), ("shaky", 3), ("truncated-once", 2), ("damaged-once", 2), ("redirect", 1), ("good?sig=1", 1)],
)
@pytest.mark.parametrize("size", [None, len(CONTENT)])
async def test_the_right_file_comes_however_shaky_the_server(
    kind: str, requests: int, size: int | None, server: Server, tmp_path: Path
) -> None:
    url = server.url(kind.partition("?")[0]) + kind.partition("?")[1] + kind.partition("?")[2]
    counted: list[int] = []
    async with WheelCache(tmp_path / "cache", on_bytes=counted.append) as cache:
        package = _package(url, size=size)
        assert not cache.has(package)
        path = await cache.get(package)
        assert cache.has(package) and await cache.get(package) == path
    assert path.read_bytes() == CONTENT
    assert server.requests[kind.partition("?")[0]] == requests
    assert sum(counted) >= len(CONTENT)
    assert [file.name for file in path.parent.iterdir()] == [SHA256]


@pytest.mark.parametrize(
    ("kind", "size", "reason", "requests"),
    [
        ("truncated", None, "could not be downloaded from 127.0.0.1", 4),
        ("corrupt", len(CONTENT), "refused: its sha256 is", 2),
        ("corrupt", None, "refused: its sha256 is", 2),
        ("short", len(CONTENT), "the lock says 1024000: refused", 2),
        ("long", len(CONTENT), "the lock says 1024000: refused", 2),
        ("long", None, "refused: its sha256 is", 2),
        ("broken", None, "HTTP status 503; check the connection", 4),
        ("missing", None, "HTTP status 404; the index no longer has this file", 1),
        ("private", None, "HTTP status 401; give the index's credentials", 1),
        ("forbidden", None, "HTTP status 403; check that the index's credentials", 1),
    ],
)
async def test_nothing_wrong_stays_in_the_cache(
    kind: str, size: int | None, reason: str, requests: int, *, server: Server, tmp_path: Path
) -> None:
    async with WheelCache(tmp_path / "cache") as cache:
        package = _package(server.url(kind), size=size)
        with pytest.raises(PackageError, match=reason) as caught:
            await cache.get(package)
        assert "demo-1.0-py3-none-any.whl" in str(caught.value)
        assert not cache.has(package)
    assert server.requests[kind] == requests
    assert list((tmp_path / "cache").glob("*")) == []


@pytest.mark.parametrize("place", ["{host}", "{host}:{port}", "http://{host}:{port}/simple/"])
async def test_credentials_go_to_their_place(place: str, server: Server, tmp_path: Path) -> None:
    host, _, port = server.address.partition(":")
    given = {place.format(host=host, port=port): ("ann", "s3cret-8f21")}
    async with WheelCache(tmp_path, credentials=given) as cache:
        assert (await cache.get(_package(server.url("private")))).read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["example.com", "{host}:1", "https://{host}:{port}/", "http://example.com/simple/"])
async def test_credentials_go_nowhere_else_and_into_no_message(place: str, server: Server, tmp_path: Path) -> None:
    host, _, port = server.address.partition(":")
    given = {place.format(host=host, port=port): ("ann", "s3cret-8f21")}
    async with WheelCache(tmp_path, credentials=given) as cache:
        with pytest.raises(PackageError, match="401") as caught:
            await cache.get(_package(server.url("private")))
    assert server.authorizations == [None] and "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://ann:s3cret-8f21@{0}/private/demo.whl",
        "http://ann:s3cret-8f21@{0}/no/demo.whl",
        "http://ann:s3cret-8f21@127.0.0.1:1/a",
        "http://ann:s3cret-8f21@[bad/a",
    ],
)
async def test_credentials_in_an_address_are_in_no_message(url: str, server: Server, tmp_path: Path) -> None:
    """An address with its own credentials is used as it is, also where others are known for the host."""
    given = {"127.0.0.1": ("ben", "other")}
    async with WheelCache(tmp_path, credentials=given) as cache:
        try:
            path = await cache.get(_package(url.format(server.address)))
        except PackageError as error:
            assert "s3cret" not in str(error)
        else:
            assert path.read_bytes() == CONTENT and "private" in url


async def test_many_who_want_one_wheel_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    async with WheelCache(tmp_path) as cache:
        package = _package(server.url("slow"))
        paths = await asyncio.gather(*(cache.get(package) for _ in range(10)))
    assert len(set(paths)) == 1 and server.requests["slow"] == 1


async def test_a_failure_does_not_keep_the_next_from_trying(server: Server, tmp_path: Path) -> None:
    async with WheelCache(tmp_path) as cache:
        with pytest.raises(PackageError):
            await cache.get(_package(server.url("corrupt")))
        assert (await cache.get(_package(server.url("good")))).read_bytes() == CONTENT


async def test_a_wheel_from_a_folder_is_checked_too(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "a folder", "demo", "1.0")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    async with WheelCache(tmp_path / "cache") as cache:
        path = await cache.get(_package(wheel.as_uri(), sha256=sha256, size=None))
        assert path.read_bytes() == wheel.read_bytes()
        with pytest.raises(PackageError, match="refused: its sha256 is"):
            await cache.get(_package(wheel.as_uri()))
        with pytest.raises((PackageError, StorageError), match="gone"):
            await cache.get(_package((tmp_path / "gone.whl").as_uri(), sha256="0" * 64))


async def test_a_wheel_that_was_built_here_comes_from_the_store(tmp_path: Path) -> None:
    store = FolderWheelStore(tmp_path / "store")
    kept = await store.keep("0" * 64, make_wheel(tmp_path, "demo", "1.0"))
    async with WheelCache(tmp_path / "cache", store=store) as cache:
        assert hashlib.sha256((await cache.get(kept)).read_bytes()).hexdigest() == kept.sha256
        with pytest.raises(PackageError, match="was built from source, and the registry no longer has it"):
            await cache.get(_package(None))
    async with WheelCache(tmp_path / "other") as cache:
        with pytest.raises(PackageError, match="upgrade=True"):
            await cache.get(kept)


async def test_a_cache_that_cannot_be_written_is_a_storage_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with WheelCache(tmp_path / "file" / "cache") as cache:
        with pytest.raises(StorageError, match="the wheel cache"):
            await cache.get(_package(server.url("good")))


async def test_a_cached_wheel_that_was_damaged_is_fetched_again(tmp_path: Path) -> None:
    """The cache's file name is a claim; what the file holds is checked before it is used."""
    wheel = make_wheel(tmp_path / "index", "demo", "1.0")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = LockedPackage("demo", "1.0", wheel.name, sha256, wheel.stat().st_size, wheel.as_uri())
    async with WheelCache(tmp_path / "cache") as cache:
        path = await cache.get(package)
        path.write_bytes(b"damaged")
        assert (await cache.get(package)).read_bytes() == wheel.read_bytes()
