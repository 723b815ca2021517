"""Blobs of a repository (distribution-spec, "Pulling blobs", "Pushing blobs", "Mounting a blob")."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from prefect_environments.core.concurrency import settled
from prefect_environments.core.distribution.content import Content
from prefect_environments.core.distribution.failures import Again, error_of
from prefect_environments.core.distribution.messages import DAMAGED, Answer, Request
from prefect_environments.core.distribution.place import Place
from prefect_environments.core.distribution.reference import check_path
from prefect_environments.core.errors import DigestMismatch, NotFound, RegistryAuthError, RegistryError
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor

_READ = 1024 * 1024
_CLEANUP_SECONDS = 5.0
_PUSH = ("pull", "push")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SMALL = 256 * 1024
_NO_MOUNTS = frozenset({400, 404, 405, 415})
_LOST_SESSION = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"})


async def has(place: Place, digest: str, *, actions: tuple[str, ...] = ("pull",)) -> bool:
    """Whether the repository has the blob; only the registry's own 404 is a no."""
    digests.check(digest)
    step = f"check of blob {digest}"
    request = place.request("HEAD", f"blobs/{digest}", step, actions=actions, expect={200, 404, *_REDIRECTS})
    status = (await place.transport.fetch(request)).status
    if status not in _REDIRECTS:
        return status == 200
    # The blob is in a store beside the registry, whose signed addresses are for GET: its first byte tells.
    request = place.request(
        "GET", f"blobs/{digest}", step, actions=actions, expect={200, 206, 404, 416}, headers={"Range": "bytes=0-0"}
    )
    started, attempt = asyncio.get_running_loop().time(), 0
    while True:
        try:
            async with place.transport.stream(request) as response:
                return response.status != 404
        except Again as failure:
            attempt += 1
            await place.transport.pause(failure, attempt, started)


async def read(place: Place, descriptor: Descriptor) -> AsyncIterator[bytes]:
    """The blob in chunks of at most 1 MiB, the last one withheld until digest and size are verified.

    After a dropped connection it goes on where it was (`Range`), or reads again from the start and skips.
    """
    hasher, received, held = digests.hasher(descriptor.digest), 0, b""
    loop = asyncio.get_running_loop()
    async with place.shared.downloads:
        started, attempt, mark = loop.time(), 0, 0
        while True:
            try:
                async for chunk in _from(place, descriptor, received):
                    hasher.update(chunk)
                    received += len(chunk)
                    if held:
                        yield held
                    held = chunk
                break
            except Again as failure:
                if received - mark >= _READ:
                    mark, attempt = received, 0  # a line that drops often but moves on is not given up
                attempt += 1
                await place.transport.pause(failure, attempt, started)
    found = f"{descriptor.digest.partition(':')[0]}:{hasher.hexdigest()}"
    if found != descriptor.digest:
        raise DigestMismatch(
            f"{place.name}: download of blob {descriptor.digest} gave wrong bytes, their digest is {found}; {DAMAGED}"
        )
    if held:
        yield held


async def _from(place: Place, descriptor: Descriptor, start: int) -> AsyncIterator[bytes]:
    """One try at the blob's bytes from `start` to its end."""
    size, step = descriptor.size, f"download of blob {descriptor.digest}"
    if start == size and start:
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    expect = {200, 206, 416} if start else {200}
    request = place.request("GET", f"blobs/{descriptor.digest}", step, expect=expect, headers=headers)
    async with place.transport.stream(request) as response:
        position = _check_range(place, descriptor, start, response)
        pieces = response.content.iter_chunked(_READ)
        while True:
            # Only the read is mapped: an error that the consumer throws in is not the network's.
            with place.transport.mapped(request, response.url):
                piece = await anext(pieces, None)
            if piece is None:
                break
            place.count(received=len(piece))
            skipped = max(0, start - position)
            position += len(piece)
            if position > size:
                raise DigestMismatch(
                    f"{place.name}: download of blob {descriptor.digest} gave more than its {size} bytes; {DAMAGED}"
                )
            if wanted := piece[skipped:]:
                yield wanted
        if position < size:
            error = aiohttp.ClientPayloadError(f"it ended after {position} of {size} bytes")
            with place.transport.mapped(request, response.url):
                raise error


