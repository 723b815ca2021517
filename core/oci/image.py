"""Image manifests, indexes and configs (OCI image-spec: manifest.md, image-index.md, config.md), and Docker's twins.

Reading checks everything that is used later; writing is canonical JSON, so equal images have equal bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_environments.core import canonical
from prefect_environments.core.errors import BaseImageError, ImageError
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor

LAYERS_MAX = 1000
"""More layers than any engine can mount (127); a manifest with more than this is not read."""

CONFIG_LIMIT = 8 * 1024 * 1024
INDEX_DEPTH = 3

_OCI_LAYER = {
    types.DOCKER_LAYER_GZIP: types.LAYER_GZIP,
    types.DOCKER_LAYER_TAR: types.LAYER_TAR,
}
LAYER_TYPES = (types.LAYER_GZIP, types.LAYER_TAR, types.LAYER_ZSTD)


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """An image (or artifact) manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @classmethod
    def from_bytes(cls, content: bytes) -> "ImageManifest":
        """Read an OCI or Docker schema 2 manifest; raises `ImageError` for anything else."""
        data = load_object(content, "an image manifest")
        if data.get("schemaVersion") != 2 or "config" not in data:
            raise ImageError("not an image manifest of schema version 2; re-push the image with a current tool")
        layers = data.get("layers")
        if not isinstance(layers, list) or len(layers) > LAYERS_MAX:
            raise ImageError(f"an image manifest must list its layers, at most {LAYERS_MAX}")
        annotations = data.get("annotations") or {}
        if not isinstance(annotations, dict) or not all(isinstance(v, str) for v in annotations.values()):
            raise ImageError("a manifest's annotations must map strings to strings")
        subject = data.get("subject")
        artifact_type = data.get("artifactType")
        return cls(
            Descriptor.from_json(data["config"]),
            tuple(Descriptor.from_json(layer) for layer in layers),
            annotations,
            None if subject is None else Descriptor.from_json(subject),
            artifact_type if isinstance(artifact_type, str) else None,
        )

    def to_bytes(self) -> bytes:
        data: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": types.IMAGE_MANIFEST,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.annotations:
            data["annotations"] = dict(self.annotations)
        if self.subject is not None:
            data["subject"] = self.subject.to_json()
        if self.artifact_type is not None:
            data["artifactType"] = self.artifact_type
        return canonical.dumps(data)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image's config as read, unknown keys kept."""

    data: Mapping[str, Any]

    @classmethod
    def from_bytes(cls, content: bytes) -> "ImageConfig":
        data = load_object(content, "an image config")
        rootfs = data.get("rootfs")
        if not isinstance(rootfs, dict) or not isinstance(rootfs.get("diff_ids"), list):
            raise ImageError("an image config has no rootfs with diff_ids")
        for diff_id in rootfs["diff_ids"]:
            digests.check(diff_id)
        settings = data.get("config")
        if settings is not None and not isinstance(settings, dict):
            raise ImageError("an image config's `config` must be a JSON object")
        env = (settings or {}).get("Env") or []
        if not isinstance(env, list) or not all(isinstance(item, str) for item in env):
            raise ImageError("an image config's Env must be a list of NAME=value strings")
        return cls(data)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return tuple(self.data["rootfs"]["diff_ids"])

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.data.get("config") or {})

    @property
    def environment(self) -> dict[str, str]:
        """`Env` as a mapping; the last of two equal names wins, as in engines."""
        return dict(item.partition("=")[::2] for item in self.settings.get("Env") or [])

    @property
    def platform(self) -> tuple[str, str]:
        return str(self.data.get("os", "")), str(self.data.get("architecture", ""))


def told_layers(history: list[Any]) -> int:
    """How many layers a config's history tells of (config.md, `history`)."""
    return sum(1 for line in history if not (isinstance(line, dict) and line.get("empty_layer")))


def load_object(content: bytes, what: str) -> dict[str, Any]:
    """JSON bytes as an object; raises `ImageError` that says what they should have been."""
    try:
        data = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON ({type(error).__name__}); it starts with {content[:40]!r}") from None
    if not isinstance(data, dict):
        raise ImageError(f"{what} must be a JSON object, got {type(data).__name__}")
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def select_platform(content: bytes, platform: Platform, name: str) -> Descriptor:
    """The manifest of an index for a platform; `BaseImageError` names the platforms that there are."""
    manifests = load_object(content, "an image index").get("manifests")
    if not isinstance(manifests, list) or len(manifests) > LAYERS_MAX:
        raise ImageError(f"an image index must list its manifests, at most {LAYERS_MAX}")
    found = [Descriptor.from_json(item) for item in manifests]
    for item in found:
        wanted = item.platform or {}
        if (wanted.get("os"), wanted.get("architecture")) == (platform.os, platform.architecture):
            return item
    unmarked = [item for item in found if not item.platform]
    if len(unmarked) == len(found) == 1:  # its config says what it is for
        return unmarked[0]
    there = sorted({f"{p.platform.get('os')}/{p.platform.get('architecture')}" for p in found if p.platform})
    raise BaseImageError(f"{name} has no image for {platform}; it has {', '.join(there) or 'no platforms'}")


def oci_layer(layer: Descriptor) -> Descriptor:
    """A layer's descriptor with OCI's media type (the same bytes) and nothing else that a base carries."""
    media_type = _OCI_LAYER.get(layer.media_type, layer.media_type)
    if media_type not in LAYER_TYPES:
        raise BaseImageError(
            f"the base image has a layer of type {layer.media_type}, which cannot be copied into a registry"
        )
    return Descriptor(media_type, layer.digest, layer.size)
