"""What a registry remembers beside images, so that a worker with an empty disk need not find it out again.

One repository next to the environments holds small artifacts by tag: a package layer by its layer key, the facts of a
base image by its digest. It also keeps the layers from garbage collection.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from prefect_environments.core.build.layer import LayerBlob
from prefect_environments.core.errors import ImageError, NotFound, RegistryAuthError, RegistryError, RegistryUnreachable
from prefect_environments.core.lock.target import Target
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.append import AddedLayer
from prefect_environments.core.oci.artifact import EMPTY, EMPTY_DESCRIPTOR, TITLE, artifact_manifest
from prefect_environments.core.oci.descriptor import LAYER_GZIP, Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository

LAYER_KEY = "com.prefect-environments.layer.key"
DIFF_ID = "com.prefect-environments.layer.diff-id"
FACTS = "com.prefect-environments.base.facts"
REPORT = "com.prefect-environments.image.report"
LAYER_ARTIFACT = "application/vnd.prefect-environments.layer.v1+json"
BASE_ARTIFACT = "application/vnd.prefect-environments.base.v1+json"
REPORT_ARTIFACT = "application/vnd.prefect-environments.report.v1+json"
_REPORT_VERSION = 1
"""Raised when an inspection looks for more, so that older reports are not taken for whole ones."""

logger = logging.getLogger(__name__)


def annotated(key: str, blob: LayerBlob, title: str) -> AddedLayer:
    """A package layer whose descriptor carries its key and diff id, so that it can be reused unseen."""
    notes = {LAYER_KEY: key, DIFF_ID: blob.diff_id, TITLE: title}
    return AddedLayer(Descriptor(blob.media_type, blob.digest, blob.size, notes), blob.diff_id, title)


def layers_by_key(manifest: ImageManifest) -> dict[str, AddedLayer]:
    """The package layers of an image that was assembled here, by layer key."""
    return {layer.descriptor.annotations[LAYER_KEY]: layer for layer in map(_added, manifest.layers) if layer}


def _added(descriptor: Descriptor) -> AddedLayer | None:
    """Read back what `annotated` wrote, and nothing else, so that a reused layer is described as a new one is."""
    notes = descriptor.annotations
    if LAYER_KEY not in notes or DIFF_ID not in notes:
        return None
    with suppress(ImageError):
        diff_id, title = digests.check(notes[DIFF_ID]), notes.get(TITLE, "")
        kept = {LAYER_KEY: notes[LAYER_KEY], DIFF_ID: diff_id, TITLE: title}
        return AddedLayer(Descriptor(LAYER_GZIP, descriptor.digest, descriptor.size, kept), diff_id, title)
    return None


class Catalog:
    """The artifacts of one `layers` repository.

    It is a memory only: credentials that may not use the repository, or a broken artifact, cost time but no build.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._allowed = True
        self._has_empty = False

    async def find_layer(self, key: str) -> AddedLayer | None:
        """A layer that some environment has already pushed, by its key."""
        manifest = await self._find(key)
        return None if manifest is None else layers_by_key(manifest).get(key)

    async def keep_layer(self, key: str, layer: AddedLayer, source: str) -> None:
        """Remember a layer that was just pushed to the repository path `source` of the same store."""
        async with self._tolerant():
            # a registry that cannot mount: sending it twice would cost more than the memory saves
            if self._allowed and await self.repository.mount_blob(layer.descriptor, source):
                await self._keep(key, artifact_manifest(layer.descriptor, LAYER_ARTIFACT))

    async def find_base(self, digest: str) -> Target | None:
        """What a base image offers, as it was found before."""
        manifest = await self._find(_base_tag(digest))
        if manifest is None:
            return None
        with suppress(ValueError, KeyError, TypeError):
            return Target.from_json(json.loads(manifest.annotations[FACTS]))
        return None

    async def keep_base(self, digest: str, target: Target) -> None:
        notes: Mapping[str, str] = {FACTS: json.dumps(target.to_json(), sort_keys=True)}
        manifest = artifact_manifest(EMPTY_DESCRIPTOR, BASE_ARTIFACT, annotations=notes)
        async with self._tolerant():
            if self._allowed:
                await self._keep(_base_tag(digest), manifest)

    async def find_report(self, digest: str) -> dict[str, Any] | None:
        """What an inspection found in an image, as it was kept."""
        manifest = await self._find(_report_tag(digest))
        if manifest is None:
            return None
        with suppress(ValueError, KeyError):
            found = json.loads(manifest.annotations[REPORT])
            return found if isinstance(found, dict) else None
        return None

    async def keep_report(self, digest: str, report: Mapping[str, Any]) -> None:
        """Remember what an inspection found."""
        notes = {REPORT: json.dumps(report, sort_keys=True)}
        manifest = artifact_manifest(EMPTY_DESCRIPTOR, REPORT_ARTIFACT, annotations=notes)
        async with self._tolerant():
            if self._allowed:
                await self._keep(_report_tag(digest), manifest)

    async def _find(self, tag: str) -> ImageManifest | None:
        async with self._tolerant():
            if self._allowed:
                return ImageManifest.from_bytes((await self.repository.get_manifest(tag)).content)
        return None

    @asynccontextmanager
    async def _tolerant(self) -> AsyncIterator[None]:
        try:
            yield
        except NotFound:
            pass
        except ImageError as error:
            logger.warning("an artifact in %s cannot be read, going on without it: %s", self.repository.name, error)
        except RegistryUnreachable:
            raise
        except RegistryError as error:
            self._allowed = not isinstance(error, RegistryAuthError)
            logger.warning("going on without %s, which would save work: %s", self.repository.name, error)

    async def _keep(self, tag: str, manifest: ImageManifest) -> None:
        if not self._has_empty:  # once, not for each of a hundred layers
            await self.repository.write_blob(EMPTY_DESCRIPTOR, EMPTY)
            self._has_empty = True
        await self.repository.put_manifest(manifest.to_bytes(), types.IMAGE_MANIFEST, tag=tag)


def _base_tag(digest: str) -> str:
    return f"base-{digests.hex_of(digest)}"


def _report_tag(digest: str) -> str:
    return f"report{_REPORT_VERSION}-{digests.hex_of(digest)}"
