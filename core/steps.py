"""The steps from a definition to a registered image. Flows and tasks compose them; nothing here knows Prefect.

find ──▶ resolve ──▶ build ──▶ register
"""

import asyncio
import logging
import platform
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_environments.core import attachments, curated, hashes, history
from prefect_environments.core.build import recipe
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import NotFound, VersionError, VersionNotFound, VersionPruned
from prefect_environments.core.lock.model import Lock, LockedPackage
from prefect_environments.core.names import is_curated
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.site import Site, open_repository
from prefect_environments.core.stores import ImageLocation, reference_of
from prefect_environments.core.versions import VersionRecord
from prefect_environments.core.workspace import Workspace

if TYPE_CHECKING:
    from prefect_environments.core.build.assemble import LayerReport
    from prefect_environments.core.build.layer import Overlap
    from prefect_environments.core.lock.age import AgeLimit

# Imports inside functions are of what only a build needs: finding a registered image takes less time than loading it.

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image in the workspace's registry, with what it took to have it there."""

    descriptor: Descriptor
    image_hash: str
    lock: Lock
    reused: bool
    size: int
    reference: str
    """`repository@sha256:…`; a user-managed image may be in another registry than the workspace's."""
    layers: "tuple[LayerReport, ...]" = ()
    overlaps: "tuple[Overlap, ...]" = ()
    bytes_sent: int = 0
    not_run: tuple[str, ...] = ()
    """Scripts of conda packages that an installer would have run: `package: path`."""
    attached: attachments.Attached | None = None
    """What was attached to it when it was built."""


async def find_registered(
    site: Site, definition: EnvironmentDefinition, *, created_by: Mapping[str, Any] | None = None
) -> ReadyImage | None:
    """The warm path: a version of this definition whose image the registry still has, as it is registered.

    Costs one request to the registry. A changed environment variable, description or tag makes a new version of
    the same image. `None` means that there is work to do. Raises the registry's errors: unreachable is no answer.
    """
    curated.check_unchanged(definition)
    wanted = await _wanted(site, definition)
    newest = await site.workspace.versions.newest(definition.name)
    if newest is None:
        return None
    found = newest
    if newest.definition_hash != wanted:
        older = await site.workspace.versions.find(definition.name, definition_hash=wanted)
        if older is None:
            return None
        found = older
    reference = found.reference
    if not definition.stays_where_it_is:
        reference = reference_of(site.repository(definition.name), found.digest)
    try:
        await mark_used(site.workspace, found)  # before the image is looked for: see `core.prune`
    except VersionPruned as error:
        logger.info("%s", error)
        return None
    if not await _exists(site, definition, reference):
        logger.info("%s is registered, but its image is gone from the registry", found.reference)
        return None
    renewed = _renewed(found, definition, await inherited_variables(site, definition), reference)
    renewed = replace(renewed, created_by={**renewed.created_by, **(created_by or {})})
    equal = await _equal_version(site.workspace, newest, renewed)
    record = equal or await site.workspace.versions.register(renewed)
    return _ready(record, reused=True)


async def _wanted(site: Site, definition: EnvironmentDefinition) -> str:
    """The hash of a definition. Where its build context is not on this machine, that of the version which has the very
    same definition: the image was built where the folder is."""
    if definition.build_context and not _has_context(definition.build_context):
        for record in reversed(await site.workspace.versions.versions(definition.name)):
            if EnvironmentDefinition(**record.definition) == definition:
                return record.definition_hash
    return await asyncio.to_thread(definition_hash, site.workspace, definition)  # it may read a build context


def _has_context(context: str) -> bool:
    """Whether a build context can be read here: a folder that is there, or git, which is named by its commit."""
    from prefect_environments.core.build.docker.checkout import GitContext  # noqa: PLC0415

    return GitContext.is_git(context) or Path(context).exists()


