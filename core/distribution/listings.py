"""Tags and referrers of a repository (distribution-spec, "Listing Tags", "Listing Referrers")."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from prefect_environments.core.distribution import manifests
from prefect_environments.core.distribution.failures import refused
from prefect_environments.core.distribution.messages import CHECK_ADDRESS, Answer, Request
from prefect_environments.core.distribution.place import Place, Writers
from prefect_environments.core.errors import ImageError, NotFound, RegistryError
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import EMPTY, IMAGE_INDEX, Descriptor

LISTING_LIMIT = 32 * 1024 * 1024
"""Largest listing that is read, all pages together, in bytes: some registries send all tags at once."""

_PAGES = 10_000
_FALLBACK_TRIES = 5
_LINK = re.compile(r"<([^<>]*)>([^<>]*)")
_NEXT = re.compile(r';\s*rel\s*=\s*"?(?:[^";]*\s)?next(?:\s[^";]*)?"?\s*(?:[;,]|$)', re.IGNORECASE)
_NO_API = frozenset({400, 404, 405, 406, 501})


def next_page(links: list[str]) -> str | None:
    """The address with `rel="next"` in `Link` headers (RFC 8288), as it was sent; `None` if there is none."""
    for value in links:
        for match in _LINK.finditer(value[: 16 * 1024]):
            if _NEXT.search(match[2]):
                return match[1]
    return None


async def _pages(place: Place, request: Request) -> AsyncIterator[Answer]:
    """All pages of a listing. A loop, and an address on another host, raise `RegistryError`."""
    seen, left = {request.url}, LISTING_LIMIT
    while True:
        answer = await place.transport.fetch(replace(request, limit=left))
        left -= len(answer.body)
        yield answer
        link = next_page(answer.headers.getall("Link", [])) if answer.status == 200 else None
        if link is None:
            return
        url = place.transport.resolve(request, request.url, link)
        if not place.transport.is_own(url):
            raise RegistryError(
                f"{request.where}: {request.step} goes on at another host ({url.authority}), refused; {CHECK_ADDRESS}"
            )
        if url in seen or len(seen) >= _PAGES:
            raise RegistryError(
                f"{request.where}: {request.step} does not end: page {len(seen) + 1} repeats; {CHECK_ADDRESS}"
            )
        seen.add(url)
        request = place.request("GET", url, request.step, expect=request.expect, limit=request.limit)


async def tags(place: Place) -> list[str]:
    """All tags in the registry's order; empty for a repository that does not exist."""
    found: list[str] = []
    request = place.request("GET", "tags/list", "listing of tags", expect={200, 404}, limit=LISTING_LIMIT)
    async for answer in _pages(place, request):
        if answer.status == 404:
            return found
        try:
            listed = json.loads(answer.body)["tags"] or []
        except (ValueError, RecursionError, LookupError, TypeError):
            listed = None
        if not isinstance(listed, list) or not all(isinstance(tag, str) for tag in listed):
            raise RegistryError(
                f"{place.name}: listing of tags was answered with something else than tags; {CHECK_ADDRESS}", status=200
            )
        found.extend(listed)
    return found


def fallback_tag(digest: str) -> str:
    """The tag that lists the referrers of `digest` where the registry has no API for it, `sha256-<hex>`."""
    return digests.check(digest).replace(":", "-")[:128]


async def referrers(place: Place, digest: str, artifact_type: str | None) -> list[Descriptor]:
    """By the API, or by the fallback tag where there is none."""
    digests.check(digest)
    request = place.request(
        "GET",
        f"referrers/{digest}",
        f"listing of referrers of {digest}",
        expect={200, *_NO_API},
        headers={"Accept": IMAGE_INDEX},
        limit=LISTING_LIMIT,
    )
    found: list[Descriptor] = []
    async for answer in _pages(place, request):
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if answer.status != 200 or kind != IMAGE_INDEX:
            if found:
                raise refused(request, answer, place.transport.auth.user)
            found = await _read_fallback(place, digest)
            break
        found += _descriptors(answer.body, f"{place.name}: the list of referrers of {digest}")
    return [known for known in found if artifact_type is None or known.artifact_type == artifact_type]


def _descriptors(content: bytes, what: str) -> list[Descriptor]:
    listed = manifests.read_object(content, what).get("manifests")
    if not isinstance(listed, list):
        raise ImageError(f"{what} is not an image index; {CHECK_ADDRESS}")
    return [Descriptor.from_json(item) for item in listed]


async def _read_fallback(place: Place, digest: str) -> list[Descriptor]:
    tag = fallback_tag(digest)
    try:
        manifest = await manifests.get(place, tag)
    except NotFound:
        return []
    return _descriptors(manifest.content, f"{place.name}: the index of referrers at tag {tag}")


def subject_of(content: bytes, descriptor: Descriptor) -> tuple[str, Descriptor] | None:
    """The digest of a manifest's subject, and the manifest's entry in a list of referrers; `None` without one.

    The entry has the manifest's annotations and its artifact type, else its config's media type.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("subject") is None:
        return None
    subject = Descriptor.from_json(data["subject"])
    config: Any = data.get("config")
    config_type = config.get("mediaType") if isinstance(config, dict) else None
    artifact_type = data.get("artifactType") or (config_type if config_type != EMPTY else None)
    entry = {**descriptor.to_json(), "artifactType": artifact_type, "annotations": data.get("annotations")}
    return subject.digest, Descriptor.from_json(entry)


async def add_to_fallback(place: Place, subject: str, entry: Descriptor) -> None:
    """Put `entry` into the index at the fallback tag. Writers in this process take turns; each writes for all who wait
    at that moment."""
    writers = place.shared.subjects.setdefault(f"{place.path}@{subject}", Writers())
    writers.entries[entry.digest] = entry
    try:
        async with writers.turn:
            if entry.digest in writers.entries:  # else one before us wrote it
                await _write_fallback(place, subject, writers.entries)
    finally:
        writers.entries.pop(entry.digest, None)


async def _write_fallback(place: Place, subject: str, entries: dict[str, Descriptor]) -> None:
    """Move `entries`, as they are after a first read, into the index: read, add, write, and read again.

    Registries have no compare-and-swap: another writer may have dropped an entry meanwhile, then it is added again,
    at most 5 times.
    """
    known = await _read_fallback(place, subject)
    own = dict(entries)
    for attempt in range(_FALLBACK_TRIES + 1):
        if attempt:
            known = await _read_fallback(place, subject)
        lacking = own.keys() - {item.digest for item in known}
        if not lacking:
            for digest in own:
                entries.pop(digest, None)
            return
        if attempt == _FALLBACK_TRIES:
            break
        if attempt:
            await asyncio.sleep(random.uniform(0.02, 0.2) * attempt)  # noqa: S311 - jitter between writers
            known = await _read_fallback(place, subject)
            lacking = own.keys() - {item.digest for item in known}
        index = {
            "schemaVersion": 2,
            "mediaType": IMAGE_INDEX,
            "manifests": [item.to_json() for item in (*known, *(own[digest] for digest in own if digest in lacking))],
        }
        content = json.dumps(index, separators=(",", ":")).encode()
        descriptor = Descriptor(IMAGE_INDEX, digests.of(content), len(content))
        await manifests.put(place, content, descriptor, fallback_tag(subject))
    raise RegistryError(
        f"{place.name}: {', '.join(sorted(lacking))} could not be listed as a referrer of {subject}: other writers "
        f"replaced tag {fallback_tag(subject)} {_FALLBACK_TRIES} times; try again when they are done"
    )
