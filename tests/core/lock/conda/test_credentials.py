"""Private channels over HTTP: who gets the password, and where it is not."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock.conda import CondaRequest, CondaResolver
from prefect_environments.core.lock.target import Platform
from tests.support.channel import Channel, CondaPackage, Server, serve

USER, PASSWORD = "worker", "planted-5ecret"
BASIC = b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Channel(tmp_path / "served" / "team").add(CondaPackage("app", subdir="linux-64"))
    return tmp_path / "served"


def asked(server: Server, credentials: dict[str, tuple[str, str]]) -> CondaRequest:
    return CondaRequest(("app",), (f"{server.url}/team",), Platform(), "glibc", "2.36", credentials=credentials)


async def test_a_private_channel_is_read_and_the_password_stays_nowhere(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cache = tmp_path / "cache"
    with serve(folder, auth=(USER, PASSWORD)) as server:
        request = asked(server, {server.url: (USER, PASSWORD)})
        packages = await CondaResolver(cache=cache).resolve(request)
    assert not server.refused
    assert [package.url for package in packages] == [f"{server.url}/team/linux-64/app-1.0-0.conda"]
    told = [repr(request), repr(packages), json.dumps(packages[0].record), caplog.text]
    written = [path for path in cache.rglob("*") if path.is_file()]
    assert any(b"app" in path.read_bytes() for path in written), "nothing is cached, so nothing was looked at"
    told += [path.read_bytes().decode("latin-1") + path.name for path in written]
    assert not [text for text in told for secret in (PASSWORD, BASIC) if secret in text]


@pytest.mark.parametrize("login", [None, (USER, "wr0ng-secret")])
async def test_a_refused_login_is_told_without_it(folder: Path, tmp_path: Path, login: tuple[str, str] | None) -> None:
    with serve(folder, auth=(USER, PASSWORD)) as server:
        request = asked(server, {"127.0.0.1": login} if login else {})
        with pytest.raises(ResolveError, match=r"(?s)401 Unauthorized.*give a user and password") as refusal:
            await CondaResolver(cache=tmp_path / "cache").resolve(request)
    assert server.refused
    assert not server.requests
    assert "wr0ng-secret" not in str(refusal.value)


async def test_a_redirect_to_another_server_does_not_take_the_password_along(folder: Path, tmp_path: Path) -> None:
    with serve(folder) as other, serve(folder, auth=(USER, PASSWORD), redirect=other.url) as server:
        packages = await CondaResolver(cache=tmp_path / "cache").resolve(asked(server, {server.url: (USER, PASSWORD)}))
    assert [package.name for package in packages] == ["app"]
    assert set(server.authorizations) == {f"Basic {BASIC}"}
    assert other.requests
    assert set(other.authorizations) == {None}


async def test_a_server_that_cannot_be_reached_is_told(tmp_path: Path, folder: Path) -> None:
    with serve(folder) as gone:
        pass
    with pytest.raises(ResolveError, match=r"(?s)channel cannot be read.*check the channel's address and the network"):
        await CondaResolver(cache=tmp_path / "cache").resolve(asked(gone, {}))


async def test_cancelling_ends_the_wait_for_a_channel(folder: Path, tmp_path: Path) -> None:
    with serve(folder, hang=True) as server:
        task = asyncio.create_task(CondaResolver(cache=tmp_path / "cache").resolve(asked(server, {})))
        await asyncio.to_thread(server.asked.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_slow_channel_is_given_up(folder: Path, tmp_path: Path) -> None:
    with serve(folder, hang=True) as server, pytest.raises(ResolveError, match=r"took more than 0\.2 seconds"):
        await CondaResolver(cache=tmp_path / "cache", timeout=0.2).resolve(asked(server, {}))


RESOLVE = """
import asyncio, sys
from pathlib import Path
from prefect_environments.core.lock.conda import CondaRequest, CondaResolver
from prefect_environments.core.lock.target import Platform
request = CondaRequest(("app",), (sys.argv[1],), Platform(), "glibc", "2.36")
print(asyncio.run(CondaResolver(cache=Path(sys.argv[2])).resolve(request))[0].name)
"""


def test_the_home_folder_is_neither_read_nor_written(folder: Path, tmp_path: Path) -> None:
    """Credentials and settings of this machine's conda would otherwise be a part of the answer."""
    home = tmp_path / "home"
    home.mkdir()
    with serve(folder, auth=(USER, PASSWORD)) as server:
        (home / ".condarc").write_text("offline: true\n")
        stored = {"127.0.0.1": {"BasicHTTP": {"username": USER, "password": PASSWORD}}}
        (home / "auth.json").write_text(json.dumps(stored))
        before = {path: path.read_bytes() for path in home.iterdir()}
        environ = {"HOME": str(home), "RATTLER_AUTH_FILE": str(home / "auth.json")}
        known = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "CONDA", "RATTLER"))}
        done = subprocess.run(
            [sys.executable, "-c", RESOLVE, f"{server.url}/team", str(tmp_path / "cache")],
            env=known | environ,
            capture_output=True,
            text=True,
            check=False,
        )
    assert "401 Unauthorized" in done.stderr
    assert server.refused
    assert not server.requests
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
