"""Blobs from one place to another: not at all where they are there, by mount where that is possible, else streamed."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from prefect_environments.core import files
from prefect_environments.core.errors import DigestMismatch, NotFound
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import LayoutRepository
from prefect_environments.core.oci.repository import Repository

logger = logging.getLogger(__name__)


async def copy_blob(
    descriptor: Descriptor,
    source: Repository,
    target: Repository,
    scratch: Path,
    on_bytes: Callable[[int], None] = lambda _: None,
    *,
    lenders: Iterable[str] = (),
) -> bool:
    """Bring a blob into `target`; `True` if its bytes were sent. They are verified on the way.

    `lenders` are more repository paths of the target's store that may have it, and are asked before it is sent.
    """
    if await _has(target, descriptor):
        return False
    for path in (shared_path(source, target), *lenders):
        if path and path != target.path and await target.mount_blob(descriptor, path):
            return False
    if not await _has(source, descriptor):
        raise NotFound(f"{source.name} has no blob {descriptor.digest}")
    if isinstance(source, LayoutRepository):
        return await target.write_blob(descriptor, source.layout.blob_path(descriptor.digest), on_bytes=on_bytes)
    with files.storage("copying a layer", scratch), files.temporary_file(scratch) as file:
        await _download(descriptor, source, file)
        file.flush()
        return await target.write_blob(descriptor, Path(file.name), on_bytes=on_bytes)


async def _download(descriptor: Descriptor, source: Repository, file: BinaryIO) -> None:
    """A blob's verified bytes in a file; read once more where they were wrong, perhaps only on their way."""
    for last in (False, True):
        try:
            async for chunk in source.read_blob(descriptor):
                await asyncio.to_thread(file.write, chunk)
            return
        except DigestMismatch as error:
            if last:
                raise
            logger.warning("a layer came damaged, fetching it once more: %s", error)
        file.seek(0)
        file.truncate()


async def _has(repository: Repository, blob: Descriptor) -> bool:
    """A registry has a blob or not; a file of a layout may also have been cut short."""
    if isinstance(repository, LayoutRepository):
        return repository.layout.has(blob)
    return await repository.has_blob(blob.digest)


def shared_path(source: Repository, target: Repository) -> str | None:
    """The path of `source` where both are repositories of one store, so that blobs can be mounted."""
    if source.address == target.address and source.path != target.path:
        return source.path
    return None
