"""Which repositories of a store may already have the layers of an image that comes to it for the first time."""

from collections.abc import Mapping
from typing import Any

from prefect_environments.core.build.catalog import layers_by_key
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.promotable import Candidate

_MOST = 2
"""A registry answers a mount that it cannot do with an upload session, which has to be closed again: two requests."""
_BASE = ("base_image", "dockerfile", "build_context", "extends")


async def find_lenders(candidate: Candidate, image: ImageManifest) -> dict[str, list[str]]:
    """Repository paths in the target by the digest of a layer.

    Package layers are in the catalogue; base layers in the repositories of environments on the same base, unless the
    newest version of this very environment is on it.
    """
    target, definition = candidate.target, candidate.definition
    wanted = _base(definition.model_dump())
    own = {layer.descriptor.digest for layer in layers_by_key(image).values()}
    beside: list[str] = []
    if candidate.newest is None or _base(candidate.newest.definition) != wanted:
        others = await target.workspace.versions.names(archived=True)
        same = [one for one in others if one.name != definition.name and _base(one.definition) == wanted]
        latest = sorted(same, key=lambda one: one.created, reverse=True)
        beside = [target.repository(one.name).path for one in latest[:_MOST]]
    catalogue = [target.catalog.repository.path]
    return {layer.digest: catalogue if layer.digest in own else beside for layer in image.layers}


def _base(definition: Mapping[str, Any]) -> list[str]:
    return [str(definition.get(field, "")) for field in _BASE]
