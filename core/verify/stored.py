"""Checks of what is stored: the record, the image with its blobs, and what is attached to it."""

import asyncio
import json
from pathlib import Path
from typing import Any

from prefect_environments.core import attachments, canonical, files, hashes, sbom, steps
from prefect_environments.core.build import recipe
from prefect_environments.core.build.base import read_all
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, ImageError, PrefectEnvironmentsError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import LAYER_ZSTD, Descriptor
from prefect_environments.core.oci.image import CONFIG_LIMIT, ImageManifest
from prefect_environments.core.oci.validate import check_image, check_layer
from prefect_environments.core.verify.look import Look, NotLookedAt, refuse, title_of

_NOT_COUNTED = {
    "name": "any",
    "description": "",
    "tags": {},
    "environment_variables": {},
    "interpreter_path": "",
    "allow_literal_secrets": False,
    "base_image_username": "",
    "base_image_password": "",
}
"""Fields that may differ between the versions of one image."""


async def record(look: Look) -> str:
    """The record was read with its digest; whether what it says of itself fits together."""
    record, definition = look.record, look.definition
    problems = []
    if record.reference.rpartition("@")[2] != record.digest:
        problems.append(f"its reference {record.reference} is not of its digest {record.digest}")
    wanted = hashes.record_hash(record.image_hash, definition, record.environment_variables)
    if record.record_hash != wanted:
        problems.append(f"its record hash is {record.record_hash}, what it says has {wanted}")
    own = definition.environment_variables.items()
    variables = dict(record.environment_variables)
    if not own <= variables.items() or (not definition.extends and len(own) != len(variables)):
        problems.append("its environment variables are not those of its definition")
    shown = (record.name, record.description, dict(record.tags))
    if shown != (definition.name, definition.description, dict(definition.tags)):
        problems.append("its name, description or tags are not those of its definition")
    refuse(problems)
    return "it has the digest that was stored with it, and its parts fit together"


async def manifest(look: Look) -> str:
    """The manifest in the registry, by the record's digest."""
    found = await look.repository.get_manifest(look.record.digest)
    look.image = ImageManifest.from_bytes(found.content)
    return f"{look.repository.name} has {look.record.digest}"


async def tag(look: Look) -> str:
    """The tag by which builds find the image: who moves it makes the next build take another image."""
    if look.definition.stays_where_it_is:
        raise NotLookedAt("the image stays in a registry where nothing is tagged for us")
    name = digests.hex_of(look.record.image_hash)
    found = await look.attachments.find_manifest(name)
    if found is None:
        raise NotLookedAt(f"there is no tag {name}: the next build of this lock makes the image anew")
    if found.digest != look.record.digest:
        raise ImageError(f"the tag {name} is of {found.digest}, not of {look.record.digest}: builds take that image")
    return f"the tag of the image hash is of {look.record.digest}"


async def config(look: Look) -> str:
    """Manifest and config against each other."""
    image = look.needs_image()
    look.config = check_image(image, await read_all(look.repository, image.config, CONFIG_LIMIT))
    return f"{len(image.layers)} layers with as many diff ids"


async def blobs(look: Look) -> str:
    """Whether every blob is there, by one request each."""
    image = look.needs_image()
    wanted = {blob.digest: blob for blob in (image.config, *image.layers)}
    there = await asyncio.gather(*(look.repository.has_blob(digest) for digest in wanted))
    refuse(
        f"the blob {title_of(blob)} is missing"
        for blob, is_there in zip(wanted.values(), there, strict=True)
        if not is_there
    )
    return f"all {len(wanted)} blobs are there; their bytes were not read"


async def read_layer(look: Look, layer: Descriptor, diff_id: str, path: Path) -> None:
    """Write a layer to `path` as a stream, and check every byte: digest, size, diff id and each entry of the tar."""
    with path.open("wb") as file, files.storage("reading a layer", path):
        async for chunk in look.repository.read_blob(layer):
            await asyncio.to_thread(file.write, chunk)
    if layer.media_type != LAYER_ZSTD:  # its compressed bytes are checked by now
        await asyncio.to_thread(check_layer, path, layer, diff_id)


async def lock(look: Look) -> str:
    """The lock that the record names, attached to this image, and no other one that says something else."""
    repository, digest = look.attachments, look.record.lock_digest
    found = await _attached(look, digest, attachments.LOCK)
    read = Lock.from_pylock(found.decode())
    wanted = hashes.image_hash(read) if (same := same_recipe(look, read)) else look.record.image_hash
    if wanted != look.record.image_hash:
        raise ImageError(f"the lock {digest} is of the image hash {wanted}, the record's is {look.record.image_hash}")
    if str(read.target.platform) != look.record.platform:
        raise ImageError(f"the lock {digest} is for {read.target.platform}, the record for {look.record.platform}")
    listed = await repository.referrers(look.record.digest, attachments.LOCK)
    listed = [one for one in listed if one.artifact_type == attachments.LOCK]
    problems = [] if digest in {one.digest for one in listed} else [f"the list of attachments lacks the lock {digest}"]
    for other in listed:
        if other.digest != digest and same:
            problems += await _foreign_lock(look, other.digest)
    look.lock = read  # it is the record's, whatever else hangs on the image
    packages = len(read.packages) + len(read.conda)
    if same:
        problems += _foreign_words(look, read, packages)
    refuse(problems)
    return f"{packages} packages; {'they have the image hash of the record' if same else 'made by another recipe'}"


