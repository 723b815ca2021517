"""Layers on top of a base: pure, so that the same base and layers give the same bytes everywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect_environments.core import canonical
from prefect_environments.core.errors import ImageError
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageConfig, ImageManifest, oci_layer, told_layers

EPOCH = "1970-01-01T00:00:01Z"
_PER_BUILD = ("container", "container_config", "id", "parent", "docker_version")


@dataclass(frozen=True, slots=True)
class AddedLayer:
    """A layer to put on top: its descriptor (annotations included), the digest of its tar, a line of history."""

    descriptor: Descriptor
    diff_id: str
    title: str


@dataclass(frozen=True, slots=True)
class Image:
    """A whole image but for its layers' bytes: manifest and config as they are stored."""

    manifest: ImageManifest
    content: bytes
    config: bytes

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(types.IMAGE_MANIFEST, digests.of(self.content), len(self.content))

    @property
    def size(self) -> int:
        """Bytes of config and layers as stored (compressed)."""
        return self.manifest.config.size + sum(layer.size for layer in self.manifest.layers)


def append(
    base: ImageManifest,
    config: ImageConfig,
    layers: Sequence[AddedLayer],
    *,
    environment: Mapping[str, str | None],
    annotations: Mapping[str, str],
) -> Image:
    """`base` with `layers` on top and `environment` set (`None` removes a variable); the rest of the config stays.

    Raises `ImageError` where the base's manifest and config do not fit together.
    """
    if len(base.layers) != len(config.diff_ids):
        raise ImageError(f"the base image lists {len(base.layers)} layers and {len(config.diff_ids)} diff ids")
    created = str(config.data.get("created") or EPOCH)
    data: dict[str, Any] = {key: value for key, value in config.data.items() if key not in _PER_BUILD}
    data["created"] = created
    data["config"] = {**config.settings, "Env": _environment(config, environment)}
    data["rootfs"] = {"type": "layers", "diff_ids": [*config.diff_ids, *(layer.diff_id for layer in layers)]}
    history = data.pop("history", None)
    # a history is optional; one that does not tell of the base's own layers would fit the new image even less
    if isinstance(history, list) and told_layers(history) == len(base.layers):
        added = [{"created": created, "created_by": layer.title, "comment": "prefect-environments"} for layer in layers]
        data["history"] = [*history, *added]
    blob = canonical.dumps(data)
    manifest = ImageManifest(
        Descriptor(types.IMAGE_CONFIG, digests.of(blob), len(blob)),
        (*map(oci_layer, base.layers), *(layer.descriptor for layer in layers)),
        annotations,
    )
    return Image(manifest, manifest.to_bytes(), blob)


def _environment(config: ImageConfig, changes: Mapping[str, str | None]) -> list[str]:
    variables: dict[str, str | None] = {**config.environment, **changes}
    return [f"{name}={value}" for name, value in variables.items() if value is not None]
