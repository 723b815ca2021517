"""Garbage collection of an image layout: blobs that nothing leads to go, and nobody who writes meanwhile loses one.

A writer asks whether a blob is there and then writes a manifest that names it. Asking makes the blob young again, and
what is young stays: so there is time for the manifest, without a lock from one step to the other.
"""

import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from prefect_environments.core import files
from prefect_environments.core.oci import layout as layouts
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.repository import MANIFEST_LIMIT

GRACE = 24 * 3600.0
"""Seconds for which a blob stays that nothing leads to yet, counted from when it was last written or asked for."""


def collect(layout: Layout, *, keep: Collection[str] = (), older_than: float = GRACE) -> int:
    """Remove the blobs that no manifest in `index.json`, and none of the digests in `keep`, leads to; gives the bytes.

    Blobs that were written or asked for in the last `older_than` seconds stay (at least two hours). Raises
    `StorageError`, and `ImageError` for a manifest that cannot be read: then nothing is removed.
    """
    if not layout.folder.is_dir():
        return 0
    before, freed = time.time() - max(older_than, 2 * layouts.TOUCH), 0
    with files.storage("collecting blobs", layout.folder), files.locked(layout.scratch / "collect.lock"):
        reached = _reached(layout, keep)
        for path in sorted((layout.folder / "blobs").glob("*/*")):
            if f"{path.parent.name}:{path.name}" not in reached:
                freed += _remove(layout, path, before)
    return freed


def _remove(layout: Layout, path: Path, before: float) -> int:
    """Remove one blob, unless somebody looks at it in this very moment: a manifest is put under the same lock."""
    with files.locked(layout.folder / ".lock"), suppress(FileNotFoundError):
        if path.stat().st_mtime >= before:
            return 0
        aside = layout.scratch / f"collected-{path.name}"
        path.rename(aside)  # from here on `has` says no; who touched it just before counts
        found = aside.stat()
        if found.st_mtime >= before:
            aside.rename(path)
            return 0
        aside.unlink()
        return found.st_size
    return 0


def _reached(layout: Layout, keep: Collection[str]) -> set[str]:
    waiting = [*keep, *(Descriptor.from_json(entry).digest for entry in layout.entries())]
    reached: set[str] = set()
    while waiting:
        digest = waiting.pop()
        path = layout.blob_path(digest)
        if digest in reached:
            continue
        try:
            content = path.read_bytes() if path.stat().st_size <= MANIFEST_LIMIT else b"{}"
        except FileNotFoundError:
            continue  # deleted just now; who puts it again looks at its parts again
        reached |= {digest, *(blob.digest for blob in layouts.parts_of(content, "config", "layers", "blobs"))}
        waiting += [item.digest for item in layouts.parts_of(content, "manifests")]
    return reached
