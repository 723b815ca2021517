"""A registered version of one workspace as a version of another: dev to prod. The image keeps its digest.

check ──▶ copy image and attachments ──▶ verify ──▶ tag ──▶ register ──▶ label

All that can be refused is refused before anything is copied. The version is written after the image is whole, so that
an interrupted promotion leaves blobs, which the next run finds, and never a version without its image.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version as installed_version
from typing import Any

from prefect_environments.core import labels, promotable, steps
from prefect_environments.core.build.catalog import layers_by_key
from prefect_environments.core.build.wheel_store import wheel_tag
from prefect_environments.core.concurrency import gather
from prefect_environments.core.copy import Copier, blobs_of
from prefect_environments.core.errors import NotFound, VersionPruned
from prefect_environments.core.history import check_label
from prefect_environments.core.lenders import find_lenders
from prefect_environments.core.names import check_name
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.promotable import Candidate
from prefect_environments.core.promotion import Promotion
from prefect_environments.core.prune.claims import claim
from prefect_environments.core.site import Site
from prefect_environments.core.stores import reference_of
from prefect_environments.core.versions import VersionRecord

__all__ = ["Promotion", "promote"]

logger = logging.getLogger(__name__)


async def promote(
    source: Site,
    target: Site,
    name: str,
    version: int | str = "",
    *,
    label: str = "",
    target_name: str = "",
    created_by: Mapping[str, Any] | None = None,
) -> Promotion:
    """Copy a version of `source` (a number, a label, or the newest) to `target`, and register it there.

    The digest stays. A version that the target has already is given back; `label` is set to it in any case. Raises
    `VersionNotFound` and `VersionPruned`, `NotFound` where the image or its lock is gone, `SecretError` for references
    to vaults that the target does not know, `NameNotAllowed`, `DefinitionError`, `DigestMismatch` for damaged bytes,
    and the errors of both registries; before the copy is complete nothing is registered.
    """
    if label:
        check_label(label)
    goal_name = check_name(target_name or check_name(name))
    seconds: dict[str, float] = {}
    with _clock(seconds, "check"):
        candidate = await promotable.find(source, target, name, version, goal_name)
        # a version of the same image may be about to be pruned there
        await claim(target.workspace.versions, goal_name, candidate.record.image_hash)
    done = Promotion(candidate.record, candidate.record, notes=candidate.notes, seconds=seconds)
    target.progress.step("promote")
    with _clock(seconds, "copy"):
        await _copy(candidate, done)
    with _clock(seconds, "register"):
        await _register(candidate, done, created_by)
    if label:
        await labels.set_label(target, goal_name, label, done.record.version, reason=str(done), created_by=created_by)
        done.label = label
    return done


async def _copy(candidate: Candidate, done: Promotion) -> None:
    """The image and what is attached to it, verified, tagged by its hash, and its layers known to later builds."""
    target, goal, digest = candidate.target, candidate.goal, candidate.record.digest

    def count(size: int) -> None:
        done.bytes_sent += size
        target.progress.sent(size)

    copier = Copier(candidate.origin, goal, target.scratch, on_bytes=count)
    await _wheels(copier, candidate)
    if candidate.stays:
        done.how = "stays"
        done.attached = await _attachments(copier, candidate)
        return
    image = await _image(copier, candidate, done)
    done.attached = await _attachments(copier, candidate)
    await _verify(goal, digest, image)
    await _tag(candidate)
    if not candidate.definition.user_managed:  # somebody else's image: its annotations are no word of ours
        await _remember(target, goal, image)
    logger.info(
        "%s: %d of %d layers were there, %d bytes sent, %d attachments",
        reference_of(goal, digest),
        done.layers_reused,
        len(image.layers),
        done.bytes_sent,
        done.attached,
    )


async def _image(copier: Copier, candidate: Candidate, done: Promotion) -> ImageManifest:
    target, goal, digest = candidate.target, copier.goal, candidate.record.digest
    manifest = await copier.origin.get_manifest(digest)
    image = ImageManifest.from_bytes(manifest.content)
    layers = {layer.digest for layer in image.layers}
    target.progress.planned(len(layers), 0)
    there = await goal.find_manifest(digest) is not None
    same_store = copier.origin.address == goal.address
    if not there and not same_store and await _imported(candidate):
        there = await goal.find_manifest(digest) is not None
        done.how = "imported" if there else done.how
    new = set[str]()

    def seen(blob: Descriptor, sent: bool) -> None:
        if blob.digest in layers:
            new.update([blob.digest] if sent else [])
            target.progress.layer(blob.digest[7:19], blob.size, not sent)

    lenders = {} if there or same_store else await find_lenders(candidate, image)
    whole = replace(copier, on_blob=seen, lenders=lambda blob: lenders.get(blob.digest, ()))
    if there:  # a registry may have lost a blob and kept the manifest
        await whole.blobs(image)
    else:
        await whole.manifest(manifest)
        done.how = "sent" if new else "mounted"
    done.layers_new, done.layers_reused = len(new), len(layers) - len(new)
    return image


async def _imported(candidate: Candidate) -> bool:
    """Whether Azure copied the image itself, into a Container Registry that it manages."""
    if candidate.target.workspace.registry_settings.azure is None:
        return False
    from prefect_environments.core.azure.acr_promote import import_version  # noqa: PLC0415  # Azure's SDK

    return await import_version(
        candidate.source.workspace,
        candidate.target.workspace,
        reference_of(candidate.origin, candidate.record.digest),
        candidate.goal.path,
    )


async def _attachments(copier: Copier, candidate: Candidate) -> int:
    """Referrers of the image; the record's lock in any case, also where the list of referrers has lost it."""
    found = {one.digest for one in await copier.attachments(candidate.record.digest)}
    lock = candidate.record.lock_digest
    if lock and lock not in found:
        await copier.manifest(await copier.origin.get_manifest(lock))
        found.add(lock)
    return len(found)


