"""Manifests of a repository (distribution-spec, "Pulling manifests", "Pushing manifests", "Deleting manifests")."""

import asyncio
import json
from typing import Any

from prefect_environments.core.distribution.content import Content
from prefect_environments.core.distribution.failures import Again, error_of, refused
from prefect_environments.core.distribution.messages import CHECK_ADDRESS, DAMAGED, Answer, Request
from prefect_environments.core.distribution.place import UNKNOWN, Place
from prefect_environments.core.distribution.reference import check_reference, check_tag
from prefect_environments.core.errors import DefinitionError, DigestMismatch, ImageError, NotFound, RegistryError
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import INDEXES, MANIFESTS, Descriptor
from prefect_environments.core.oci.repository import MANIFEST_LIMIT, Manifest

_ACCEPT = ", ".join((*MANIFESTS, *INDEXES))
_PUSH = ("pull", "push")


def _asked(place: Place, method: str, reference: str, step: str) -> Request:
    return place.request(
        method,
        f"manifests/{reference}",
        f"{step} {reference}",
        expect={200, 400, 404},
        headers={"Accept": _ACCEPT},
        limit=MANIFEST_LIMIT,
    )


async def find(place: Place, reference: str) -> Descriptor | None:
    """The descriptor by one HEAD. Where the registry leaves digest or size out, the manifest is read instead."""
    is_digest = ":" in check_reference(reference)
    request = _asked(place, "HEAD", reference, "manifest check of")
    answer = await place.transport.fetch(request)
    if answer.status != 200:
        if await _is_absent(place, request, answer):
            return None
        raise refused(request, answer, place.transport.auth.user)
    said, size = answer.headers.get("Docker-Content-Digest"), answer.headers.get("Content-Length", "")
    media_type = _media_type(answer)
    if said is None or not media_type or not (size.isascii() and size.isdigit()) or int(size[:12]) == 0:
        try:
            return (await get(place, reference)).descriptor
        except NotFound:
            return None  # deleted between the two requests
    _check_said(place, reference, said)
    if is_digest and said != reference:
        raise DigestMismatch(
            f"{place.name}: asked for manifest {reference}, the registry answered with {said}; look into its log"
        )
    return Descriptor(media_type, said, int(size[:12]))


async def _is_absent(place: Place, request: Request, answer: Answer) -> bool:
    """Whether "not found" is the registry's word. A web page says 404 too, and then the address is wrong."""
    code, _ = error_of(answer.body)
    if answer.status == 404:
        if "html" not in answer.headers.get("Content-Type", "").lower():
            return True
        probe = Request(
            method="GET",
            url=place.transport.origin / "v2/",
            where=request.where,
            step="check that a registry answers",
            expect=frozenset({200, 401}),
            traffic=request.traffic,
        )
        await place.transport.fetch(probe)
        return True
    return code in UNKNOWN


def _media_type(answer: Answer) -> str:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip()


def _check_said(place: Place, reference: str, said: str) -> None:
    try:
        digests.check(said)
    except ImageError as error:
        raise RegistryError(
            f"{place.name}: the registry names manifest {reference} by something that is no digest: {error}; "
            f"{CHECK_ADDRESS}"
        ) from None


async def get(place: Place, reference: str) -> Manifest:
    """The manifest, verified against the digest asked for, or for a tag against the registry's header."""
    is_digest = ":" in check_reference(reference)
    request = _asked(place, "GET", reference, "download of manifest")
    answer = await place.transport.fetch(request)
    if answer.status != 200:
        error = refused(request, answer, place.transport.auth.user)
        if answer.status != 404 and error.code in UNKNOWN:
            raise NotFound(str(error), status=error.status, code=error.code)
        raise error
    place.count(received=len(answer.body))
    expected = reference if is_digest else answer.headers.get("Docker-Content-Digest")
    if expected is not None:
        _check_said(place, reference, expected)
        hasher = digests.hasher(expected)
        hasher.update(answer.body)
        if (found := f"{expected.partition(':')[0]}:{hasher.hexdigest()}") != expected:
            raise DigestMismatch(
                f"{place.name}: download of manifest {reference} gave {found} in place of {expected}; {DAMAGED}"
            )
    data = read_object(answer.body, f"{place.name}: manifest {reference}")
    stated = data.get("mediaType")
    media_type = stated if isinstance(stated, str) and stated else _media_type(answer)
    if not media_type:
        raise ImageError(
            f"{place.name}: manifest {reference} has no media type, neither in it nor in the answer; {CHECK_ADDRESS}"
        )
    return Manifest(answer.body, Descriptor(media_type, expected or digests.of(answer.body), len(answer.body)))


def read_object(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object, or `ImageError` that says of `what`."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ImageError(f"{what} is not a JSON object; {CHECK_ADDRESS}")
    return data


async def put(place: Place, content: bytes, descriptor: Descriptor, tag: str | None) -> bool:
    """Store a manifest with one PUT, and say whether the registry took note of its `subject`."""
    if len(content) > MANIFEST_LIMIT:
        raise ImageError(f"the manifest has {len(content)} bytes; registries take at most {MANIFEST_LIMIT}")
    reference = check_tag(tag) if tag is not None else descriptor.digest
    step = f"upload of manifest {reference}"
    request = place.request(
        "PUT",
        f"manifests/{reference}",
        step,
        actions=_PUSH,
        expect={201},
        headers={"Content-Type": descriptor.media_type},
        body=Content(content, len(content), step, lambda sent: place.count(sent=max(sent, 0))),
    )
    answer = await _stored(place, request)
    said = answer.headers.get("Docker-Content-Digest")
    if said is not None and said != descriptor.digest:
        raise DigestMismatch(
            f"{place.name}: {step} ({descriptor.digest}) was stored by the registry as {said!r:.100}; "
            "try again, and look into its log"
        )
    return "OCI-Subject" in answer.headers


async def _stored(place: Place, request: Request) -> Answer:
    """Send a manifest, again where the registry says that its digest is wrong: it was computed of these very bytes.

    Registries on a file system read links that another worker is writing at that moment, and then say so.
    """
    started, attempt = asyncio.get_running_loop().time(), 0
    while True:
        try:
            return await place.transport.fetch(request)
        except RegistryError as error:
            if error.code != "DIGEST_INVALID":
                raise
            attempt += 1
            await place.transport.pause(Again(error), attempt, started)


async def delete(place: Place, digest: str) -> bool:
    """Delete a manifest by digest; `False` if it was not there."""
    if ":" not in check_reference(digest):
        raise DefinitionError(f"a manifest is deleted by its digest, not by tag {digest!r}")
    request = place.request(
        "DELETE",
        f"manifests/{digest}",
        f"deletion of manifest {digest}",
        actions=("pull", "delete"),
        expect={200, 202, 404},
    )
    return (await place.transport.fetch(request)).status != 404


async def delete_tag(place: Place, tag: str) -> bool:
    """Delete a tag and leave its manifest; `False` where the registry cannot, or has no such tag (distribution-spec,
    "Deleting tags": a registry may refuse with 400 or 405)."""
    request = place.request(
        "DELETE",
        f"manifests/{check_tag(tag)}",
        f"deletion of tag {tag}",
        actions=("pull", "delete"),
        expect={200, 202, 400, 404, 405},
    )
    return (await place.transport.fetch(request)).status in (200, 202)
