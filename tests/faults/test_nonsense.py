"""Registries that answer nonsense without an end: an error of ours, in bounded memory and time."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from prefect_environments.core.build.base import load_base
from prefect_environments.core.distribution import listings
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import IMAGE_INDEX, IMAGE_MANIFEST, LAYER_TAR, Descriptor
from tests.core.distribution.odd import Answer, Odd, serve
from tests.faults.parts import QUICK

MEMORY = 64 * 1024 * 1024
CHUNK = b" " * 65536
BLOB = Descriptor(LAYER_TAR, digests.of(b"abc"), 3)

Step = Callable[[Registry], Awaitable[object]]


def endless(
    kind: str, *, status: int = 200, pause: float = 0.0
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Two gigabytes of an answer, or a trickle of it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "HEAD":
            return web.Response(status=404)
        await request.read()
        response = web.StreamResponse(status=status, headers={"Content-Type": kind})
        await response.prepare(request)
        for _ in range(32 * 1024):
            await response.write(b" " if pause else CHUNK)
            if pause:
                await asyncio.sleep(pause)
        return response

    return answer


async def read_all(registry: Registry) -> None:
    async for _ in registry.repository("a").read_blob(BLOB):
        pass


async def put(registry: Registry) -> object:
    manifest = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}).encode()
    return await registry.repository("a").put_manifest(manifest, IMAGE_INDEX, tag="t")


STEPS: dict[str, Step] = {
    "a manifest": lambda registry: registry.repository("a").get_manifest("t"),
    "a blob": read_all,
    "tags": lambda registry: registry.repository("a").tags(),
    "referrers": lambda registry: registry.repository("a").referrers(BLOB.digest),
    "the reply to a manifest": put,
    "the reply to an upload": lambda registry: registry.repository("a").write_blob(BLOB, b"abc"),
    "a ping": lambda registry: registry.ping(),
}


async def refused(registry: Registry, step: Step, words: str) -> None:
    """The step ends in an error of ours, soon and in little memory."""
    tracemalloc.start()
    try:
        async with asyncio.timeout(60):
            with pytest.raises(PrefectEnvironmentsError, match=words) as caught:
                await step(registry)
        assert tracemalloc.get_traced_memory()[1] < MEMORY * 2
    finally:
        tracemalloc.stop()
    assert registry.address in str(caught.value)


@pytest.mark.parametrize("status", [200, 201, 202, 400, 404, 500])
@pytest.mark.parametrize("step", STEPS)
async def test_two_gigabytes_in_place_of_an_answer_are_not_read(step: str, status: int) -> None:
    limits = replace(QUICK, attempts=2)
    async with serve(endless(IMAGE_MANIFEST, status=status)) as odd, Registry(odd.address, limits=limits) as registry:
        await refused(registry, STEPS[step], ".")


@pytest.mark.parametrize("step", ["a manifest", "tags", "a ping"])
async def test_an_answer_that_trickles_without_an_end_is_given_up(step: str) -> None:
    limits = replace(QUICK, attempts=2, answer=0.5)
    async with serve(endless(IMAGE_MANIFEST, pause=0.05)) as odd, Registry(odd.address, limits=limits) as registry:
        await refused(registry, STEPS[step], "timed out")


async def test_an_endless_token_is_refused() -> None:
    endless_token = endless("application/json")

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return await endless_token(request)
        realm = f"http://{request.host}/token"
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'})

    async with serve(answer) as odd:
        made = Registry(odd.address, limits=QUICK, credentials=Credentials("ann", "pass-word-88"))
        async with made as registry:
            await refused(registry, STEPS["a ping"], "token")


@asynccontextmanager
async def raw(head: Callable[[], AsyncIterator[bytes]]) -> AsyncIterator[str]:
    """A server that says what `head` says to whatever it is asked; gives its address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            async for piece in head():
                writer.write(piece)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def one_long_header() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX: "
    for _ in range(4096):
        yield CHUNK


