"""Sizes that no index told are asked for once, of the server that has the wheel."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from aiohttp import web

from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock import sizes
from prefect_environments.core.lock.model import LockedPackage
from tests.support.wheels import make_wheel, serve_index

NAME = "demo-1.0-py3-none-any.whl"
NOBODY: Mapping[str, tuple[str, str]] = {}


def package(url: str | None, size: int | None = None) -> LockedPackage:
    return LockedPackage("demo", "1.0", NAME, "a" * 64, size, url)


@pytest.fixture
async def rude() -> AsyncIterator[str]:
    """The address of a server that knows no HEAD and tells no length; below /busy it is busy once."""
    busy: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "HEAD":
            raise web.HTTPMethodNotAllowed("HEAD", ["GET"])
        if request.path.startswith("/busy/") and not busy:
            busy.append(request.path)
            raise web.HTTPServiceUnavailable
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for _ in range(5):
            await response.write(b"x" * 1000)
        return response

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_size_is_asked_for_with_the_indexs_login(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "demo", "1.0")
    with serve_index(tmp_path, auth=("ann", "pass-word")) as index:
        asked = package(index.url.replace("simple/", f"files/{NAME}"))
        (found,) = await sizes.complete([asked], {index.url: ("ann", "pass-word")}, {})
        assert found.size == wheel.stat().st_size and index.requests == [f"/files/{NAME}"]
        with pytest.raises(ResolveError, match=f"{NAME}.*127.0.0.1.*401"):
            await sizes.complete([asked], NOBODY, {})


async def test_a_file_is_looked_at_and_a_missing_one_is_named(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "a folder", "demo", "1.0")
    (found,) = await sizes.complete([package(wheel.as_uri())], NOBODY, {})
    assert found.size == wheel.stat().st_size
    with pytest.raises(ResolveError, match=NAME):
        await sizes.complete([package((tmp_path / NAME).as_uri())], NOBODY, {})


async def test_what_is_known_costs_no_request(tmp_path: Path) -> None:
    """From the index, from an earlier lock of the same file, or of a wheel that was built here."""
    nowhere = "http://127.0.0.1:9/demo"
    given = [package(nowhere, 7), package(nowhere), package(None, 9)]
    assert [found.size for found in await sizes.complete(given, NOBODY, {"a" * 64: 8})] == [7, 8, 9]


@pytest.mark.parametrize("place", ["plain", "busy"])
async def test_a_server_without_head_and_length_is_read(rude: str, place: str) -> None:
    """Also one that is busy at first."""
    (found,) = await sizes.complete([package(f"{rude}/{place}/{NAME}")], NOBODY, {})
    assert found.size == 5000
