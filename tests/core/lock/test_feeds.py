"""Requests to private feeds: whose login goes where, beside a netrc file, through redirects and throttling."""

import asyncio
import base64
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core import files
from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock import feeds, urls
from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.lock.resolver import ResolveRequest
from prefect_environments.core.lock.uv import UvResolver
from tests.core.lock.conftest import BASE, TARGET
from tests.support.wheels import make_wheel

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Login = tuple[str, str]


@dataclass
class Server:
    """A server of this machine, and who asked it for what."""

    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Paths with the login that came."""


def login_of(request: web.Request) -> str:
    scheme, _, word = request.headers.get("Authorization", "").partition(" ")
    return base64.b64decode(word).decode() if scheme == "Basic" else ""


@asynccontextmanager
async def serving(answer: Answer, host: str = "127.0.0.1") -> AsyncIterator[Server]:
    found = Server()

    async def handle(request: web.Request) -> web.StreamResponse:
        found.asked.append((request.path, login_of(request)))
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://{host}:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    try:
        yield found
    finally:
        await runner.cleanup()


async def fine(request: web.Request) -> web.StreamResponse:
    return web.Response(text="fine")


async def get(url: str, known: feeds.Logins) -> int:
    async with (
        feeds.open_session(aiohttp.ClientTimeout(total=20)) as session,
        feeds.request(session, "GET", url, known) as response,
    ):
        return response.status


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a netrc file that knows this machine by another login."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login netrc password of-netrc\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    return tmp_path


@pytest.mark.usefixtures("home")
async def test_a_blocks_login_goes_before_the_netrc_files_which_is_for_what_no_block_is_for() -> None:
    async with serving(fine) as server:
        assert await get(f"{server.url}/a/x.whl", {f"{server.url}/a": ("ann", "of-a")}) == 200
        assert await get(f"{server.url}/b", {"https://other.example.com": ("ann", "of-a")}) == 200
        assert await get(f"{server.url.replace('://', '://me:mine@')}/c", {"127.0.0.1": ("ann", "of-a")}) == 200
        assert server.asked == [("/a/x.whl", "ann:of-a"), ("/b", "netrc:of-netrc"), ("/c", "me:mine")]


@pytest.mark.parametrize(
    "login", [("ü", 'p@s:s/w%rd#"\\é ?'), ("user@example.com", "%41"), ("token", ""), ("", ":secret")]
)
async def test_any_letters_of_a_login_arrive_as_they_are(login: Login) -> None:
    async with serving(fine) as server:
        await get(f"{server.url}/x", {server.url: login})
        assert server.asked == [("/x", ":".join(login))]


async def test_a_redirect_to_another_host_is_followed_without_the_login_and_one_to_the_same_host_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`localhost` is another host than 127.0.0.1, and so is another port."""
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    async with serving(fine, "localhost") as storage:

        async def moved(request: web.Request) -> web.StreamResponse:
            places = {"/one": "/two", "/two": f"{storage.url}/blob?sig=a%2Bb"}
            return web.Response(status=302, headers={"Location": places[request.path]})

        async with serving(moved) as server:
            assert await get(f"{server.url}/one", {server.url: ("ann", "word")}) == 200
            assert server.asked == [("/one", "ann:word"), ("/two", "ann:word")]
            assert storage.asked == [("/blob", "")]


async def test_redirects_end() -> None:
    async def round_again(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/"})

    async def to_a_file(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "file:///etc/passwd"})

    for answer, said in ((round_again, "more than 10 redirects"), (to_a_file, "a redirect to an address with file")):
        async with serving(answer) as server:
            with pytest.raises(aiohttp.ClientError, match=said):
                await get(server.url, {})


