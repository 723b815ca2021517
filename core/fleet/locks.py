"""Locks by image hash, kept in the registry: what one machine resolved, another one builds."""

from prefect_environments.core import hashes
from prefect_environments.core.attachments import LIMIT, LOCK
from prefect_environments.core.build.base import read_all
from prefect_environments.core.errors import ImageError, NotFound
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.artifact import TITLE, put_artifact
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.site import Site


async def keep_lock(site: Site, lock: Lock) -> str:
    """Keep a lock in the registry; gives its image hash, by which `kept_lock` finds it."""
    content, image_hash = lock.to_pylock().encode(), hashes.image_hash(lock)
    blob = Descriptor(LOCK, digests.of(content), len(content), {TITLE: "pylock.toml"})
    await put_artifact(_repository(site), blob, content, tag=digests.hex_of(image_hash))
    return image_hash


async def kept_lock(site: Site, image_hash: str) -> Lock:
    """The lock of an image hash. Raises `NotFound` where it was never kept, `ImageError` for one that was altered."""
    repository = _repository(site)
    try:
        found = await repository.get_manifest(digests.hex_of(digests.check(image_hash)))
    except NotFound as error:
        raise NotFound(
            f"no lock of the image hash {image_hash} is in {repository.name}: it was not kept, or is pruned by now. "
            "Resolve afresh: leave image_hash empty, or refresh again",
            status=error.status,
        ) from error
    manifest = ImageManifest.from_bytes(found.content)
    if manifest.artifact_type != LOCK or len(manifest.layers) != 1:
        raise ImageError(f"{found.descriptor.digest} in {repository.name} is no lock")
    lock = Lock.from_pylock((await read_all(repository, manifest.layers[0], LIMIT)).decode())
    if hashes.image_hash(lock) != image_hash:
        raise ImageError(
            f"the lock in {repository.name} for the image hash {image_hash} is of {hashes.image_hash(lock)}: it was "
            "altered, or written by a release with another recipe; leave image_hash empty to resolve"
        )
    return lock


def _repository(site: Site) -> Repository:
    return site.store.repository(f"{site.workspace.repository_prefix}-locks")
