"""Checks of the image against its lock: which layers there must be, and what must be in them."""

import asyncio
from itertools import zip_longest

from prefect_environments.core import files
from prefect_environments.core.bases import open_base
from prefect_environments.core.build.assemble import BASE_DIGEST, BASE_NAME, environment
from prefect_environments.core.build.base import BaseImage
from prefect_environments.core.build.catalog import DIFF_ID, LAYER_KEY
from prefect_environments.core.build.plan import PlannedLayer, plan_layers, skeleton_key
from prefect_environments.core.build.skeleton import write_skeleton
from prefect_environments.core.errors import DigestMismatch, ImageError, PrefectEnvironmentsError
from prefect_environments.core.extend import effective
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci.append import AddedLayer, Image, append
from prefect_environments.core.oci.artifact import TITLE
from prefect_environments.core.oci.descriptor import LAYER_ZSTD
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.verify.contents import problems_of, read_files
from prefect_environments.core.verify.look import Look, NotLookedAt, base_layers, refuse, title_of
from prefect_environments.core.verify.stored import needs_same_recipe, read_layer, same_recipe


async def layers(look: Look) -> str:
    """The keys of the layers against those that the lock gives, and the empty environment's bytes."""
    lock, image, config = look.needs_lock(), look.needs_image(), look.needs_config()
    if not lock.managed:
        if look.record.digest != lock.base.digest:
            raise ImageError(f"the lock is of the user-managed image {lock.base.digest}, not of {look.record.digest}")
        return "the lock names this very image; what is in it is not in the lock"
    needs_same_recipe(look, lock)
    below = base_layers(image)
    planned = plan_layers(lock, below)
    wanted = {skeleton_key(lock): "the empty environment", **{layer.key: layer.title for layer in planned}}
    own = image.layers[below:]
    problems = []
    for key, layer in zip_longest(wanted, own):
        found = layer.annotations.get(LAYER_KEY) if layer else None
        if found != key:
            what = f"in place of {wanted[key]} it has" if key else "nothing of the lock is"
            problems.append(f"{what} {title_of(layer) if layer else 'nothing'}")
    for layer, diff_id in zip(own, config.diff_ids[below:], strict=True):
        if layer.annotations.get(DIFF_ID) != diff_id:
            problems.append(f"{title_of(layer)} says another diff id than the config")
    refuse(problems)
    blob = await asyncio.to_thread(_skeleton, look, lock)
    if own[0].digest != blob:
        raise ImageError(f"the layer of the empty environment is {own[0].digest}, the lock gives {blob}")
    return f"{len(own)} layers above the base's {below}, each with the key of the lock's packages"


def _skeleton(look: Look, lock: Lock) -> str:
    with files.temporary_file(look.site.scratch) as file:
        return write_skeleton(lock.target, file, conda=bool(lock.conda)).digest


async def base(look: Look) -> str:
    """The manifest and config, put together anew from the base image's, the lock's and the layers'."""
    lock, image = look.needs_managed(), look.needs_image()
    needs_same_recipe(look, lock)
    found = await _on_base(look, lock)
    if found.descriptor.digest == look.record.digest:
        return f"base, environment and layers give {look.record.digest}"
    below = base_layers(image)
    problems = []
    if [layer.digest for layer in image.layers[:below]] != [layer.digest for layer in found.manifest.layers[:below]]:
        problems.append(f"its base layers are not those of {lock.base.name} at {lock.base.digest}")
    if image.config.digest != found.manifest.config.digest:
        problems.append("its config is not what the base's config and the lock give")
    if image.annotations != found.manifest.annotations:
        problems.append("its annotations name another base")
    refuse(problems or ["its manifest is not what the base and the lock give"])
    return ""


async def _on_base(look: Look, lock: Lock) -> Image:
    try:
        wanted = (await effective(look.site, look.definition)).definition
        async with open_base(look.site, wanted, lock=lock) as found:
            return _appended(look, lock, found)
    except DigestMismatch:
        raise
    except PrefectEnvironmentsError as error:  # a base may be gone, or be in a registry that is out of reach by now
        raise NotLookedAt(f"the base image cannot be read: {error}") from error


def _appended(look: Look, lock: Lock, found: BaseImage) -> Image:
    image, config = look.needs_image(), look.needs_config()
    below = base_layers(image)
    own = zip(image.layers[below:], config.diff_ids[below:], strict=True)
    return append(
        found.manifest,
        found.config,
        [AddedLayer(layer, diff_id, layer.annotations.get(TITLE, "")) for layer, diff_id in own],
        environment=environment(found, conda=bool(lock.conda)),
        annotations={BASE_NAME: lock.base.name, BASE_DIGEST: lock.base.digest},
    )


async def contents(look: Look) -> str:
    """Every byte of every layer, and what is in the layers that were made here: distributions and their files.

    One layer at a time is on disk; in memory is a hash for each of its files.
    """
    image, config = look.needs_image(), look.needs_config()
    planned = _planned(look, image)
    problems, wheels, zstd = [], 0, 0
    with files.temporary_folder(look.site.scratch) as folder:
        for layer, diff_id in zip(image.layers, config.diff_ids, strict=True):
            zstd += layer.media_type == LAYER_ZSTD
            expected = planned.get(layer.annotations.get(LAYER_KEY, ""))
            try:
                await read_layer(look, layer, diff_id, folder / "layer")
                if expected is not None:
                    found = await asyncio.to_thread(read_files, folder / "layer")
                    problems += [f"{title_of(layer)}: {one}" for one in problems_of(expected, look.needs_lock(), found)]
                    wheels += len(expected.contents)
            except ImageError as error:
                problems.append(f"{title_of(layer)}: {error}")
    refuse(problems)
    if zstd:
        look.skipped.append(("contents", f"{zstd} layers of the base are zstd: their packed bytes were checked only"))
    if not planned:
        look.skipped.append(("contents", "no layer has its packages in the lock: its bytes were checked only"))
    return f"every byte of {len(image.layers)} layers, {wheels} packages with the hashes of their files"


def _planned(look: Look, image: ImageManifest) -> dict[str, PlannedLayer]:
    """The lock's package layers by key; none where the lock says nothing of them."""
    lock = look.lock
    if lock is None or not lock.managed or not same_recipe(look, lock):
        return {}
    return {layer.key: layer for layer in plan_layers(lock, base_layers(image))}
