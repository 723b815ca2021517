"""What a workspace's registry holds: every manifest under its prefix, with the blobs that each keeps alive."""

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefect_environments.core.build.assemble import BASE_DIGEST
from prefect_environments.core.concurrency import gather
from prefect_environments.core.errors import ImageError, NotFound
from prefect_environments.core.jobs.runtime import RUNTIME_ARTIFACT
from prefect_environments.core.names import slug
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import load_object
from prefect_environments.core.oci.layout import REF_NAME, Layout
from prefect_environments.core.oci.repository import Manifest, Repository
from prefect_environments.core.prune.plan import Shelved
from prefect_environments.core.site import Site

Kind = Literal["image", "attachment", "layer", "job", "runtime", "build", "lock", "other"]

AT_ONCE = 16
FALLBACK = re.compile(r"sha(256|512)-[0-9a-f]+")
"""Tags that list referrers (distribution-spec, "Referrers Tag Schema")."""

_HASH = re.compile(r"[0-9a-f]{64}")
_BESIDE: Mapping[str, Kind] = {
    "-layers": "layer",
    "-jobs": "job",
    "-builds": "build",
    "-locks": "lock",
    "-wheels": "other",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One manifest of one repository. `blobs` are sizes in bytes by digest, the manifest's own among them."""

    path: str
    digest: str
    kind: Kind
    tags: tuple[str, ...] = ()
    blobs: Mapping[str, int] = field(default_factory=dict)
    base: str = ""
    """Digest of the image that this one was put on, where it says so."""
    subject: str = ""

    @property
    def key(self) -> str:
        return f"{self.path}@{self.digest}"


class Ledger:
    """Counts who refers to a blob, so that what is taken away tells the bytes that nobody needs any more."""

    def __init__(self, stock: Iterable[Stored]) -> None:
        self._there: dict[str, Stored] = {}
        self._uses: dict[str, int] = {}
        for stored in stock:
            if stored.key not in self._there:
                self._there[stored.key] = stored
                for blob in stored.blobs:
                    self._uses[blob] = self._uses.get(blob, 0) + 1

    def remove(self, gone: Iterable[Stored]) -> int:
        """Bytes that are free once these manifests are gone; those that are gone already free nothing."""
        freed = 0
        for stored in gone:
            if self._there.pop(stored.key, None) is None:
                continue
            for blob, size in stored.blobs.items():
                self._uses[blob] -= 1
                freed += 0 if self._uses[blob] else size
        return freed


def with_attachments(stock: Collection[Stored], path: str, digest: str) -> list[Stored]:
    """An image and what is attached to it; nothing for a version that names no digest."""
    return [one for one in stock if digest and one.path == path and digest in (one.digest, one.subject)]


def with_bases(protected: frozenset[str], stock: Iterable[Stored]) -> frozenset[str]:
    """Also the environments' images under the job images that are protected."""
    return protected | {one.base for one in stock if one.kind == "job" and one.digest in protected and one.base}


async def take_stock(site: Site, shelves: Sequence[Shelved]) -> list[Stored]:
    """Everything under the workspace's prefix, where `shelves` are all that keep images there: one request for each
    manifest, many at once; a layout is read once.

    Raises the registry's errors. What is deleted meanwhile is left out.
    """
    if isinstance(site.store, Layout):
        return await asyncio.to_thread(_of_layout, site.store, site)
    limit = asyncio.Semaphore(AT_ONCE)
    prefix = site.workspace.repository_prefix
    named: dict[str, set[str]] = {}  # of workspaces that share repositories, together
    for shelved in shelves:
        known = named.setdefault(repository_path(site, shelved.name), set())
        known |= {record.digest for record in shelved.records.values() if record.digest}
    environments = [_environment(site.store.repository(path), digests, limit) for path, digests in named.items()]
    beside = [_tagged(site.store.repository(f"{prefix}{suffix}"), kind, limit) for suffix, kind in _BESIDE.items()]
    return [stored for found in await gather([*environments, *beside]) for stored in found]


async def _environment(repository: Repository, named: set[str], limit: asyncio.Semaphore) -> list[Stored]:
    """An environment's repository: what is tagged, what versions name by digest, and what is attached to that."""
    images = {stored.digest: stored for stored in await _tagged(repository, "image", limit)}
    more = await gather(_get(repository, digest, limit) for digest in sorted(named - images.keys()))
    images |= {one.descriptor.digest: stored(repository.path, one, "image") for one in more if one}
    attached = await gather(_attached(repository, digest, limit) for digest in sorted(named | images.keys()))
    return [*images.values(), *(one for found in attached for one in found)]


async def _attached(repository: Repository, digest: str, limit: asyncio.Semaphore) -> list[Stored]:
    async with limit:
        listed = await repository.referrers(digest)
    found = await gather(_get(repository, item.digest, limit) for item in listed)
    return [stored(repository.path, one, "attachment") for one in found if one]


async def _tagged(repository: Repository, kind: Kind, limit: asyncio.Semaphore) -> list[Stored]:
    async with limit:
        tags = [tag for tag in await repository.tags() if not FALLBACK.fullmatch(tag)]
    manifests = await gather(_get(repository, tag, limit) for tag in tags)
    by_digest: dict[str, tuple[Manifest, list[str]]] = {}
    for tag, manifest in zip(tags, manifests, strict=True):
        if manifest is not None:
            by_digest.setdefault(manifest.descriptor.digest, (manifest, []))[1].append(tag)
    return [stored(repository.path, manifest, kind, tags) for manifest, tags in by_digest.values()]


async def _get(repository: Repository, reference: str, limit: asyncio.Semaphore) -> Manifest | None:
    async with limit:
        try:
            return await repository.get_manifest(reference)
        except NotFound:
            return None


def _of_layout(layout: Layout, site: Site) -> list[Stored]:
    """Every entry of a layout's index; what is of no workspace, or of another, keeps its blobs alive, too."""
    prefix = site.workspace.repository_prefix
    named: dict[tuple[str, str], tuple[Manifest, list[str]]] = {}
    for entry in layout.entries():
        item = Descriptor.from_json(entry)
        path, _, tag = item.annotations.get(REF_NAME, "").rpartition(":")
        try:
            content = layout.blob_path(item.digest).read_bytes()
        except FileNotFoundError:
            continue
        known = named.setdefault((path, item.digest), (Manifest(content, item), []))
        known[1].extend([tag] if tag else [])
    homes = {digest: path for path, digest in named if path}
    found = []
    for (path, _), (manifest, tags) in named.items():
        kind = _BESIDE.get(path.removeprefix(prefix)) if path.startswith(prefix) else None
        one = stored(path, manifest, kind or ("image" if path.startswith(f"{prefix}/") else "other"), tags)
        if one.subject:  # an attachment has no name: its image has
            one = stored(homes.get(one.subject, path), manifest, "attachment", tags)
        found.append(one)
    return found


def stored(path: str, manifest: Manifest, kind: Kind, tags: Sequence[str] = ()) -> Stored:
    """What a manifest keeps alive. One that cannot be read keeps itself."""
    own = manifest.descriptor
    blobs, subject, artifact = {own.digest: len(manifest.content)}, "", None
    notes: Mapping[str, object] = {}
    try:
        data = load_object(manifest.content, "a manifest")
        parts = [data.get("config"), *(data.get("layers") or []), *(data.get("manifests") or [])]
        blobs |= {blob.digest: blob.size for blob in map(Descriptor.from_json, filter(None, parts))}
        subject = Descriptor.from_json(data["subject"]).digest if data.get("subject") else ""
        notes, artifact = dict(data.get("annotations") or {}), data.get("artifactType")
    except (ImageError, TypeError, ValueError):
        kind = "other"
    if kind == "layer" and not all(map(_HASH.fullmatch, tags)):
        kind = "other"  # facts of bases, reports, the list of leftovers
    if kind == "job" and artifact == RUNTIME_ARTIFACT:
        kind = "runtime"
    return Stored(path, own.digest, kind, tuple(tags), blobs, str(notes.get(BASE_DIGEST, "")), subject)


def repository_path(site: Site, name: str) -> str:
    """The path of an environment's repository."""
    return f"{site.workspace.repository_prefix}/{slug(name)}"
