"""Writing to servers that lie, drop and lose things."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from prefect_environments.core.distribution.connection import Limits
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.errors import DigestMismatch, ImageError, RegistryError, RegistryUnreachable
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor
from tests.core.distribution.odd import QUICK, drop, serve
from tests.core.distribution.test_registry import manifest

Blob = Callable[[bytes], Descriptor]
CONTENT = b"0123456789abcdef" * 65536  # 1 MiB


class Uploads:
    """A registry's upload API with one place for each trouble; `log` has what was done."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.sessions = 0
        self.put: Callable[[web.Request, bytes], web.Response] | None = None
        self.location = "/v2/a/blobs/uploads/{n}?state=a%2Fb"
        self.mounted = 202
        self.deleted: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        if request.method == "HEAD":
            return web.Response(status=200 if request.path.rpartition("/")[2] in self.stored else 404)
        if request.method == "GET":
            return web.json_response({})
        if request.method == "DELETE":
            self.deleted.append(request.path_qs)
            return web.Response(status=204)
        if request.method == "POST":
            self.sessions += 1
            status = self.mounted if "mount" in request.query else 202
            return web.Response(status=status, headers={"Location": self.location.format(n=self.sessions)})
        content = await request.read()
        if self.put is not None:
            return self.put(request, content)
        self.stored[request.query["digest"]] = content
        return web.Response(status=201)


