"""The steps from a definition to a registered image. Flows and tasks compose them; nothing here knows Prefect.

find ──▶ resolve ──▶ build ──▶ register
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version as installed_version
from typing import Any

from prefect_environments.core import attachments, hashes
from prefect_environments.core.build import recipe
from prefect_environments.core.build.assemble import Assembler, LayerReport, known_layers
from prefect_environments.core.build.base import BaseImage
from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.build.inspect import inspect_base
from prefect_environments.core.build.layer import Overlap
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import ImageError, NotFound, VersionNotFound
from prefect_environments.core.lock.model import Lock, LockedBase
from prefect_environments.core.lock.resolver import Resolver, ResolveRequest
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.lock.uv import UvResolver
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.site import Site, open_base, pinned_base
from prefect_environments.core.stores import reference_of
from prefect_environments.core.versions import VersionRecord
from prefect_environments.core.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image in the workspace's registry, with what it took to have it there."""

    descriptor: Descriptor
    image_hash: str
    lock: Lock
    reused: bool
    size: int
    layers: tuple[LayerReport, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    bytes_sent: int = 0


async def find_registered(site: Site, definition: EnvironmentDefinition) -> ReadyImage | None:
    """The warm path: a version of this definition whose image the registry still has, as it is registered.

    Costs one request to the registry. A changed environment variable, description or tag makes a new version of
    the same image. `None` means that there is work to do. Raises the registry's errors: unreachable is no answer.
    """
    wanted = definition_hash(site.workspace, definition)
    newest = await site.workspace.versions.newest(definition.name)
    if newest is None:
        return None
    found = newest
    if newest.definition_hash != wanted:
        older = await site.workspace.versions.find(definition.name, definition_hash=wanted)
        if older is None:
            return None
        found = older
    repository = site.repository(definition.name)
    if await repository.find_manifest(found.digest) is None:
        logger.info("%s is registered, but its image is gone from the registry", found.reference)
        return None
    renewed = _renewed(found, definition, reference_of(repository, found.digest))
    equal = await _equal_version(site.workspace, newest, renewed)
    record = equal or await site.workspace.versions.register(renewed)
    return _ready(record, reused=True)


async def resolve(site: Site, definition: EnvironmentDefinition, *, upgrade: bool = False) -> Lock:
    """The lock of a definition for its base image; the newest version's lock is the preference unless `upgrade`.

    Raises `NotSupportedYet`, `BaseImageError`, `ResolveError`, `NoFittingWheel` and the registries' errors.
    """
    definition.check_buildable()
    async with open_base(site, definition) as base:
        target = await _target(site, base, Platform.parse(definition.platform))
        logger.info(
            "base image %s: Python %s, %s %s", base.locked.name, target.python, target.libc, target.libc_version
        )
        preferences = None if upgrade else await _previous_lock(site, definition.name)
        resolver: Resolver = UvResolver(wheel_store=site.wheel_store, scratch=site.cache / "resolve")
        site.progress.step("resolve")
        request = _request(site, definition, base.locked, target)
        lock = await resolver.resolve(replace(request, preferences=preferences, upgrade=upgrade))
        logger.info("resolved %d requirements to %d packages", len(definition.requirements), len(lock.packages))
        return lock


async def build(site: Site, definition: EnvironmentDefinition, lock: Lock, *, force: bool = False) -> BuiltImage:
    """The image of a lock in the workspace's registry: found there by its hash, else assembled and pushed.

    Definition, lock and SBOM are attached to it. `force` assembles it in any case.
    """
    repository = site.repository(definition.name)
    image_hash = hashes.image_hash(lock)
    tag = digests.hex_of(image_hash)
    existing = None if force else await repository.find_manifest(tag)
    if existing is not None:
        found = await repository.get_manifest(existing.digest)  # verified: its size is told to others
        stored = ImageManifest.from_bytes(found.content)
        size = stored.config.size + sum(layer.size for layer in stored.layers)
        built = BuiltImage(found.descriptor, image_hash, lock, True, size)
    else:
        built = await _assemble(site, definition, lock, repository, tag)
    await attachments.attach(repository, built.descriptor, definition, lock)
    return built


async def register(
    site: Site, definition: EnvironmentDefinition, built: BuiltImage, *, created_by: Mapping[str, Any] | None = None
) -> VersionRecord:
    """Register a built image as a version; an equal newest version comes back as it is.

    Raises `NotFound` where the image is not in the registry: there is no version without its image.
    """
    repository = site.repository(definition.name)
    if await repository.find_manifest(built.descriptor.digest) is None:
        raise NotFound(f"{reference_of(repository, built.descriptor.digest)} is not in the registry; build it first")
    attached = await attachments.attach(repository, built.descriptor, definition, built.lock)
    draft = VersionRecord(
        workspace=site.workspace.name,
        name=definition.name,
        version=0,
        reference=reference_of(repository, built.descriptor.digest),
        digest=built.descriptor.digest,
        image_hash=built.image_hash,
        definition_hash=definition_hash(site.workspace, definition),
        record_hash=hashes.record_hash(built.image_hash, definition),
        definition=definition.model_dump(mode="json"),
        lock_digest=attached.lock,
        platform=definition.platform,
        python_path=recipe.executable(),
        environment_variables=dict(definition.environment_variables),
        description=definition.description,
        tags=dict(definition.tags),
        created_by={**_tools(), **(created_by or {})},
        packages=len(built.lock.packages),
        size=built.size,
    )
    newest = await site.workspace.versions.newest(definition.name)
    equal = None if newest is None else await _equal_version(site.workspace, newest, draft)
    return equal or await site.workspace.versions.register(draft)


async def _equal_version(workspace: Workspace, newest: VersionRecord, draft: VersionRecord) -> VersionRecord | None:
    """The version that registering `draft` would repeat: the newest one, or one just before it that differs from it
    in nothing but the registry's address, so that workers who know one registry by two names don't take turns."""
    if newest.record_hash != draft.record_hash or newest.reference == draft.reference:
        return newest if newest.record_hash == draft.record_hash else None
    for record in reversed(await workspace.versions.versions(draft.name)):
        if record.record_hash != draft.record_hash:
            return None
        if record.reference == draft.reference:
            return record
    return None


async def find_version(workspace: Workspace, name: str, version: int | None = None) -> VersionRecord:
    """A registered version, the newest without a number. Raises `VersionNotFound` that names what there is."""
    if version is not None:
        return await workspace.versions.get(name, version)
    newest = await workspace.versions.newest(name)
    if newest is None:
        known = sorted(record.name for record in await workspace.versions.names())
        there = f"it has {', '.join(known[:20])}" if known else "it has none yet"
        raise VersionNotFound(f"the workspace {workspace.name!r} has no environment {name!r}; {there}")
    return newest


def ready_image(record: VersionRecord, built: BuiltImage, seconds: Mapping[str, float]) -> ReadyImage:
    """What a flow gives back."""
    new = [layer for layer in built.layers if not layer.reused]
    return _ready(record, reused=built.reused).model_copy(
        update={
            "layers_new": len(new),
            "layers_reused": len(built.layers) - len(new),
            "bytes_sent": built.bytes_sent,
            "seconds": dict(seconds),
        }
    )


def definition_hash(workspace: Workspace, definition: EnvironmentDefinition) -> str:
    """The definition's hash in a workspace, whose base image and index count where the definition names none."""
    return hashes.definition_hash(
        definition,
        default_base_image=workspace.default_base_image or "",
        default_index_url=workspace.index_url or "",
    )


async def _assemble(
    site: Site, definition: EnvironmentDefinition, lock: Lock, repository: Repository, tag: str
) -> BuiltImage:
    pinned = definition.model_copy(update={"base_image": pinned_base(site, definition, lock)})
    known, known_base = await _known_layers(site, definition.name, repository)
    site.progress.step("assemble")
    async with (
        open_base(site, pinned) as base,
        WheelCache(
            site.cache / "wheels",
            store=site.wheel_store,
            credentials=site.index_credentials,
            on_bytes=site.progress.downloaded,
        ) as wheels,
    ):
        located = BaseImage(lock.base, base.manifest, base.config, base.repository)
        assembler = Assembler(
            located, repository, wheels, site.scratch, site.catalog, known, known_base, progress=site.progress
        )
        done = await assembler.assemble(lock, tag)
    new = sum(not layer.reused for layer in done.layers)
    logger.info(
        "assembled %d layers: %d new, %d reused, %d bytes sent",
        len(done.layers),
        new,
        len(done.layers) - new,
        done.bytes_sent,
    )
    for overlap in done.overlaps:
        logger.warning("/%s comes from both %s and %s; %s's is used", *_told(overlap))
    return BuiltImage(
        done.image.descriptor,
        hashes.image_hash(lock),
        lock,
        reused=False,
        size=done.image.size,
        layers=done.layers,
        overlaps=done.overlaps,
        bytes_sent=done.bytes_sent,
    )


def _told(overlap: Overlap) -> tuple[str, str, str, str]:
    return overlap.path, overlap.loser, overlap.winner, overlap.winner


async def _known_layers(site: Site, name: str, repository: Repository) -> tuple[Mapping[str, Any], frozenset[str]]:
    """The layers of the newest version's image, by one request."""
    newest = await site.workspace.versions.newest(name)
    if newest is None or not newest.reference.startswith(f"{repository.name}@"):
        return {}, frozenset()
    try:
        manifest = await repository.get_manifest(newest.digest)
        return known_layers(ImageManifest.from_bytes(manifest.content))
    except (NotFound, ImageError) as error:
        logger.info("the newest version's image cannot be reused: %s", error)
        return {}, frozenset()


async def _target(site: Site, base: BaseImage, platform: Platform) -> Target:
    site.progress.step("inspect")
    found = await site.catalog.find_base(base.locked.digest)
    if found is None or found.platform != platform:
        found = await inspect_base(base, platform, site.scratch)
        await site.catalog.keep_base(base.locked.digest, found)
    return found


async def _previous_lock(site: Site, name: str) -> Lock | None:
    newest = await site.workspace.versions.newest(name)
    if newest is None or not newest.lock_digest:
        return None
    try:
        return await attachments.read_lock(site.repository(name), newest.lock_digest)
    except NotFound:
        logger.warning("the lock of %s version %d is gone; resolving afresh", name, newest.version)
        return None


def _request(site: Site, definition: EnvironmentDefinition, base: LockedBase, target: Target) -> ResolveRequest:
    return ResolveRequest(
        packages=definition.requirements,
        target=target,
        base=base,
        constraints=definition.constraints,
        index_url=definition.index_url or site.workspace.index_url,
        extra_index_urls=definition.extra_index_urls,
        find_links=definition.find_links,
        no_index=definition.no_index,
        pre=definition.pre,
        require_hashes=definition.require_hashes,
        only_binary=definition.only_binary,
        allow_source_builds=definition.allow_source_builds or site.workspace.allow_source_builds,
        index_credentials=site.index_credentials,
    )


def _renewed(found: VersionRecord, definition: EnvironmentDefinition, reference: str) -> VersionRecord:
    """A draft for the same image with what else the definition now says, and where the image is now."""
    return replace(
        found,
        version=0,
        created="",
        nonce="",
        reference=reference,
        record_hash=hashes.record_hash(found.image_hash, definition),
        definition=definition.model_dump(mode="json"),
        environment_variables=dict(definition.environment_variables),
        description=definition.description,
        tags=dict(definition.tags),
        created_by=_tools(),
    )


def _tools() -> dict[str, str]:
    return {name: installed_version(name) for name in ("prefect-environments", "uv")}


def _ready(record: VersionRecord, *, reused: bool) -> ReadyImage:
    return ReadyImage(
        reference=record.reference,
        name=record.name,
        version=record.version,
        digest=record.digest,
        image_hash=record.image_hash,
        platform=record.platform,
        python_path=record.python_path,
        reused=reused,
        packages=record.packages,
        size=record.size,
    )
