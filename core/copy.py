"""An image from one place to another, with what is attached to it; nothing is unpacked, and the digest stays."""

from prefect_environments.core.build.transfer import copy_blob
from prefect_environments.core.concurrency import gather
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Manifest, Repository
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretStore
from prefect_environments.core.site import default_cache
from prefect_environments.core.stores import open_store, reference_of


async def copy_image(
    reference: str, source: RegistrySettings, target: RegistrySettings, path: str, secrets: SecretStore
) -> str:
    """Copy `repository@sha256:…` or `repository:tag` of `source` to the repository `path` of `target`.

    Raises `NotFound` where the source has no such image, and the errors of either store.
    """
    here, identifier = _split(reference, source)
    giver, taker = await open_store(source, secrets), await open_store(target, secrets)
    try:
        origin, goal = giver.repository(here), taker.repository(path)
        manifest = await origin.get_manifest(identifier)
        tag = None if ":" in identifier else identifier
        await _copy(origin, goal, manifest, tag)
        for referrer in await origin.referrers(manifest.descriptor.digest):
            await _copy(origin, goal, await origin.get_manifest(referrer.digest), None)
        return reference_of(goal, manifest.descriptor.digest)
    finally:
        await giver.close()
        await taker.close()


async def _copy(origin: Repository, goal: Repository, manifest: Manifest, tag: str | None) -> None:
    if manifest.descriptor.media_type not in types.INDEXES:
        parts = ImageManifest.from_bytes(manifest.content)
        scratch = default_cache() / "scratch"
        await gather(copy_blob(part, origin, goal, scratch) for part in {x.digest: x for x in _blobs(parts)}.values())
    await goal.put_manifest(manifest.content, manifest.descriptor.media_type, tag=tag)


def _blobs(manifest: ImageManifest) -> list[types.Descriptor]:
    return [manifest.config, *manifest.layers]


def _split(reference: str, source: RegistrySettings) -> tuple[str, str]:
    """`(repository, tag or digest)`; a full reference of the source is accepted, too."""
    text = reference.removeprefix(source.address).lstrip("/:")
    path, at, digest = text.partition("@")
    if at:
        return path.rpartition(":")[0] or path, digest
    path, _, tag = text.rpartition(":")
    return (path, tag) if path else (tag, "latest")