async def resolve(
    site: Site,
    definition: EnvironmentDefinition,
    *,
    upgrade: bool = False,
    age: "AgeLimit | None" = None,
    settled: tuple[LockedPackage, ...] = (),
) -> Lock:
    """The lock of a definition for its base image; the newest version's lock is the preference unless `upgrade`.

    `age` says how long packages must have been published; those of `settled` stay at their version all the same.
    Raises `NotSupportedYet`, `BaseImageError`, `ResolveError`, `NoFittingWheel` and the registries' errors.
    """
    from prefect_environments.core import resolving  # noqa: PLC0415

    curated.check_unchanged(definition)
    return await resolving.resolve(site, definition, upgrade=upgrade, age=age, settled=settled)


async def build(site: Site, definition: EnvironmentDefinition, lock: Lock, *, force: bool = False) -> BuiltImage:
    """The image of a lock in the workspace's registry: found there by its hash, else assembled and pushed.

    Definition, lock and SBOM are attached to it. `force` assembles it in any case.
    """
    from prefect_environments.core import building  # noqa: PLC0415

    return await building.build(site, definition, lock, force=force)


async def register(
    site: Site, definition: EnvironmentDefinition, built: BuiltImage, *, created_by: Mapping[str, Any] | None = None
) -> VersionRecord:
    """Register a built image as a version; an equal newest version comes back as it is.

    Raises `NotFound` where the image is not in the registry: there is no version without its image.
    """
    curated.check_unchanged(definition)
    if not await _exists(site, definition, built.reference):
        raise NotFound(f"{built.reference} is not in the registry; build it first")
    await lock_image(site.workspace, built.reference)
    attached = attachments.expected(built.descriptor, definition, built.lock)
    if built.attached != attached:  # built for another definition of the same image
        await attachments.attach(site.repository(definition.name), built.descriptor, definition, built.lock)
    variables = await inherited_variables(site, definition)
    draft = VersionRecord(
        workspace=site.workspace.name,
        name=definition.name,
        version=0,
        reference=built.reference,
        digest=built.descriptor.digest,
        image_hash=built.image_hash,
        definition_hash=await asyncio.to_thread(definition_hash, site.workspace, definition),
        record_hash=hashes.record_hash(built.image_hash, definition, variables),
        definition=definition.model_dump(mode="json"),
        lock_digest=attached.lock,
        platform=str(built.lock.target.platform),
        python_path=_python_path(definition),
        environment_variables=variables,
        description=definition.description,
        tags=dict(definition.tags),
        created_by={**_tools(built.lock), **(created_by or {})},
        packages=len(built.lock.packages) + len(built.lock.conda),
        size=built.size,
    )
    newest = await site.workspace.versions.newest(definition.name)
    equal = None if newest is None else await _equal_version(site.workspace, newest, draft)
    return equal or await site.workspace.versions.register(draft)


async def lock_image(workspace: Workspace, reference: str) -> None:
    """Lock an image in its registry before its version is written, so that there is none without its lock where the
    workspace wants locks."""
    settings = workspace.registry_settings
    if settings.azure is not None and settings.azure.lock_registered:
        from prefect_environments.core.azure import acr  # noqa: PLC0415  # Azure's SDK

        await acr.lock_registered(settings, workspace.secrets, reference)


async def _exists(site: Site, definition: EnvironmentDefinition, reference: str) -> bool:
    """Whether an image is there, by one request to its registry. Unreachable is no answer, but an error."""
    async with open_image(site, definition, reference) as repository:
        return await repository.find_manifest(reference.rpartition("@")[2]) is not None


@asynccontextmanager
async def open_image(site: Site, definition: EnvironmentDefinition, reference: str) -> AsyncIterator[Repository]:
    """The repository of a version's image: the environment's own, or that of an image that stays where it is."""
    if not definition.stays_where_it_is:
        yield site.repository(definition.name)
        return
    async with open_repository(site, definition, ImageLocation.parse(reference)) as repository:
        yield repository


async def mark_used(workspace: Workspace, record: VersionRecord) -> None:
    """Note that a version is used today, for those who prune what nobody uses.

    Raises `VersionPruned`; a note that cannot be written is a warning.
    """
    try:
        await workspace.versions.mark_used(record)
    except VersionPruned:
        raise
    except VersionError as error:
        logger.warning("that %s version %d is used could not be noted: %s", record.name, record.version, error)


