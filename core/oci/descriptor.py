"""Content descriptors and media types (OCI image-spec, descriptor.md and media-types.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_environments.core.errors import ImageError
from prefect_environments.core.oci import digest as digests

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_TAR = "application/vnd.docker.image.rootfs.diff.tar"

MANIFESTS = (IMAGE_MANIFEST, DOCKER_MANIFEST)
INDEXES = (IMAGE_INDEX, DOCKER_INDEX)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a blob or manifest is: its media type, digest and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None
    platform: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the image specification, optional keys only where set."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.platform:
            found["platform"] = dict(self.platform)
        return found

    @classmethod
    def from_json(cls, data: Any) -> "Descriptor":
        """Read and check one; raises `ImageError` for anything that is not a descriptor."""
        if not isinstance(data, Mapping):
            raise ImageError(f"a descriptor must be a JSON object, got {type(data).__name__}")
        media_type, size = data.get("mediaType"), data.get("size")
        if not isinstance(media_type, str) or not media_type:
            raise ImageError("a descriptor has no mediaType")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ImageError(f"a descriptor's size must be a whole number, got {size!r:.40}")
        annotations = data.get("annotations") or {}
        if not isinstance(annotations, Mapping) or not all(isinstance(v, str) for v in annotations.values()):
            raise ImageError("a descriptor's annotations must map strings to strings")
        artifact_type, platform = data.get("artifactType"), data.get("platform")
        if artifact_type is not None and not isinstance(artifact_type, str):
            raise ImageError("a descriptor's artifactType must be a string")
        if platform is not None and not isinstance(platform, Mapping):
            raise ImageError("a descriptor's platform must be a JSON object")
        digest = digests.check(data.get("digest", ""))
        return cls(media_type, digest, size, dict(annotations), artifact_type, platform)
