"""Reading from servers that lie, drop, redirect, limit and talk nonsense."""

import asyncio
import json
from collections.abc import Callable

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_environments.core.distribution.connection import Limits
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.errors import (
    DigestMismatch,
    ImageError,
    NotFound,
    PrefectEnvironmentsError,
    RegistryAuthError,
    RegistryError,
    RegistryUnreachable,
)
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor
from tests.core.distribution.odd import QUICK, drop, serve
from tests.core.distribution.test_registry import manifest, read

Blob = Callable[[bytes], Descriptor]
CONTENT = bytes(range(256)) * 8192  # 2 MiB


def head(digest: str | None, size: int = 10, kind: str = IMAGE_MANIFEST) -> web.Response:
    headers = {"Content-Type": kind, "Content-Length": str(size)}
    return web.Response(headers=headers | ({"Docker-Content-Digest": digest} if digest is not None else {}))


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_check_is_an_error_and_never_none(status: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryAuthError):
            await registry.repository("a").find_manifest("t")
        assert len(odd.log) == 1


@pytest.mark.parametrize("status", [400, 406, 418, 500, 501, 503, 302])
async def test_any_other_status_of_a_check_is_an_error(status: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryError, match=str(status)) as caught:
            await registry.repository("a").find_manifest("t")
        assert caught.value.status == status
        assert len(odd.log) == (5 if status in (500, 503) else 1)


async def test_retry_after_is_waited_for_and_the_next_answer_counts(blob: Blob) -> None:
    answers = [
        web.Response(status=429, headers={"Retry-After": "0"}),
        web.Response(status=503),
        web.Response(status=404),
    ]

    async def answer(request: web.Request) -> web.Response:
        return answers.pop(0)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").find_manifest("t") is None
        assert len(odd.log) == 3 == registry.traffic.requests


@pytest.mark.parametrize("digest", ["", "sha256:xyz", "md5:1", "sha256:" + "A" * 64, "nonsense" * 50])
async def test_a_nonsense_digest_in_a_header_is_an_error(digest: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return head(digest)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryError, match="no digest"):
            await registry.repository("a").find_manifest("t")


async def test_another_digest_than_asked_for_is_a_mismatch() -> None:
    async def answer(request: web.Request) -> web.Response:
        return head(digests.of(b"other"))

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(DigestMismatch):
            await registry.repository("a").find_manifest(digests.of(b"asked"))


async def test_a_check_without_digest_or_size_reads_the_manifest() -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.method == "HEAD":
            return head(None)
        return web.Response(body=manifest(), content_type=IMAGE_MANIFEST)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        found = await registry.repository("a").find_manifest("t")
        assert found == Descriptor(IMAGE_MANIFEST, digests.of(manifest()), len(manifest()))
        assert [line.split()[0] for line in odd.log] == ["HEAD", "GET"]


async def test_a_web_page_that_says_404_is_not_a_registrys_no() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=404, text="<html>gone", content_type="text/html")

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(NotFound, match="not a registry's"):
            await registry.repository("a").find_manifest("t")


async def test_a_404_with_html_from_a_registrys_proxy_is_a_no() -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/v2/":
            return web.json_response({})
        return web.Response(status=404, text="<html>gone", content_type="text/html")

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").find_manifest("t") is None


@pytest.mark.parametrize("lie", ["tag", "digest"])
async def test_a_manifest_with_wrong_bytes_is_a_mismatch(lie: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=manifest(), headers={"Docker-Content-Digest": digests.of(b"lie")})

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(DigestMismatch):
            await registry.repository("a").get_manifest("t" if lie == "tag" else digests.of(b"lie"))


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"<html>", b"[" * 100_000])
async def test_a_manifest_that_is_no_json_object_is_an_image_error(body: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(ImageError):
            await registry.repository("a").get_manifest("t")


async def test_a_manifest_past_four_mebibytes_is_refused() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b" " * (4 * 1024 * 1024 + 1))

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryError, match="more than"):
            await registry.repository("a").get_manifest("t")


@pytest.mark.parametrize(
    "body", [b"<html>" + b"x" * 200_000, b"\x00\xff", b'{"errors":[]}', b'{"errors":[7]}', b'{"errors":{"0":1}}']
)
async def test_an_error_page_of_any_kind_becomes_a_short_error(body: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=418, body=body, content_type="text/html")

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryError) as caught:
            await registry.repository("a").tags()
        assert len(str(caught.value)) < 500


