"""The image once more, from its lock, and thrown away: the same digest, or the layer that differs."""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

from prefect_environments.core import files
from prefect_environments.core.bases import open_base
from prefect_environments.core.build.assemble import Assembler
from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.errors import ImageError
from prefect_environments.core.extend import effective
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.layout import Layout, LayoutRepository
from prefect_environments.core.verify.look import Look, refuse, title_of
from prefect_environments.core.verify.stored import needs_same_recipe


class _Nowhere(LayoutRepository):
    """Takes everything and keeps nothing: what counts are the digests, which are computed before."""

    async def write_blob(
        self, descriptor: Descriptor, content: Path | bytes, *, on_bytes: Callable[[int], None] | None = None
    ) -> bool:
        return True

    async def put_manifest(self, content: bytes, media_type: str, *, tag: str | None = None) -> Descriptor:
        return Descriptor(media_type, digests.of(content), len(content))


async def rebuild(look: Look) -> str:
    """Assemble anew with no layer taken from the registry but the base's, which are not downloaded."""
    lock = look.needs_managed()
    needs_same_recipe(look, lock)
    site = look.site
    wanted = (await effective(site, look.definition)).definition
    with files.temporary_folder(site.scratch) as folder:
        async with (
            open_base(site, wanted, lock=lock) as base,
            WheelCache(site.cache / "wheels", store=site.wheel_store, credentials=site.index_credentials) as wheels,
        ):
            ours = frozenset(layer.digest for layer in base.manifest.layers)
            target = _Nowhere(Layout(folder), "rebuilt")
            assembler = Assembler(base, target, wheels, site.scratch, known_base=ours, converters=site.converters)
            done = await assembler.assemble(lock, "rebuilt")
    if done.image.descriptor.digest == look.record.digest:
        return f"assembled once more from the lock: {look.record.digest}"
    if look.image is None:
        raise ImageError(f"the lock gives {done.image.descriptor.digest}, and the registered image cannot be read")
    refuse(_differences(look.image, done.image.manifest))
    raise ImageError(f"the lock gives {done.image.descriptor.digest} with the same layers: its config differs")


def _differences(stored: ImageManifest, anew: ImageManifest) -> Iterator[str]:
    for number, (old, new) in enumerate(zip_longest(stored.layers, anew.layers), 1):
        if old is None or new is None or old.digest != new.digest:
            there = title_of(old) if old else "missing"
            made = title_of(new) if new else "nothing"
            yield f"layer {number} is {there}, the lock gives {made}"