async def _wheels(copier: Copier, candidate: Candidate) -> None:
    """The wheels that are in no index, but in the source's registry: the target needs them to build this lock again."""
    own = [package for package in candidate.lock.packages if package.url is None] if candidate.lock else []
    kept = candidate.source.wheel_store.repository, candidate.target.wheel_store.repository
    to_wheels = replace(copier, origin=kept[0], goal=kept[1])
    for package in own:
        tag = wheel_tag(package.sha256)
        found = await kept[0].find_manifest(tag)
        if found is None:
            logger.warning("%s has no wheel %s; the image has it", kept[0].name, package.filename)
        elif await kept[1].find_manifest(tag) is None:
            await to_wheels.manifest(await kept[0].get_manifest(found.digest), tag=tag)


async def _verify(goal: Repository, digest: str, image: ImageManifest) -> None:
    """Ask the target for the manifest and every blob, as who pulls it would."""
    found = await goal.find_manifest(digest)
    wanted = blobs_of(image)
    there = await gather(goal.has_blob(blob.digest) for blob in wanted)
    missing = [blob.digest for blob, is_there in zip(wanted, there, strict=True) if not is_there]
    if found is None or found.digest != digest or missing:
        lacks = f"the blobs {', '.join(missing[:5])}" if missing else f"the manifest {digest}"
        raise NotFound(
            f"{goal.name} lacks {lacks} after all was copied, so nothing is registered. Run the promotion again; look "
            "into the registry's log, and for a clean-up that runs there at the same time"
        )


async def _tag(candidate: Candidate) -> None:
    """Tag the image with its hash, by which builds of the same lock find it."""
    goal, record = candidate.goal, candidate.record
    tag = digests.hex_of(record.image_hash)
    found = await goal.find_manifest(tag)
    if found is not None and found.digest == record.digest:
        return
    if found is not None:
        logger.warning(
            "%s: the tag %s of the image's hash was of %s, and is moved to %s",
            goal.name,
            tag,
            found.digest,
            record.digest,
        )
    manifest = await goal.get_manifest(record.digest)
    await goal.put_manifest(manifest.content, manifest.descriptor.media_type, tag=tag)


async def _remember(target: Site, goal: Repository, image: ImageManifest) -> None:
    """Tag the package layers in the target's catalogue, so that its builds take them; what is known there stays."""

    async def keep(key: str) -> None:
        if await target.catalog.find_layer(key) is None:
            await target.catalog.keep_layer(key, layers[key], goal.path)

    layers = layers_by_key(image)
    await gather(map(keep, layers))


async def _register(candidate: Candidate, done: Promotion, created_by: Mapping[str, Any] | None) -> None:
    target, record = candidate.target, candidate.record
    reference = record.reference if candidate.stays else reference_of(candidate.goal, record.digest)
    await steps.lock_image(target.workspace, reference)
    definition = candidate.definition
    draft = replace(
        record,
        workspace=target.workspace.name,
        name=definition.name,
        version=0,
        reference=reference,
        definition=definition.model_dump(mode="json"),
        definition_hash=candidate.definition_hash,
        created="",
        created_by={"image_by": steps.first_maker(record), "prefect-environments": _release(), **(created_by or {})},
        origin={
            "workspace": record.workspace,
            "name": record.name,
            "version": record.version,
            "reference": record.reference,
            "record_digest": record.record_digest(),
        },
        nonce="",
    )
    equal = await _equal(target, draft)
    done.record = equal or await target.workspace.versions.register(draft)
    done.is_new = equal is None
    logger.info(
        "%s version %d of %s %s %s version %d of %s: %s",
        record.name,
        record.version,
        record.workspace,
        "is now" if done.is_new else "already is",
        done.record.name,
        done.record.version,
        done.record.workspace,
        reference,
    )


async def _equal(target: Site, draft: VersionRecord) -> VersionRecord | None:
    """The version that the target has of the same record and image, whatever was registered after it; in use from now
    on, so that nobody prunes it."""
    for found in reversed(await target.workspace.versions.versions(draft.name)):
        if (found.record_hash, found.reference) == (draft.record_hash, draft.reference):
            try:
                await steps.mark_used(target.workspace, found)
            except VersionPruned:
                continue
            return found
    return None


def _release() -> str:
    return installed_version("prefect-environments")


@contextmanager
def _clock(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - started, 3)