async def test_the_locations_own_query_is_kept(blob: Blob) -> None:
    uploads = Uploads()
    async with serve(uploads.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").write_blob(blob(CONTENT), CONTENT) is True
    assert uploads.stored == {digests.of(CONTENT): CONTENT}
    assert odd.log[-1].startswith("PUT /v2/a/blobs/uploads/1?state=a%2Fb&digest=sha256%3A")
    assert [line.split()[0] for line in odd.log] == ["HEAD", "POST", "PUT"]
    assert odd.headers[-1]["content-length"] == str(len(CONTENT))


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        (201, ["POST"]),
        (202, ["POST", "PUT"]),
        *((no, ["POST", "HEAD", "POST", "PUT"]) for no in (400, 401, 403, 404, 405, 415)),
    ],
)
async def test_a_small_blob_is_asked_for_by_what_opens_its_upload(blob: Blob, answer: int, requests: list[str]) -> None:
    """A mount from the repository itself; a registry that refuses mounts is asked in the plain way."""
    uploads = Uploads()
    uploads.mounted = answer
    async with serve(uploads.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").write_blob(blob(b"abc"), b"abc") is (answer != 201)
    assert [line.split()[0] for line in odd.log] == requests
    assert odd.log[0].startswith("POST /v2/a/blobs/uploads/?mount=sha256%3A")
    assert odd.log[0].split()[1].endswith("&from=a")
    assert bool(uploads.stored) is (answer != 201)


async def test_a_dropped_upload_starts_again_with_a_new_session(blob: Blob, tmp_path: Path) -> None:
    uploads, sent = Uploads(), list[int]()
    (tmp_path / "blob").write_bytes(CONTENT)

    def put(request: web.Request, content: bytes) -> web.Response:
        uploads.put = None
        return drop(request)

    uploads.put = put
    async with serve(uploads.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").write_blob(blob(CONTENT), tmp_path / "blob", on_bytes=sent.append) is True
    assert uploads.stored == {digests.of(CONTENT): CONTENT}
    assert uploads.sessions == 2 and uploads.deleted == ["/v2/a/blobs/uploads/1?state=a%2Fb"]
    assert sum(sent) == len(CONTENT) and min(sent) == -len(CONTENT)
    assert registry.traffic.bytes_sent == 2 * len(CONTENT)


async def test_a_lost_reply_to_a_stored_blob_does_not_send_it_again(blob: Blob) -> None:
    uploads = Uploads()

    def put(request: web.Request, content: bytes) -> web.Response:
        uploads.stored[request.query["digest"]] = content
        return drop(request)

    uploads.put = put
    async with serve(uploads.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").write_blob(blob(CONTENT), CONTENT) is True
    assert uploads.sessions == 1 and registry.traffic.bytes_sent == len(CONTENT)


@pytest.mark.parametrize("status", [404, 416, 429, 500, 503])
async def test_a_lost_session_or_a_passing_failure_is_tried_again(blob: Blob, status: int) -> None:
    uploads = Uploads()

    def put(request: web.Request, content: bytes) -> web.Response:
        uploads.put = None
        return web.Response(status=status)

    uploads.put = put
    async with serve(uploads.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").write_blob(blob(b"abc"), b"abc") is True
    assert uploads.sessions == 2


@pytest.mark.parametrize(("status", "kind"), [(503, RegistryUnreachable), (400, RegistryError), (413, RegistryError)])
async def test_an_upload_that_never_works_is_an_error(blob: Blob, status: int, kind: type[RegistryError]) -> None:
    uploads = Uploads()
    uploads.put = lambda request, content: web.Response(status=status)
    async with serve(uploads.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(kind, match=f"upload of blob .*{status}"):
            await registry.repository("a").write_blob(blob(b"abc"), b"abc")
    assert uploads.sessions == (5 if status == 503 else 1) == len(uploads.deleted)


async def test_a_registry_that_stored_something_else_is_a_mismatch(blob: Blob) -> None:
    uploads = Uploads()
    uploads.put = lambda request, content: web.Response(
        status=201, headers={"Docker-Content-Digest": digests.of(b"lie")}
    )
    async with serve(uploads.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(DigestMismatch):
            await registry.repository("a").write_blob(blob(b"abc"), b"abc")


async def test_credentials_do_not_follow_an_upload_to_another_host(blob: Blob) -> None:
    storage = Uploads()
    async with serve(storage.answer) as other:
        uploads = Uploads()
        uploads.location = f"http://{other.address}/store/{{n}}"

        async def answer(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
            return await uploads.answer(request)

        credentials = Credentials("ann", "pass-word-4")
        async with serve(answer) as odd, Registry(odd.address, credentials=credentials) as registry:
            assert await registry.repository("a").write_blob(blob(b"abc"), b"abc") is True
        assert storage.stored == {digests.of(b"abc"): b"abc"}
        assert all("authorization" not in headers for headers in other.headers)


async def test_a_cancelled_upload_cancels_its_session(blob: Blob) -> None:
    uploads, reached = Uploads(), asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.method == "PUT":
            reached.set()
            await asyncio.sleep(60)
        return await uploads.answer(request)

    async with serve(answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        task = asyncio.create_task(registry.repository("a").write_blob(blob(CONTENT), CONTENT))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert uploads.deleted == ["/v2/a/blobs/uploads/1?state=a%2Fb"]


async def test_an_upload_that_nobody_takes_is_given_up(blob: Blob) -> None:
    uploads, content = Uploads(), bytes(64 * 1024 * 1024)

    async def answer(request: web.Request) -> web.Response:
        if request.method == "PUT":
            await asyncio.sleep(60)  # reads nothing, so that the sender's buffers fill up
        return await uploads.answer(request)

    limits = Limits(stall=0.3, commit=60, backoff=0.01, attempts=2)
    async with serve(answer) as odd, Registry(odd.address, limits=limits) as registry:
        with pytest.raises(RegistryUnreachable, match="timed out"):
            await registry.repository("a").write_blob(blob(content), content)
    assert uploads.sessions == 2


@pytest.mark.parametrize("status", [202, 400, 401, 403, 404, 405])
async def test_a_refused_mount_is_a_no(blob: Blob, status: int) -> None:
    uploads = Uploads()
    uploads.mounted = status
    async with serve(uploads.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        assert await registry.repository("a").mount_blob(blob(b"abc"), "from") is False
    assert len(uploads.deleted) == (status == 202)


async def test_a_failing_registry_is_not_a_refused_mount(blob: Blob) -> None:
    uploads = Uploads()
    uploads.mounted = 500
    async with serve(uploads.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(RegistryUnreachable, match="mount"):
            await registry.repository("a").mount_blob(blob(b"abc"), "from")


class Manifests:
    """Manifests by tag or digest, without the referrers API; `meanwhile` is called after each write of an index."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[bytes, str]] = {}
        self.headers: dict[str, str] = {}
        self.meanwhile: Callable[[str], None] = lambda reference: None

    async def answer(self, request: web.Request) -> web.Response:
        reference = request.path.rpartition("/")[2]
        if request.method == "PUT":
            self.stored[reference] = (await request.read(), request.headers["Content-Type"])
            if request.headers["Content-Type"] == IMAGE_INDEX:
                self.meanwhile(reference)
            return web.Response(status=201, headers=self.headers)
        if reference not in self.stored or "/referrers/" in request.path:
            return web.Response(status=404)
        body, kind = self.stored[reference]
        return web.Response(body=body, content_type=kind)


SUBJECT = Descriptor(IMAGE_MANIFEST, digests.of(b"subject"), 7)
REFERRER = manifest(subject=SUBJECT.to_json(), artifactType="x/y")


async def test_a_registry_with_the_referrers_api_needs_no_fallback_tag() -> None:
    manifests = Manifests()
    manifests.headers = {"OCI-Subject": SUBJECT.digest}
    async with serve(manifests.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        await registry.repository("a").put_manifest(REFERRER, IMAGE_MANIFEST)
    assert list(manifests.stored) == [digests.of(REFERRER)]


@pytest.mark.parametrize("rivals", [2, 99])
async def test_a_referrer_that_another_writer_dropped_is_added_again_but_not_for_ever(rivals: int) -> None:
    manifests, left = Manifests(), [rivals]
    empty = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}).encode()

    def meanwhile(reference: str) -> None:
        if left[0]:
            left[0] -= 1
            manifests.stored[reference] = (empty, IMAGE_INDEX)

    manifests.meanwhile = meanwhile
    async with serve(manifests.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        repository = registry.repository("a")
        if rivals == 99:
            with pytest.raises(RegistryError, match="other writers"):
                await repository.put_manifest(REFERRER, IMAGE_MANIFEST)
        else:
            await repository.put_manifest(REFERRER, IMAGE_MANIFEST)
            assert [item.digest for item in await repository.referrers(SUBJECT.digest)] == [digests.of(REFERRER)]


async def test_referrers_that_are_put_together_are_listed_by_one_write_or_two() -> None:
    manifests, writes = Manifests(), list[str]()
    manifests.meanwhile = writes.append
    several = [manifest(subject=SUBJECT.to_json(), artifactType=f"x/{number}") for number in range(8)]
    async with serve(manifests.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        repository = registry.repository("a")
        await asyncio.gather(*(repository.put_manifest(one, IMAGE_MANIFEST) for one in several))
        listed = {item.digest for item in await repository.referrers(SUBJECT.digest)}
    assert listed == {digests.of(one) for one in several}
    assert len(writes) <= 2


async def test_a_malformed_subject_stores_nothing() -> None:
    manifests = Manifests()
    async with serve(manifests.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(ImageError):
            await registry.repository("a").put_manifest(manifest(subject={"digest": 1}), IMAGE_MANIFEST)
    assert manifests.stored == {}


async def test_a_manifest_stored_under_another_digest_is_a_mismatch() -> None:
    manifests = Manifests()
    manifests.headers = {"Docker-Content-Digest": digests.of(b"lie")}
    async with serve(manifests.answer) as odd, Registry(odd.address, limits=QUICK) as registry:
        with pytest.raises(DigestMismatch):
            await registry.repository("a").put_manifest(manifest(), IMAGE_MANIFEST)
