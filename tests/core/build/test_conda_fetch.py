"""conda packages into the cache: by hash, from channels in folders and on servers, with credentials or without."""

import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.errors import PackageError
from prefect_environments.core.lock.model import LockedCondaPackage

NAME = "demo-1.0-0.conda"
USER, PASSWORD = "ann", "s3cret-77aa"
WANTED = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def package(content: bytes, url: str | None, subdir: str = "linux-64") -> LockedCondaPackage:
    sha256 = hashlib.sha256(content).hexdigest()
    return LockedCondaPackage("demo", "1.0", "0", subdir, NAME, sha256, len(content), url)


@pytest.fixture
async def channel() -> AsyncIterator[str]:
    """The address of a channel that wants a user and a password; each subdir has a package of the same name."""

    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != WANTED:
            return web.Response(status=401)
        return web.Response(body=request.match_info["subdir"].encode())

    app = web.Application()
    app.router.add_get(f"/private/{{subdir}}/{NAME}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/private"
    await runner.cleanup()


async def test_packages_of_one_file_name_in_two_subdirs_are_two(channel: str, tmp_path: Path) -> None:
    async with WheelCache(tmp_path, credentials={channel: (USER, PASSWORD)}) as cache:
        for subdir in ("linux-64", "noarch"):
            wanted = package(subdir.encode(), f"{channel}/{subdir}/{NAME}", subdir)
            assert not cache.has(wanted)
            assert (await cache.get(wanted)).read_text() == subdir and cache.has(wanted)


async def test_without_credentials_the_error_says_whose_are_missing(channel: str, tmp_path: Path) -> None:
    async with WheelCache(tmp_path, credentials={"other.example.com": (USER, PASSWORD)}) as cache:
        with pytest.raises(PackageError, match="give the channel's credentials") as caught:
            await cache.get(package(b"linux-64", f"{channel}/linux-64/{NAME}"))
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("damage", [b"linux-65", b"linux"])
async def test_a_package_with_other_bytes_than_the_locks_is_refused(
    damage: bytes, channel: str, tmp_path: Path
) -> None:
    async with WheelCache(tmp_path, credentials={channel: (USER, PASSWORD)}) as cache:
        with pytest.raises(PackageError, match=NAME):
            await cache.get(package(damage, f"{channel}/linux-64/{NAME}"))
    assert list(tmp_path.iterdir()) == []


async def test_a_channel_may_be_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a channel" / "linux-64"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(b"content")
    wanted = package(b"content", (folder / NAME).as_uri())
    async with WheelCache(tmp_path / "cache") as cache:
        assert (await cache.get(wanted)).read_bytes() == b"content"
        with pytest.raises(PackageError, match="its sha256 is"):
            await cache.get(replace(wanted, sha256="0" * 64))
        with pytest.raises(PackageError, match="resolve afresh"):
            await cache.get(replace(wanted, url=None, sha256="1" * 64))
