"""Wheels that were built from source, kept in the registry: built once, found by every worker."""

import asyncio
from pathlib import Path

from prefect_environments.core import files
from prefect_environments.core.errors import NotFound, PackageError
from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.artifact import TITLE, put_artifact
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository

WHEEL = "application/vnd.prefect-environments.wheel.v1+zip"


class RegistryWheelStore:
    """A `WheelStore` over one repository: artifacts tagged by the source's key and by the wheel's sha256."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository = repository
        self._folder = folder

    async def find(self, source_key: str) -> LockedPackage | None:
        blob = await self._blob(_source_tag(source_key))
        return None if blob is None else _package(blob)

    async def keep(self, source_key: str, wheel: Path) -> LockedPackage:
        if found := await self.find(source_key):
            return found
        digest = await asyncio.to_thread(digests.of_file, wheel)
        blob = Descriptor(WHEEL, digest, wheel.stat().st_size, {TITLE: wheel.name})
        for tag in (wheel_tag(digests.hex_of(digest)), _source_tag(source_key)):
            await put_artifact(self.repository, blob, wheel, tag=tag)
        return _package(blob)

    async def fetch(self, sha256: str) -> Path | None:
        blob = await self._blob(wheel_tag(sha256))
        if blob is None or blob.digest != f"sha256:{sha256}":
            return None
        path = self._folder / sha256
        with files.storage("keeping a built wheel", self._folder), files.temporary_file(self._folder) as file:
            async for chunk in self.repository.read_blob(blob):
                await asyncio.to_thread(file.write, chunk)
            file.flush()
            files.publish(Path(file.name), path)
        return path

    async def _blob(self, tag: str) -> Descriptor | None:
        try:
            manifest = ImageManifest.from_bytes((await self.repository.get_manifest(tag)).content)
        except NotFound:
            return None
        return manifest.layers[0] if len(manifest.layers) == 1 and manifest.artifact_type == WHEEL else None


def _package(blob: Descriptor) -> LockedPackage:
    try:
        return LockedPackage.of_file(blob.annotations.get(TITLE, ""), digests.hex_of(blob.digest), blob.size)
    except ValueError as error:
        raise PackageError(f"the registry keeps a built wheel without a proper name ({error})") from error


def _source_tag(key: str) -> str:
    return f"source-{digests.hex_of(digests.of(key.encode()))}"


def wheel_tag(sha256: str) -> str:
    """The tag of a wheel in the repository of a `RegistryWheelStore`."""
    return f"wheel-{sha256}"