async def headers_without_end() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    for number in range(4_000_000):
        yield b"".join(b"X-%d-%d: %s\r\n" % (number, n, b"y" * 50) for n in range(500))


async def interim_answers_without_end() -> AsyncIterator[bytes]:
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        await asyncio.sleep(0.02)


async def a_head_that_trickles() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X: y\r\n"
        await asyncio.sleep(0.1)


async def binary() -> AsyncIterator[bytes]:
    yield bytes(range(256)) * 1000


@pytest.mark.parametrize(
    "head", [one_long_header, headers_without_end, interim_answers_without_end, a_head_that_trickles, binary]
)
async def test_absurd_heads_of_answers_are_refused(head: Callable[[], AsyncIterator[bytes]]) -> None:
    limits = replace(QUICK, connect=0.5, attempts=2)
    async with raw(head) as address, Registry(address, limits=limits) as registry:
        await refused(registry, STEPS["a ping"], "check of the registry")


def documents(served: dict[str, bytes], kind: str) -> Answer:
    """Serve manifests by tag or digest."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = served.get(request.path.rpartition("/")[2])
        return web.Response(status=404) if body is None else web.Response(body=body, content_type=kind)

    return answer


async def load(odd: Odd) -> None:
    async with Registry(odd.address, limits=QUICK) as registry:
        await load_base(registry.repository("a"), "t", "base.example.com/x:1", Platform())


def index_of(content: bytes, **more: object) -> bytes:
    entry = {"mediaType": IMAGE_INDEX, "digest": digests.of(content), "size": len(content)}
    entry["platform"] = {"os": "linux", "architecture": "amd64"}
    return json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [entry], **more}).encode()


async def test_indexes_in_indexes_are_followed_only_so_deep() -> None:
    served, content = {}, index_of(b"")
    for _ in range(50):
        served[digests.of(content)] = content
        content = index_of(content)
    served["t"] = content
    async with serve(documents(served, IMAGE_INDEX)) as odd:
        with pytest.raises(PrefectEnvironmentsError, match="index of indexes"):
            await load(odd)
        assert len(odd.log) < 10


async def test_an_index_that_names_itself_is_refused() -> None:
    """Its digest cannot be right: one that does is a collision."""
    own = index_of(b"x")
    served = {"t": own, digests.of(b"x"): own}
    async with serve(documents(served, IMAGE_INDEX)) as odd:
        with pytest.raises(PrefectEnvironmentsError, match="gave sha256"):
            await load(odd)


@pytest.mark.parametrize("layers", [1001, 10_000])
async def test_a_manifest_with_thousands_of_layers_is_refused(layers: int) -> None:
    manifest = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": BLOB.to_json()}
    served = {"t": json.dumps({**manifest, "layers": [BLOB.to_json()] * layers}).encode()}
    async with serve(documents(served, IMAGE_MANIFEST)) as odd:
        with pytest.raises(PrefectEnvironmentsError, match="at most 1000"):
            await load(odd)


async def test_a_deeply_nested_manifest_is_refused(tmp_path: Path) -> None:
    served = {"t": b'{"a":' * 200_000}
    async with serve(documents(served, IMAGE_MANIFEST)) as odd:
        with pytest.raises(PrefectEnvironmentsError, match="not a JSON object"):
            await load(odd)


@pytest.mark.parametrize(("size", "words"), [(0, "does not end"), (1 << 20, "more than .* bytes")])
async def test_links_that_always_name_one_more_page_end(size: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is new, so that only their number or their size tells that something is wrong."""
    monkeypatch.setattr(listings, "_PAGES", 100)
    pages = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal pages
        pages += 1
        link = f'</v2/a/tags/list?last={pages}>; rel="next"'
        return web.Response(body=b'{"tags": []}' + b" " * size, content_type="application/json", headers={"Link": link})

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        await refused(registry, STEPS["tags"], words)