def feed_server(folder: Path, logins: dict[str, Login], places: str) -> Answer:
    """Feeds by the first part of their path, each with a login; `places` says where the files of FEED are."""

    async def answer(request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        feed = parts[0]
        if login_of(request) != ":".join(logins[feed]):
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=feeds"})
        if parts[-1].endswith(".whl"):
            return web.FileResponse(folder / feed / parts[-1])
        found = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (folder / feed).glob(f"{parts[-1] if 'simple' in parts else ''}*.whl")
        }
        place = places.replace("FEED", feed)
        lines = [f'<a href="{place}/{name}#sha256={digest}">{name}</a>' for name, digest in found.items()]
        return web.Response(text="\n".join(lines), content_type="text/html", status=200 if found else 404)

    return answer


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "logins",
    [
        {"a": ("ann", "of-a"), "b": ("bob", "of-b")},
        {"a": ("ü", 'p@s:s/w%rd#"\\é ?'), "b": ("b@example.com", "q%20 &")},
    ],
    ids=["plain", "odd"],
)
async def test_two_feeds_on_one_host_have_a_login_each_for_resolving_and_downloading(
    logins: dict[str, Login], tmp_path: Path, environ: dict[str, str]
) -> None:
    """Files lie beside the pages of the index, as in Azure Artifacts; the user's netrc file has a third login."""
    make_wheel(tmp_path / "a", "pip", "26.1")
    make_wheel(tmp_path / "a", "alpha", "1.0")
    make_wheel(tmp_path / "b", "beta", "1.0")
    async with serving(feed_server(tmp_path, logins, "/FEED/pypi/download")) as server:
        first, second = (f"{server.url}/{feed}/pypi/simple/" for feed in ("a", "b"))
        known = {first: logins["a"], second: logins["b"]}
        asked: dict[str, Any] = {"index_url": first, "extra_index_urls": (second,), "index_credentials": known}
        request = ResolveRequest(("alpha", "beta"), TARGET, BASE, **asked)
        lock = await UvResolver(environ={**environ, "HOME": str(tmp_path)}, scratch=tmp_path / "scratch").resolve(
            request
        )
        assert [package.name for package in lock.packages] == ["alpha", "beta", "pip"]
        async with WheelCache(tmp_path / "cache", credentials=known) as cache:
            for package in lock.packages:
                assert (await cache.get(package)).is_file()
    assert logins["b"][1] not in repr(lock)


