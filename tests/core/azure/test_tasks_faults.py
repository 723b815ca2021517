"""ACR Tasks where something goes wrong on the way: Azure silent for a while, logs cut anywhere, contexts of 100 MB."""

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from prefect_environments.core.azure.credentials import Identity
from prefect_environments.core.build.acr_tasks import builder
from prefect_environments.core.build.acr_tasks.log import RunLog
from prefect_environments.core.build.acr_tasks.request import needs_buildkit
from prefect_environments.core.build.acr_tasks.storage import Answer, Storage
from prefect_environments.core.build.docker.inputs import BuildInputs
from prefect_environments.core.errors import RegistryUnreachable
from tests.core.azure.test_tasks import Bench, bench, until  # noqa: F401  # a fixture of the same stand-in
from tests.support.azure.server import Fault
from tests.support.azure.tasks import Run

_MIB = 2**20


async def test_azure_that_is_silent_for_a_while_stops_no_build(
    bench: Bench,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Throttled, then out of order: the run goes on, and so does who waits for it."""

    async def outlives(run: Run) -> None:
        run.say("Step 1/1 : FROM base", "before")
        await until(lambda: "before" in bench.heard.lines)
        bench.server.throttle(times=4, retry_after=0, pattern="GET .*/runs/.*")
        bench.server.faults.append(Fault(503, 4, {}, "GET .*/runs/.*"))
        await until(lambda: all(fault.times == 0 for fault in bench.server.faults))
        await bench.succeeds(run)

    bench.server.agent = outlives
    assert (await bench.build()).digest == bench.digest
    told = [record.getMessage() for record in caplog.records if "it is not known how run ca1 goes" in record.message]
    assert any("throttled" in line for line in told) and any("HTTP status 503" in line for line in told)
    assert not any("cancel" in line for line in bench.server.log)


async def test_azure_that_stays_silent_ends_the_build_and_its_run(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builder, "_OUTAGE", 0.0)

    async def goes_on(run: Run) -> None:
        run.say("Step 1/1 : FROM base")
        bench.server.throttle(times=1000, retry_after=0, pattern="GET .*/runs/.*")
        await asyncio.sleep(3600)

    bench.server.agent = goes_on
    with pytest.raises(RegistryUnreachable, match="throttled"):
        await bench.build()
    assert bench.server.last.status == "Canceled"


async def test_a_build_that_is_cancelled_while_its_context_is_sent_schedules_nothing(
    bench: Bench,  # noqa: F811
) -> None:
    bench.server.faults.append(Fault(503, 1000, {}, "PUT /storage/.*"))
    work = asyncio.create_task(bench.build())
    await until(lambda: any(line.startswith("PUT") for line in bench.server.log))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not bench.server.runs and not list(bench.scratch.rglob("*"))


async def test_a_service_that_is_out_of_order_is_worth_another_try(bench: Bench) -> None:  # noqa: F811
    """It is no failed build, which nobody tries again."""
    bench.server.faults.append(Fault(503, 100, {}, ".*scheduleRun"))
    with pytest.raises(RegistryUnreachable, match=r"HTTP status 503, also after 1 retries; see Azure's status"):
        await bench.build()


@dataclass
class Blob:
    """A log in the storage, of which each look sees what is there by then."""

    content: bytes = b""
    whole: bool = False
    piece: int = 2**30
    """The most that one answer gives."""

    async def look(self, url: str) -> Answer:
        return Answer(
            200, {"Content-Length": str(len(self.content))} | ({"x-ms-meta-Complete": "1"} if self.whole else {}), b""
        )

    async def read(self, url: str, start: int, end: int) -> Answer:
        return Answer(206, {}, self.content[start : min(end, start + self.piece)])


def log_of(blob: Blob) -> RunLog:
    async def address() -> str:
        return "https://storage.example.com/log?sig=x"

    return RunLog(blob, address)  # type: ignore[arg-type]


async def lines_of(log: RunLog) -> list[str]:
    return [line async for line in log.new_lines()]


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 1000])
async def test_letters_and_lines_that_are_cut_anywhere_come_whole(piece: int) -> None:
    """Letters of one to four bytes, in answers of a few bytes each."""
    text = "aé€😀\n\nzweite Zeile ß\nthe rest 😀"
    blob = Blob(text.encode(), whole=True, piece=piece)
    assert await lines_of(log_of(blob)) == text.split("\n")


async def test_a_log_grows_at_any_byte_and_is_told_once() -> None:
    content = "Schritt 1 😀\nSchritt 2 €\n".encode()
    blob, found = Blob(), []
    log = log_of(blob)
    for end in range(len(content) + 1):
        blob.content = content[:end]
        found += await lines_of(log)
    assert found == ["Schritt 1 😀", "Schritt 2 €"] and not log.complete
    blob.content, blob.whole = blob.content + "cut off é".encode()[:-1], True
    assert await lines_of(log) == ["cut off �"] and log.complete


async def test_a_log_that_another_agent_begins_anew_is_read_from_its_start() -> None:
    blob = Blob(b"one\ntwo\nhalf of a li")
    log = log_of(blob)
    assert await lines_of(log) == ["one", "two"]
    blob.content = b"one\n"
    assert await lines_of(log) == ["one"]


async def test_a_line_without_an_end_is_not_gathered_for_ever() -> None:
    blob = Blob(b"." * (10 * _MIB), whole=True)
    assert max(map(len, await lines_of(log_of(blob)))) <= 5 * _MIB


@asynccontextmanager
async def swallowing() -> AsyncIterator[tuple[str, list[int]]]:
    """A storage that counts what is sent to it and keeps nothing."""
    sizes: list[int] = []

    async def put(request: web.Request) -> web.Response:
        sizes.append(sum([len(chunk) async for chunk in request.content.iter_chunked(_MIB)]))
        return web.Response(status=201)

    app = web.Application(client_max_size=2**40)
    app.router.add_put("/{rest:.*}", put)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/context?sig=x", sizes  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


async def test_a_context_of_100_megabytes_is_packed_and_sent_in_bounded_memory(tmp_path: Path) -> None:
    """What its ignore file names is not sent."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY model.bin /\n")
    (context / ".dockerignore").write_text("*.ignored\n")
    noise = os.urandom(_MIB)  # farther apart than a compressor looks back
    for name in ("model.bin", "data.ignored"):
        with (context / name).open("wb") as file:
            file.writelines([noise] * 100)
    storage, sent = Storage(), 0

    def count(size: int) -> None:
        nonlocal sent
        sent += size

    tracemalloc.start()
    try:
        with (tmp_path / "plain").open("w+b") as plain, (tmp_path / "packed").open("w+b") as packed:
            builder._pack(BuildInputs("FROM scratch\nCOPY model.bin /\n", context), plain, packed)
        async with swallowing() as (url, sizes):
            await storage.upload(url, tmp_path / "packed", count)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        await storage.close()
    size = (tmp_path / "packed").stat().st_size
    assert sizes == [size] and sent == size and 100 * _MIB < size < 102 * _MIB
    assert peak < 24 * _MIB


@pytest.mark.parametrize(
    ("dockerfile", "needs"),
    [
        ("FROM --platform=$BUILDPLATFORM base\n", True),
        ("FROM base\nARG TARGETARCH\nRUN echo $TARGETARCH\n", True),
        ("FROM base-${TARGETARCH}\n", True),
        ("FROM base\nARG MY_TARGETARCHIVE\n", False),
        ("FROM base\nARG ARCH=amd64\n", False),
    ],
)
def test_arguments_of_the_platform_need_buildkit(dockerfile: str, needs: bool) -> None:
    """The classic builder would leave them empty, and build something else without a word."""
    assert needs_buildkit(dockerfile) is needs


def test_who_signs_in_is_told_without_its_secret(bench: Bench) -> None:  # noqa: F811
    identity = bench.settings.identity
    assert isinstance(identity, Identity) and identity.client_secret
    assert identity.client_secret not in f"{bench.settings!r} {bench.settings} {identity!r} {identity}"
