"""Artifacts: blobs that are no images, under a manifest (image-spec, manifest.md, "Guidelines for Artifact Usage")."""

from collections.abc import Mapping
from pathlib import Path

from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository

TITLE = "org.opencontainers.image.title"

EMPTY = b"{}"
EMPTY_DESCRIPTOR = Descriptor(types.EMPTY, digests.of(EMPTY), len(EMPTY))


def artifact_manifest(
    blob: Descriptor, kind: str, *, subject: Descriptor | None = None, annotations: Mapping[str, str] | None = None
) -> ImageManifest:
    """The manifest of a one-blob artifact of type `kind`."""
    return ImageManifest(EMPTY_DESCRIPTOR, (blob,), annotations or {}, subject, kind)


async def put_artifact(
    repository: Repository,
    blob: Descriptor,
    content: Path | bytes,
    *,
    tag: str | None = None,
    subject: Descriptor | None = None,
) -> Descriptor:
    """Store a blob as an artifact of its own media type, unless it is there already."""
    manifest = artifact_manifest(blob, blob.media_type, subject=subject).to_bytes()
    reference = tag or digests.of(manifest)
    found = await repository.find_manifest(reference)
    if found is not None and found.digest == digests.of(manifest):
        return found
    await repository.write_blob(EMPTY_DESCRIPTOR, EMPTY)
    await repository.write_blob(blob, content)
    return await repository.put_manifest(manifest, types.IMAGE_MANIFEST, tag=tag)