@pytest.mark.usefixtures("home")
async def test_links_have_their_login_though_the_users_netrc_file_has_another(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    make_wheel(tmp_path / "links", "pip", "26.1")
    word = 'p@:s/w%rd#"\\é ß'
    async with serving(feed_server(tmp_path, {"links": ("ann", word)}, "/FEED/files")) as server:
        page = f"{server.url}/links/"
        request = ResolveRequest(
            (), TARGET, BASE, find_links=(page,), no_index=True, index_credentials={page: ("ann", word)}
        )
        env = {**environ, "HOME": str(tmp_path)}
        lock = await UvResolver(environ=env, scratch=tmp_path / "scratch").resolve(request)
    assert [package.name for package in lock.packages] == ["pip"]


async def test_what_uv_cannot_tell_apart_is_told_with_what_to_do(tmp_path: Path, environ: dict[str, str]) -> None:
    """Files of two feeds in one place, which no login's address begins with."""
    logins = {"a": ("ann", "of-a"), "b": ("bob", "of-b")}
    make_wheel(tmp_path / "a", "pip", "26.1")
    make_wheel(tmp_path / "b", "beta", "1.0")
    behind = feed_server(tmp_path, logins, "/files/FEED")

    async def answer(request: web.Request) -> web.StreamResponse:
        return await behind(request.clone(rel_url=request.path.removeprefix("/files")))

    async with serving(answer) as server:
        first, second = (f"{server.url}/{feed}/simple/" for feed in ("a", "b"))
        known = {first: logins["a"], second: logins["b"]}
        request = ResolveRequest(
            ("beta",), TARGET, BASE, index_url=first, extra_index_urls=(second,), index_credentials=known
        )
        with pytest.raises(
            ResolveError, match=r"Feeds on 127\.0\.0\.1:\d+ have different ones: .* one token"
        ) as caught:
            await UvResolver(environ=environ, scratch=tmp_path / "scratch").resolve(request)
    assert "of-a" not in str(caught.value) and "of-b" not in str(caught.value)


RESOLVES = """
import asyncio, sys
from pathlib import Path
from prefect_environments.core.lock.resolver import ResolveRequest
from prefect_environments.core.lock.uv import UvResolver
from tests.core.lock.conftest import BASE, TARGET
logins = {sys.argv[1]: ("ann", WORD)}
request = ResolveRequest(("alpha",), TARGET, BASE, index_url=sys.argv[1], index_credentials=logins)
asyncio.run(UvResolver(scratch=Path(sys.argv[2])).resolve(request))
"""


async def test_what_a_killed_process_leaves_is_for_its_user_only_and_swept_by_the_next(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    word, scratch, asked = "planted-3c1d", tmp_path / "scratch", asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(3600)
        raise AssertionError

    async with serving(hang) as server:
        words = [sys.executable, "-c", RESOLVES.replace("WORD", repr(word)), f"{server.url}/simple", str(scratch)]
        process = await asyncio.create_subprocess_exec(*words, env=environ, cwd=Path(__file__).parents[3])
        await asked.wait()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        await process.wait()
        for child in children:  # uv, which would ask the server again for some time
            os.kill(int(child), signal.SIGKILL)
        left = [file for file in scratch.rglob("*") if file.is_file() and word in file.read_text("utf-8", "replace")]
        assert left and {file.stat().st_mode & 0o777 for file in left} == {0o600}
        assert {file.parent.stat().st_mode & 0o777 for file in left} == {0o700}
        files.sweep(scratch)
        assert not list(scratch.rglob("*"))


async def test_where_nothing_tells_which_feed_a_file_is_of_the_next_login_is_tried_and_no_other_hosts() -> None:
    known = {"/a/simple": ("ann", "of-a"), "/b/simple": ("bob", "of-b")}

    async def of_b(request: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if login_of(request) == "bob:of-b" else 401)

    async with serving(of_b) as server:
        logins = {f"{server.url}{path}": login for path, login in known.items()}
        logins["https://other.example.com/files"] = ("eve", "of-eve")
        assert await get(f"{server.url}/files/guid/x.whl", logins) == 200
        assert server.asked == [("/files/guid/x.whl", "ann:of-a"), ("/files/guid/x.whl", "bob:of-b")]
        server.asked.clear()
        assert await get(f"{server.url}/a/simple/x.whl", logins) == 401  # told to be ann's: nobody else's is sent
        assert server.asked == [("/a/simple/x.whl", "ann:of-a")]


def test_hosts_are_compared_without_case_and_the_schemes_own_port() -> None:
    known = {"https://Packages.Example.com/Simple/": ("ann", "word")}
    assert urls.credentials_for("https://packages.example.com:443/Simple/x", known) == ("ann", "word")
    assert urls.credentials_for("HTTPS://PACKAGES.example.com/files/x.whl", known) == ("ann", "word")
    assert urls.credentials_for("http://packages.example.com/Simple/x", known) is None
    assert urls.credentials_for("https://packages.example.com:8443/Simple/x", known) is None
    assert urls.credentials_for("https://packages.example.com.evil.example/Simple/x", known) is None


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.lists(st.sampled_from("abc"), max_size=4))
def test_what_a_feed_has_below_it_is_always_its_own(path: list[str], rest: list[str]) -> None:
    """However many feeds are beside it."""
    feed = f"https://x.example.com/{'/'.join(path)}"
    known = {f"https://x.example.com/{other}": ("other", other) for other in "abc" if [other] != path}
    known[feed] = ("own", "own")
    found = urls.candidates("/".join([feed, *rest, "file.whl"]), known)
    assert found[0][0] == "own" and len(found) == 1


async def test_a_throttled_download_waits_as_long_as_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(tmp_path, "alpha", "1.0")
    answers = [web.Response(status=429, headers={"Retry-After": "7"}), web.FileResponse(wheel)]
    waited: list[float] = []

    async def throttled(request: web.Request) -> web.StreamResponse:
        return answers.pop(0)

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    async with serving(throttled) as server:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        package = LockedPackage("alpha", "1.0", wheel.name, digest, wheel.stat().st_size, f"{server.url}/{wheel.name}")
        async with WheelCache(tmp_path / "cache") as cache:
            monkeypatch.setattr("prefect_environments.core.build.fetch.asyncio.sleep", wait)
            assert (await cache.get(package)).is_file()
    assert [seconds for seconds in waited if seconds] == [7.0]


def test_no_answer_asks_for_more_than_a_minute() -> None:
    assert feeds.pause({"Retry-After": "3600"}, 1) == 60
    assert feeds.pause({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 1) == 60
    assert feeds.pause({"Retry-After": "soon"}, 1) == 1
    assert feeds.pause({"Retry-After": "0"}, 1) == 0
    assert feeds.pause(None, 2) == 2
