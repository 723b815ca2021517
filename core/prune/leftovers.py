"""What is kept beside environments and nothing needs any more: when it was first seen so, and when it may go.

Registries tell nobody when something was pushed. So a run notes what it finds unneeded, in the registry itself, and a
later run removes what is unneeded still: what a build is about to use has time to become needed.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date, timedelta

from prefect_environments.core import canonical
from prefect_environments.core.build.base import read_all
from prefect_environments.core.errors import ImageError, NotFound
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.artifact import EMPTY_DESCRIPTOR, put_artifact
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.prune.stock import Kind, Stored
from prefect_environments.core.version_record import VersionRecord

TAG = "unneeded"
UNNEEDED = "application/vnd.prefect-environments.unneeded.v1+json"
_LIMIT = 64 * 1024 * 1024

Seen = Mapping[str, date]
"""The day when something was first found unneeded, by `path@digest`."""


def unneeded(stock: Iterable[Stored], kept: Iterable[VersionRecord], protected: Collection[str]) -> list[Stored]:
    """What is beside the environments and serves none of the versions `kept`, no image in `stock` and no flow run.

    `stock` is what is left once the versions that go are gone.
    """
    every, records = list(stock), list(kept)
    images = [one for one in every if one.kind == "image"]
    jobs = [one for one in every if one.kind == "job" and one.digest in protected]
    in_images = {blob for one in images for blob in one.blobs}
    in_jobs = {blob for one in jobs for blob in one.blobs}
    bases = {one.base for one in images} | {one.digest for one in images} | {record.digest for record in records}
    hashes = {digests.hex_of(record.image_hash) for record in records if record.image_hash}
    hashes |= {one.removeprefix("sha256:") for one in protected}  # a run that waits builds the lock of its image hash
    needs: dict[Kind, Callable[[Stored], bool]] = {
        "layer": lambda one: bool(_content(one) & in_images),
        "job": lambda one: one.digest in protected,
        "runtime": lambda one: bool(_content(one) & in_jobs),
        "build": lambda one: one.digest in bases or one.digest in protected,
        "lock": lambda one: bool(hashes.intersection(one.tags)),
    }
    return [one for one in every if one.kind in needs and not needs[one.kind](one)]


def sighted(seen: Seen, found: Iterable[Stored], today: date) -> dict[str, date]:
    """What is known about the leftovers `found` after today: what is needed again is forgotten."""
    return {one.key: min(seen.get(one.key, today), today) for one in found}


def is_due(first: date, today: date, days: int) -> bool:
    """Whether something that is unneeded since `first` may go."""
    return first <= today - timedelta(days=days)


async def read_seen(repository: Repository) -> dict[str, date]:
    """What earlier runs found; nothing where nobody wrote, or what was written cannot be read."""
    try:
        manifest = ImageManifest.from_bytes((await repository.get_manifest(TAG)).content)
        data = json.loads(await read_all(repository, manifest.layers[0], _LIMIT))
        return {str(key): date.fromisoformat(day) for key, day in data.items()}
    except (NotFound, ImageError, ValueError, LookupError, AttributeError, TypeError):
        return {}  # then everything is new, and stays a while longer


async def write_seen(repository: Repository, seen: Seen) -> None:
    """Replace what earlier runs found."""
    content = canonical.dumps({key: day.isoformat() for key, day in seen.items()})
    before = await repository.find_manifest(TAG)
    blob = Descriptor(UNNEEDED, digests.of(content), len(content))
    now = await put_artifact(repository, blob, content, tag=TAG)
    if before is not None and before.digest != now.digest:
        await repository.delete_manifest(before.digest)


def _content(one: Stored) -> set[str]:
    """Its own blobs: not the empty config that all artifacts share."""
    return {blob for blob in one.blobs if blob not in (one.digest, EMPTY_DESCRIPTOR.digest)}