def _check_range(place: Place, descriptor: Descriptor, start: int, response: aiohttp.ClientResponse) -> int:
    """Where in the blob the response's body starts. Raises `DigestMismatch` if its length tells that it is wrong."""
    size, length = descriptor.size, response.content_length
    if response.status == 416:
        raise DigestMismatch(
            f"{place.name}: download of blob {descriptor.digest} ends at {start} of its {size} bytes; {DAMAGED}"
        )
    position = 0
    if response.status == 206:
        sent = response.headers.get("Content-Range", "")
        if not sent.startswith(f"bytes {start}-"):
            raise RegistryError(
                f"{place.name}: asked for bytes {start}- of blob {descriptor.digest}, the registry sent {sent!r:.100}; "
                "a proxy before it may not know ranges, look into its settings",
                status=206,
            )
        position = start
    if length is not None and position + length != size:
        raise DigestMismatch(
            f"{place.name}: download of blob {descriptor.digest} has {position + length} bytes, but its descriptor "
            f"says {size}; {DAMAGED}"
        )
    return position


async def write(
    place: Place, descriptor: Descriptor, content: Path | bytes, on_bytes: Callable[[int], None] | None
) -> bool:
    """Send the blob unless it is there. After a failure ask again, then start afresh with a new upload session.

    A small one is asked for by the request that opens its upload: a registry without mounts gets it once more.
    """

    def count(sent: int) -> None:
        place.count(sent=max(sent, 0))
        if on_bytes is not None:
            on_bytes(sent)

    body = Content(content, descriptor.size, f"blob {digests.check(descriptor.digest)}", count)
    body.check_size()
    async with place.shared.uploads:
        started, attempt = asyncio.get_running_loop().time(), 0
        while True:
            ask_first = descriptor.size > _SMALL or attempt > 0
            if ask_first and await has(place, descriptor.digest, actions=_PUSH):
                return attempt > 0  # found after a failure: our own bytes arrived, only the reply was lost
            try:
                return await _send(place, descriptor, body, mount=not ask_first)
            except Again as failure:
                attempt += 1
                await place.transport.pause(failure, attempt, started)


async def _send(place: Place, descriptor: Descriptor, body: Content, *, mount: bool) -> bool:
    """One upload session: POST, then one PUT with the whole blob; `False` if a mount found the blob."""
    digest, step = descriptor.digest, f"upload of blob {descriptor.digest}"
    location = await (_mount_or_open(place, digest, step) if mount else _open(place, step))
    if location is None:
        return False
    request = place.request(
        "PUT",
        _with_query(location, {"digest": digest}),
        step,
        actions=_PUSH,
        expect={201, 204, 400, 404, 416},
        headers={"Content-Type": "application/octet-stream"},
        body=body,
    )
    try:
        answer = await place.transport.once(request)
        if answer.status in (400, 404, 416):
            _judge_refusal(place, descriptor, request, answer.status, answer.body)
    except BaseException:
        # Also for a cancelled task: an open session holds the registry's disk until its purge.
        await cancel(place, location)
        raise
    said = answer.headers.get("Docker-Content-Digest")
    if said is not None and said != digest:
        raise DigestMismatch(
            f"{place.name}: {step} was stored by the registry as {said!r:.100}; try again, and look into its log"
        )
    return True


async def _open(place: Place, step: str) -> URL:
    """The address of a new upload session."""
    start = place.request("POST", "blobs/uploads/", step, actions=_PUSH, expect={202})
    answer = await _opening(place, start, place.transport.once(start))
    return place.transport.resolve(start, start.url, answer.headers.get("Location"))