async def test_a_registrys_own_words_are_shown_without_secrets_and_cut() -> None:
    async def answer(request: web.Request) -> web.Response:
        message = "no: mine-secret-word-5\n" + "x" * 1000
        return web.json_response({"errors": [{"code": "DENIED", "message": message}]}, status=403)

    credentials = Credentials("ann", "mine-secret-word-5")
    async with serve(answer) as odd, Registry(odd.address, credentials=credentials) as registry:
        with pytest.raises(RegistryAuthError, match=r"403 Forbidden: DENIED no: \*+ x") as caught:
            await registry.repository("a").tags()
        assert caught.value.code == "DENIED" and len(str(caught.value)) < 700


async def cut(request: web.Request, start: int, stop: int, **headers: str) -> web.StreamResponse:
    """Promise the rest of `CONTENT` from `start`, send up to `stop`, and drop the connection if that is less."""
    response = web.StreamResponse(status=206 if start else 200, headers=headers)
    response.content_length = len(CONTENT) - start
    await response.prepare(request)
    await response.write(CONTENT[start:stop])
    if stop < len(CONTENT):
        await asyncio.sleep(0.05)
        drop(request)
    return response


async def test_a_dropped_download_goes_on_where_it_was(blob: Blob) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "Range" not in request.headers:
            return await cut(request, 0, 1_000_000)
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        stated = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        return await cut(request, start, len(CONTENT), **{"Content-Range": stated})

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await read(registry.repository("a"), blob(CONTENT)) == CONTENT
        assert len(odd.log) == 2 and registry.traffic.bytes_received == len(CONTENT)


async def test_where_ranges_are_ignored_the_known_part_is_skipped(blob: Blob) -> None:
    stops = [1_000_000, len(CONTENT)]

    async def answer(request: web.Request) -> web.StreamResponse:
        return await cut(request, 0, stops.pop(0))

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await read(registry.repository("a"), blob(CONTENT)) == CONTENT
        assert len(odd.log) == 2


async def test_a_download_that_always_drops_is_given_up(blob: Blob) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await cut(request, 0, 1000)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryUnreachable, match="download of blob"):
            await read(registry.repository("a"), blob(CONTENT))
        assert len(odd.log) == 5


async def test_wrong_bytes_raise_before_the_last_chunk_is_handed_out(blob: Blob) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=CONTENT[:-1] + b"\x00")

    got = 0
    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(DigestMismatch, match="wrong bytes"):
            async for chunk in registry.repository("a").read_blob(blob(CONTENT)):
                got += len(chunk)
    assert got < len(CONTENT)


@pytest.mark.parametrize("body", [CONTENT[:-1], CONTENT + b"x"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_blob_of_another_length_is_never_accepted(blob: Blob, body: bytes, chunked: bool) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "Range" in request.headers:
            return web.Response(status=416)
        response = web.StreamResponse()
        if not chunked:
            response.content_length = len(body)
        await response.prepare(request)
        await response.write(body)
        return response

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(DigestMismatch):
            await read(registry.repository("a"), blob(CONTENT))


async def test_a_redirect_to_storage_is_followed_without_credentials(blob: Blob) -> None:
    async def store(request: web.Request) -> web.Response:
        return web.Response(body=CONTENT)

    async with serve(store) as storage:

        async def answer(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
            return web.Response(status=307, headers={"Location": f"http://{storage.address}/x?sig=a%2Fb"})

        credentials = Credentials("ann", "pass-word-3")
        async with serve(answer) as odd, Registry(odd.address, credentials=credentials) as registry:
            repository = registry.repository("a")
            assert await read(repository, blob(CONTENT)) == CONTENT
            assert await repository.has_blob(digests.of(CONTENT))
        assert storage.log[0] == "GET /x?sig=a%2Fb"
        assert all("authorization" not in headers for headers in storage.headers)


async def test_endless_redirects_end_as_an_error(blob: Blob) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": request.path})

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryError, match="redirected more than 5"):
            await read(registry.repository("a"), blob(CONTENT))
        assert len(odd.log) == 6


@pytest.mark.parametrize("location", [None, "", "ftp://x/y", "http://u:p@x/", "http://[", "a b"])
async def test_a_redirect_to_nowhere_is_an_error(blob: Blob, location: str | None) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": location} if location is not None else {})

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryError, match="no usable address"):
            await read(registry.repository("a"), blob(CONTENT))


@pytest.mark.parametrize("absolute", [False, True])
async def test_all_pages_of_tags_are_read(absolute: bool) -> None:
    async def answer(request: web.Request) -> web.Response:
        page = int(request.query.get("page", "0"))
        base = f"http://{request.host}" if absolute else ""
        link = {"Link": f'<{base}{request.path}?page={page + 1}>; rel="next"'} if page < 2 else {}
        return web.json_response({"name": "a", "tags": [f"t{page}"] if page else None}, headers=link)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").tags() == ["t1", "t2"]


@pytest.mark.parametrize(
    ("link", "word"), [("</v2/a/tags/list>", "does not end"), ("<http://example.com/x>", "another host")]
)
async def test_pages_that_loop_or_leave_the_registry_are_refused(link: str, word: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"tags": ["a"]}, headers={"Link": f"{link}; rel=next"})

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryError, match=word):
            await registry.repository("a").tags()
        assert len(odd.log) == 1


