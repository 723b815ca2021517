"""Blobs from one place to another: not at all where they are there, by mount where that is possible, else streamed."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from prefect_environments.core import files
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import LayoutRepository
from prefect_environments.core.oci.repository import Repository


async def copy_blob(
    descriptor: Descriptor,
    source: Repository,
    target: Repository,
    scratch: Path,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> bool:
    """Bring a blob into `target`; `True` if its bytes were sent. They are verified on the way."""
    if await target.has_blob(descriptor.digest):
        return False
    if (path := shared_path(source, target)) and await target.mount_blob(descriptor, path):
        return False
    if isinstance(source, LayoutRepository):
        return await target.write_blob(descriptor, source.layout.blob_path(descriptor.digest), on_bytes=on_bytes)
    with files.storage("copying a layer", scratch), files.temporary_file(scratch) as file:
        async for chunk in source.read_blob(descriptor):
            await asyncio.to_thread(file.write, chunk)
        file.flush()
        return await target.write_blob(descriptor, Path(file.name), on_bytes=on_bytes)


def shared_path(source: Repository, target: Repository) -> str | None:
    """The path of `source` where both are repositories of one store, so that blobs can be mounted."""
    if source.address == target.address and source.path != target.path:
        return source.path
    return None