def _foreign_words(look: Look, lock: Lock, packages: int) -> list[str]:
    """What the record says of the lock's image that is not so: how many packages, and what starts Python."""
    record, own = look.record, look.definition
    python = recipe.executable() if lock.managed else own.interpreter_path or "python"
    problems = [] if record.packages == packages else [f"it has {packages} packages, the record says {record.packages}"]
    if record.python_path != python:
        problems.append(f"Python is started by {python}, the record says {record.python_path}")
    return problems


async def _foreign_lock(look: Look, digest: str) -> list[str]:
    """What is wrong with a lock that is attached besides: one of the same image, resolved at another time, may be."""
    try:
        other = Lock.from_pylock((await _attached(look, digest, attachments.LOCK)).decode())
    except PrefectEnvironmentsError as error:
        return [f"the attached lock {digest} cannot be read: {error}"]
    if hashes.image_hash(other) == look.record.image_hash:
        return []
    return [f"the lock {digest} is attached to the image, and is the lock of another one"]


def same_recipe(look: Look, lock: Lock) -> bool:
    """Whether this release makes images as the one did that made this."""
    made = {**look.record.created_by, **dict(look.record.created_by.get("image_by") or {})}
    fits = made.get("recipe", recipe.VERSION) == recipe.VERSION
    linker = made.get("py-rattler")
    return fits and (not lock.conda or linker is None or recipe.LINKER.endswith(f" {linker}"))


def needs_same_recipe(look: Look, lock: Lock) -> None:
    if not same_recipe(look, lock):
        raise NotLookedAt("the image was made by another recipe than this release's: verify it with that release")


async def definition(look: Look) -> str:
    """A definition attached to the image that is the record's."""
    found = await _all_attached(look, attachments.DEFINITION)
    read = [EnvironmentDefinition(**json.loads(content)) for content in found]
    if look.definition not in read and not any(_same(look, one) for one in read):
        raise ImageError(f"none of the {len(read)} attached definitions is the record's")
    if reason := await _other_hash(look):
        look.skipped.append(("definition", reason))
    if look.definition in read:
        return "the attached definition is the record's"
    return "the attached definition asks for the same image as the record's"


async def _other_hash(look: Look) -> str:
    """Why the definition has another hash than the record's, by which builds find the version, where that may be."""
    record, own = look.record, look.definition
    made = {**record.created_by, **dict(record.created_by.get("image_by") or {})}
    if not record.definition_hash:
        return "the record has no hash of its definition: builds do not find this version"
    if made.get("recipe", recipe.VERSION) != recipe.VERSION:
        return "the hash of the definition is another recipe's"
    try:
        found = await asyncio.to_thread(steps.definition_hash, look.site.workspace, own)
    except DefinitionError as error:
        return f"the hash of the definition was not looked at: {error}"
    if found == record.definition_hash:
        return ""
    based = own.base_image or own.dockerfile or own.build_context or own.extends
    local = own.build_context or "directory" in own.pylock or any("file:" in line for line in own.requirements)
    if based and own.index_url and not local:
        raise ImageError(f"its definition has the hash {found}, the record says {record.definition_hash}")
    return (
        f"the definition has the hash {found} here and now, the record's is {record.definition_hash}: the workspace's "
        "default base image or index, or files that it names, were others, or the record was altered"
    )


def _same(look: Look, other: EnvironmentDefinition) -> bool:
    """Whether two definitions ask for one image; what is on another machine can only be compared by its name."""
    if look.definition.model_copy(update=_NOT_COUNTED) == other.model_copy(update=_NOT_COUNTED):
        return True
    try:
        return len({steps.definition_hash(look.site.workspace, one) for one in (look.definition, other)}) == 1
    except DefinitionError:
        return False


async def bill(look: Look) -> str:
    """An SBOM attached to the image that lists what the lock does."""
    wanted = _components(sbom.write_sbom(look.needs_lock()))
    found = await _all_attached(look, attachments.SBOM)
    if not any(_components(content) == wanted for content in found):
        raise ImageError(f"none of the {len(found)} attached SBOMs lists the base and packages of the lock")
    return f"it lists the {len(wanted)} components of the lock"


def _components(content: bytes) -> set[bytes]:
    """Names, versions and hashes; a later release may tell more of them."""
    document: Any = json.loads(content)
    keys = ("name", "version", "hashes")
    return {canonical.dumps({key: one.get(key) for key in keys}) for one in document.get("components", ())}


async def _all_attached(look: Look, kind: str) -> list[bytes]:
    listed = await look.attachments.referrers(look.record.digest, kind)
    wanted = [one.digest for one in listed if one.artifact_type == kind]
    if not wanted:
        raise ImageError(f"nothing of the type {kind} is attached to {look.record.digest}")
    return [await _attached(look, digest, kind) for digest in wanted]


async def _attached(look: Look, digest: str, kind: str) -> bytes:
    """The content of an attachment, which must be of this very image."""
    manifest = ImageManifest.from_bytes((await look.attachments.get_manifest(digest)).content)
    if manifest.subject is None or manifest.subject.digest != look.record.digest:
        raise ImageError(f"{digest}, of the type {kind}, is not attached to {look.record.digest}")
    return await attachments.read_attachment(look.attachments, digest, kind)
