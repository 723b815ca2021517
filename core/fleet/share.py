"""An image that one environment has, for another one whose lock is equal: mounts and one manifest, nothing is sent."""

from prefect_environments.core import attachments, hashes
from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import NotFound
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.prune.claims import claim
from prefect_environments.core.site import Site
from prefect_environments.core.steps import BuiltImage
from prefect_environments.core.stores import reference_of


async def share(
    site: Site, definition: EnvironmentDefinition, lock: Lock, owner: str, descriptor: Descriptor
) -> BuiltImage | None:
    """The image `descriptor` of the environment `owner` in this environment's repository, definition, lock and SBOM
    attached. `None` where the registry does not mount blobs, or no longer has the image: then it is to be built."""
    await claim(site.workspace.versions, definition.name, hashes.image_hash(lock))
    source, target = site.repository(owner), site.repository(definition.name)
    try:
        manifest = await source.get_manifest(descriptor.digest)
        parts = ImageManifest.from_bytes(manifest.content)
        blobs = {blob.digest: blob for blob in (parts.config, *parts.layers)}
        if source.path != target.path and not all(await gather(_taken(target, b, source) for b in blobs.values())):
            return None
        tag = digests.hex_of(hashes.image_hash(lock))
        await target.put_manifest(manifest.content, manifest.descriptor.media_type, tag=tag)
    except NotFound:
        return None
    attached = await attachments.attach(target, manifest.descriptor, definition, lock)
    return BuiltImage(
        descriptor=manifest.descriptor,
        image_hash=hashes.image_hash(lock),
        lock=lock,
        reused=True,
        size=parts.config.size + sum(layer.size for layer in parts.layers),
        reference=reference_of(target, manifest.descriptor.digest),
        attached=attached,
    )


async def _taken(target: Repository, blob: Descriptor, source: Repository) -> bool:
    return await target.mount_blob(blob, source.path)