async def _mount_or_open(place: Place, digest: str, step: str) -> URL | None:
    """The address of a new upload session, or `None` if the repository has the blob.

    A mount from this very repository asks and opens at once: where the blob is not, the registry opens a session
    (distribution-spec, "Mounting a blob from another repository").
    """
    start = _mounting(place, digest, place.path, step)
    try:
        answer = await _opening(place, start, place.transport.once(start))
    except RegistryAuthError:
        answer = None  # mounts are refused to this user; the plain way tells whether writing is, too
    if answer is None or answer.status in _NO_MOUNTS:
        return None if await has(place, digest, actions=_PUSH) else await _open(place, step)
    return place.transport.resolve(start, start.url, answer.headers.get("Location")) if answer.status == 202 else None


async def _opening(place: Place, request: Request, asked: Coroutine[Any, Any, Answer]) -> Answer:
    """The answer to a request that may open a session, which is closed again if nobody waits for it any more."""

    async def close(answer: Answer) -> None:
        if answer.status == 202:
            with suppress(RegistryError):
                await cancel(place, place.transport.resolve(request, request.url, answer.headers.get("Location")))

    return await settled(asked, _CLEANUP_SECONDS, close)


async def try_upload(place: Place) -> None:
    """Open an upload session and cancel it: raises what a push would, and stores nothing."""
    start = place.request("POST", "blobs/uploads/", "opening of an upload", actions=_PUSH, expect={202})
    answer = await _opening(place, start, place.transport.fetch(start))
    await cancel(place, place.transport.resolve(start, start.url, answer.headers.get("Location")))


def _judge_refusal(place: Place, descriptor: Descriptor, request: Request, status: int, body: bytes) -> None:
    """A lost upload session may be replaced by another; wrong bytes stay wrong."""
    code, message = error_of(body)
    if code == "DIGEST_INVALID":
        raise DigestMismatch(
            f"{place.name}: {request.step}: the registry computed another digest; the file does not hold what its "
            "descriptor says, or something on the way changed it: try again"
        )
    text = f"{place.name}: {request.step} was refused with HTTP {status} {code or ''}: {message:.200}"
    error = RegistryError(f"{text}. The upload session was lost; check the registry's log", status=status, code=code)
    if status == 400 and code not in _LOST_SESSION:
        raise error
    raise Again(error)


async def cancel(place: Place, location: URL) -> None:
    """Tell the registry that an upload session is abandoned; best effort, at most 5 s."""
    request = place.request("DELETE", location, "cancelling an upload", actions=_PUSH, expect={200, 202, 204, 404})

    async def delete() -> None:
        with suppress(Exception):
            async with asyncio.timeout(_CLEANUP_SECONDS):
                await place.transport.once(request)

    await settled(delete(), _CLEANUP_SECONDS)


async def mount(place: Place, descriptor: Descriptor, source: str) -> bool:
    """Take the blob over from repository `source` of the same registry; `False` if the registry won't."""
    request = _mounting(
        place, descriptor.digest, check_path(source), f"mount of blob {descriptor.digest} from {source}"
    )
    try:
        answer = await _opening(place, request, place.transport.fetch(request))
    except (RegistryAuthError, NotFound):
        return False  # not allowed to read the source: sending tells whether writing is allowed
    if answer.status == 202:
        with suppress(RegistryError):
            await cancel(place, place.transport.resolve(request, request.url, answer.headers.get("Location")))
    return answer.status == 201


def _mounting(place: Place, digest: str, source: str, step: str) -> Request:
    query = urlencode({"mount": digests.check(digest), "from": source})
    return place.request(
        "POST",
        f"blobs/uploads/?{query}",
        step,
        actions=_PUSH,
        expect={201, 202, *_NO_MOUNTS},
        also_pull=source,
    )


def _with_query(location: URL, more: dict[str, str]) -> URL:
    """`location` with its own query kept byte for byte: it may be signed."""
    text = str(location)
    return URL(f"{text}{'&' if '?' in text else '?'}{urlencode(more)}", encoded=True)