async def has_image(site: Site, record: VersionRecord) -> bool:
    """Whether the registry still has the image of a version, by one request."""
    return await _exists(site, EnvironmentDefinition(**record.definition), record.reference)


async def inherited_variables(site: Site, definition: EnvironmentDefinition) -> dict[str, str]:
    """The variables of an environment, with those of the environments that it extends below them."""
    if not definition.extends:
        return dict(definition.environment_variables)
    below = await site.workspace.versions.get(*definition.base_version())
    return {**below.environment_variables, **definition.environment_variables}


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


async def find_version(
    workspace: Workspace, name: str, version: int | None = None, *, label: str = ""
) -> VersionRecord:
    """A registered version, the newest without number or label. Raises `VersionNotFound` that names what there is.

    A curated environment that nobody has built has a version too, with an empty `reference`.
    """
    if label and label.lower() != history.LATEST:
        from prefect_environments.core import labels  # noqa: PLC0415  # it works with these steps

        return await labels.labelled(workspace.versions, name, label)
    newest = await workspace.versions.newest(name) if version is None or is_curated(name) else None
    unbuilt = _unbuilt(workspace, name, newest)
    if unbuilt is not None and version in (None, unbuilt.version):
        return unbuilt
    if version is not None:
        return await workspace.versions.get(name, version)
    if newest is None:
        known = sorted(record.name for record in await workspace.versions.names())
        there = f"it has {', '.join(known[:20])}" if known else "it has none yet"
        raise VersionNotFound(f"the workspace {workspace.name!r} has no environment {name!r}; {there}")
    return newest


async def newest_versions(workspace: Workspace) -> list[VersionRecord]:
    """The newest version of every environment by name, curated ones among them, also those that nobody has built."""
    newest = {record.name: record for record in await workspace.versions.names()}
    unbuilt = [_unbuilt(workspace, name, newest.get(name)) for name in curated.environments()]
    newest |= {record.name: record for record in unbuilt if record}
    return sorted(newest.values(), key=lambda record: record.name.lower())


def _unbuilt(workspace: Workspace, name: str, newest: VersionRecord | None) -> VersionRecord | None:
    """The curated environment of this name, where its definition is not the newest version's."""
    if not is_curated(name):
        return None
    definition = curated.get(name)
    return curated.unbuilt_version(definition, newest, workspace.name, definition_hash(workspace, definition))


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


def _renewed(
    found: VersionRecord, definition: EnvironmentDefinition, variables: dict[str, str], reference: str
) -> VersionRecord:
    """A draft for the same image with what else the definition now says, and where the image is now."""
    return replace(
        found,
        version=0,
        created="",
        nonce="",
        reference=reference,
        record_hash=hashes.record_hash(found.image_hash, definition, variables),
        definition=definition.model_dump(mode="json"),
        python_path=_python_path(definition),
        environment_variables=variables,
        description=definition.description,
        tags=dict(definition.tags),
        created_by={"image_by": first_maker(found), **_tools()},
    )


def _python_path(definition: EnvironmentDefinition) -> str:
    """What starts Python in the image: the environment's own, or that of a user-managed image."""
    return definition.interpreter_path or "python" if definition.user_managed else recipe.executable()


def _tools(lock: Lock | None = None) -> dict[str, Any]:
    """What works here: versions of what decides an image's bytes, and the machine that it ran on. With the lock that
    was built, also of what only some locks need."""
    names = ["prefect-environments", "uv"]
    names += ["py-rattler"] if lock and lock.conda else []
    names += ["deflate"] if lock and (lock.conda or lock.bytecode) else []
    versions = {name: _installed_version(name) for name in names}
    machine = f"{platform.system().lower()}/{platform.machine()}"
    return {**versions, "python": platform.python_version(), "platform": machine, "recipe": recipe.VERSION}


@cache
def _installed_version(name: str) -> str:
    return installed_version(name)  # reads files: a thousand times in a warm run of many


def first_maker(found: VersionRecord) -> dict[str, Any]:
    """Who built the image of a version that says something else about it, and which version that was."""
    known = found.created_by.get("image_by")
    return known if known else {**found.created_by, "version": found.version}


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