async def test_referrers_of_a_registry_with_the_api_come_from_all_its_pages() -> None:
    async def answer(request: web.Request) -> web.Response:
        last = "page" in request.query
        item = Descriptor(IMAGE_MANIFEST, digests.of(b"2" if last else b"1"), 1, artifact_type=f"x/{last}")
        index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [item.to_json()]}
        headers = {} if last else {"Link": f'<{request.path}?page=2>; rel="next"'}
        return web.Response(body=json.dumps(index).encode(), content_type=IMAGE_INDEX, headers=headers)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        repository = registry.repository("a")
        assert len(await repository.referrers(digests.of(b"0"))) == 2
        assert [item.digest for item in await repository.referrers(digests.of(b"0"), "x/True")] == [digests.of(b"2")]


async def test_a_web_page_in_place_of_referrers_leads_to_the_fallback_tag() -> None:
    async def answer(request: web.Request) -> web.Response:
        if "/referrers/" in request.path:
            return web.Response(text="<html>", content_type="text/html")
        return web.Response(status=404)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").referrers(digests.of(b"0")) == []
        assert odd.log[-1].startswith("GET /v2/a/manifests/sha256-")


async def test_a_silent_server_is_given_up(blob: Blob) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with serve(answer) as odd, Registry(odd.address, limits=Limits(stall=0.1, backoff=0.01)) as registry:
        with pytest.raises(RegistryUnreachable, match="timed out"):
            await registry.repository("a").find_manifest("t")


async def test_the_environments_proxy_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=404)

    async with serve(answer) as proxy, serve(answer) as odd:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        async with Registry("registry.example.com", plain_http=True, limits=QUICK) as registry:
            assert await registry.repository("a").find_manifest("t") is None
        async with Registry(odd.address, limits=QUICK) as registry:
            assert await registry.repository("a").find_manifest("t") is None
    assert [headers["host"] for headers in proxy.headers] == ["registry.example.com"]
    assert len(odd.log) == 1


_HEADER = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    status=st.sampled_from([200, 201, 204, 206, 301, 307, 400, 401, 403, 404, 405, 416, 429, 500, 503]),
    names=st.dictionaries(
        st.sampled_from(
            ["WWW-Authenticate", "Docker-Content-Digest", "Location", "Link", "Retry-After", "Content-Range"]
        ),
        _HEADER,
    ),
    body=st.binary(max_size=100) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode),
)
def test_no_answer_escapes_the_error_tree(status: int, names: dict[str, str], body: bytes) -> None:
    names["Retry-After"] = "0"

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, headers=names, body=body)

    async def attempt() -> None:
        blob = Descriptor(IMAGE_MANIFEST, digests.of(b"abc"), 3)
        async with serve(answer) as odd, Registry(odd.address, limits=Limits(backoff=0, attempts=2)) as registry:
            repository = registry.repository("a")
            for call in (
                lambda: repository.find_manifest("t"),
                lambda: repository.get_manifest("t"),
                repository.tags,
                lambda: repository.referrers(blob.digest),
                lambda: read(repository, blob),
                lambda: repository.write_blob(blob, b"abc"),
                lambda: repository.mount_blob(blob, "b"),
                lambda: repository.put_manifest(b"{}", IMAGE_MANIFEST),
            ):
                try:
                    await call()
                except PrefectEnvironmentsError as error:
                    assert str(error)

    asyncio.run(attempt())
