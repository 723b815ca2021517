"""Many environments at once: what they share is made once, and a failure of one stops no other.

find (all) ──▶ resolve (as many as there are cores) ──▶ build (single flight by image hash and by layer) ──▶ register
"""

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from prefect_environments.core import hashes, steps
from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import (
    DefinitionError,
    NameNotAllowed,
    PrefectEnvironmentsError,
    RegistryUnreachable,
    VersionError,
)
from prefect_environments.core.fleet.catalog import FleetCatalog
from prefect_environments.core.fleet.outcome import FleetOutcome
from prefect_environments.core.fleet.share import share
from prefect_environments.core.fleet.store import SharedStore
from prefect_environments.core.fleet.versions import ListedVersions, ListedWorkspace
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.names import slug
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.progress import SILENT
from prefect_environments.core.redact import redact
from prefect_environments.core.site import Site
from prefect_environments.core.steps import BuiltImage
from prefect_environments.core.stores import ImageLocation

LOOKS = 16
"""Environments whose registered image is looked for at once."""

UNANSWERED = 8
"""Environments in a row for which the registry gives no answer, after all retries, before the others are not tried."""

_NOT_RESOLVED = {"name", "description", "tags", "environment_variables"}
"""What of a definition has no part in its lock."""

logger = logging.getLogger(__name__)

Builder = Callable[[Site, EnvironmentDefinition, Lock], Awaitable[BuiltImage]]
"""Brings the image of a lock into the environment's repository: `steps.build`, or one that has it built elsewhere."""


async def _here(site: Site, definition: EnvironmentDefinition, lock: Lock) -> BuiltImage:
    return await steps.build(site, definition, lock)


async def build_environments(
    site: Site,
    definitions: Sequence[EnvironmentDefinition],
    *,
    upgrade: bool = False,
    concurrency: int = 0,
    builder: Builder = _here,
    on_outcome: Callable[[FleetOutcome], None] = lambda _: None,
    created_by: Mapping[str, Any] | None = None,
) -> list[FleetOutcome]:
    """Find, or resolve, build and register every environment; the outcomes are in the order of `definitions`.

    `concurrency` is the number of environments in work at once, by default twice the number of cores. Equal image
    hashes are built once, each layer that several need is made and sent once, and each base is looked into once.
    `on_outcome` hears of each as it ends. Raises `DefinitionError` for a wrong `concurrency`, `VersionError` where
    the versions cannot be listed; if cancelled, all that was begun is cleaned up first.
    """
    if concurrency < 0:
        raise DefinitionError(f"concurrency is {concurrency}; give the number of environments in work at once, or 0")
    listed = await ListedVersions.of(site.workspace.versions)
    in_work = asyncio.Semaphore(concurrency or 2 * (os.cpu_count() or 2))
    with closing(_shared_site(site, listed)) as shared:
        fleet = _Fleet(shared, listed, upgrade, builder, on_outcome, dict(created_by or {}), in_work)
        return await fleet.build(definitions)


class _FleetSite(Site):
    """A site whose catalog is the fleet's."""

    fleet_catalog: FleetCatalog

    @property
    def catalog(self) -> FleetCatalog:
        return self.fleet_catalog


def _shared_site(site: Site, versions: ListedVersions) -> _FleetSite:
    prefix = site.workspace.repository_prefix
    own = (f"{prefix}/", *(f"{prefix}-{kind}" for kind in ("layers", "wheels", "builds", "locks")))
    # a layout's repositories share their blobs as they are
    store = site.store if isinstance(site.store, Layout) else SharedStore(site.store, own)
    workspace = ListedWorkspace(site.workspace, versions)
    shared = _FleetSite(workspace, store, site.cache, SILENT, site.index_credentials)
    shared.fleet_catalog = FleetCatalog(store.repository(f"{prefix}-layers"))
    return shared


@dataclass(slots=True)
class _Fleet:
    site: _FleetSite
    versions: ListedVersions
    upgrade: bool
    builder: Builder
    on_outcome: Callable[[FleetOutcome], None]
    created_by: dict[str, Any]
    in_work: asyncio.Semaphore
    looking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LOOKS))
    resolving: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(os.cpu_count() or 2))
    asked: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """By definition hash: what two ask for alike, such as a Dockerfile's image, the second finds."""
    locks: dict[str, Lock] = field(default_factory=dict)
    """What was resolved afresh, by all of a definition that is not in `_NOT_RESOLVED`."""
    making: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """By image hash."""
    made: dict[str, tuple[str, Descriptor]] = field(default_factory=dict)
    """Who has an image, and its manifest, by image hash."""
    bringing: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    brought: set[str] = field(default_factory=set)
    """Digests of bases of other registries whose layers are in this one now."""
    unanswered: int = 0
    """Environments in a row that ended because the registry gave no answer."""

    async def build(self, definitions: Sequence[EnvironmentDefinition]) -> list[FleetOutcome]:
        owners: dict[str, EnvironmentDefinition] = {}
        for definition in definitions:
            owners.setdefault(slug(definition.name), definition)
        await self._mark_used(owners.values())
        built: dict[str, FleetOutcome] = {}
        for wave in _waves(owners):
            outcomes = await gather(self._outcome(self._made(definition), definition.name) for definition in wave)
            built |= {slug(outcome.name): outcome for outcome in outcomes}
        told, results = set[str](), list[FleetOutcome]()
        for definition in definitions:
            place = slug(definition.name)
            if definition != owners[place]:
                refused = _refused(definition.name, owners[place].name)
                results.append(await self._outcome(refused, definition.name))
                continue
            results.append(built[place])
            if place in told:  # given twice: who counts outcomes counts on as many as were asked for
                self.on_outcome(built[place])
            told.add(place)
        return results

    async def _mark_used(self, definitions: Iterable[EnvironmentDefinition]) -> None:
        """Mark the newest versions that are wanted as they are all together: one by one each would list them again."""
        try:
            newest = [(one, await self.versions.newest(one.name)) for one in definitions if one.name in self.versions]
            used = [found for one, found in newest if found and found.definition == one.model_dump(mode="json")]
            await self.versions.mark_all_used([] if self.upgrade else used)
        except VersionError as error:
            logger.warning("that these environments are used could not be noted: %s", error)

    async def _made(self, definition: EnvironmentDefinition) -> FleetOutcome:
        return await self._found(definition) or await self._worked(definition)

    async def _outcome(self, work: Coroutine[Any, Any, FleetOutcome], name: str) -> FleetOutcome:
        started = time.monotonic()
        try:
            outcome = await work
        except PrefectEnvironmentsError as error:
            self.unanswered += self._is_unanswered(error)
            outcome = FleetOutcome(name=name, status="failed", reason=str(error))
        except Exception as error:  # whatever it is, it stops no other environment
            reason = redact(f"{type(error).__name__}: {error}")
            outcome = FleetOutcome(name=name, status="failed", reason=reason)
        if outcome.status != "failed":
            self.unanswered = 0
        if outcome.status != "ready":
            outcome = outcome.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
        tell = logger.warning if outcome.status == "failed" else logger.info
        tell("%s %s: %s", outcome.name, outcome.status, outcome.reason or outcome.reference)
        self.on_outcome(outcome)
        return outcome

    def _is_unanswered(self, error: PrefectEnvironmentsError) -> bool:
        """Whether the fleet's own registry, with which its errors begin, gave no answer; a base's may be another."""
        return isinstance(error, RegistryUnreachable) and str(error).startswith(f"{self.site.store.address}/")

    def _check_registry(self) -> None:
        """Or a thousand environments would each wait for a registry that is down."""
        if self.unanswered >= UNANSWERED:
            raise RegistryUnreachable(
                f"not tried, as the registry {self.site.store.address} gave no answer for the environments before it; "
                "build again when it is up: what is done is found"
            )

    async def _found(self, definition: EnvironmentDefinition) -> FleetOutcome | None:
        if self.upgrade:
            return None
        async with self.looking:
            self._check_registry()
            before = await self.versions.newest(definition.name) if definition.name in self.versions else None
            ready = await steps.find_registered(self.site, definition, created_by=self.created_by)
        if ready is None:
            return None
        is_new = before is not None and ready.version > before.version  # the same image with, say, another variable
        return FleetOutcome(
            name=ready.name,
            version=ready.version,
            reference=ready.reference,
            status="reused" if is_new else "ready",
            reason="the image of an earlier version" if is_new else "",
            image_hash=ready.image_hash,
        )

    async def _worked(self, definition: EnvironmentDefinition) -> FleetOutcome:
        async with self.in_work:
            self._check_registry()
            lock = await self._resolved(definition)
            built, reason = await self._image(definition, lock)
            record = await steps.register(self.site, definition, built, created_by=self.created_by)
        return FleetOutcome(
            name=record.name,
            version=record.version,
            reference=record.reference,
            status="reused" if built.reused else "built",
            reason=reason,
            image_hash=record.image_hash,
        )

    async def _resolved(self, definition: EnvironmentDefinition) -> Lock:
        wanted = await asyncio.to_thread(steps.definition_hash, self.site.workspace, definition)
        # more than its hash: logins and `require_hashes` decide whether there is a lock at all
        alike = definition.model_dump_json(exclude=_NOT_RESOLVED) if self._is_afresh(definition) else ""
        async with self.asked[wanted]:
            if alike in self.locks:
                return self.locks[alike]
            async with self.resolving:
                with self.site.catalog.turn():
                    lock = await steps.resolve(self.site, definition, upgrade=self.upgrade)
            if alike:
                self.locks[alike] = lock
            return lock

    def _is_afresh(self, definition: EnvironmentDefinition) -> bool:
        """Whether the definition alone decides its lock: no version of its name, nor of one that it extends."""
        return not definition.extends and (self.upgrade or definition.name not in self.versions)

    async def _image(self, definition: EnvironmentDefinition, lock: Lock) -> tuple[BuiltImage, str]:
        """The image, and what it took; that of an equal lock is taken over."""
        if definition.stays_where_it_is:
            return await steps.build(self.site, definition, lock), "the image stays where it is"
        wanted = hashes.image_hash(lock)
        async with self.making[wanted]:
            if wanted not in self.made:
                built = await self._build(definition, lock)
                self.made[wanted] = definition.name, built.descriptor
                return built, _took(built)
        owner, descriptor = self.made[wanted]
        shared = await share(self.site, definition, lock, owner, descriptor)
        if shared is not None:
            return shared, f"the image of {owner}"
        built = await self._build(definition, lock)
        return built, _took(built)

    async def _build(self, definition: EnvironmentDefinition, lock: Lock) -> BuiltImage:
        if not self._is_far(definition, lock):
            return await self._built(definition, lock)
        async with self.bringing[lock.base.digest]:  # or all would fetch the base at once
            if lock.base.digest not in self.brought:
                built = await self._built(definition, lock)
                self.brought.add(lock.base.digest)
                return built
        return await self._built(definition, lock)

    async def _built(self, definition: EnvironmentDefinition, lock: Lock) -> BuiltImage:
        with self.site.catalog.turn():
            return await self.builder(self.site, definition, lock)

    def _is_far(self, definition: EnvironmentDefinition, lock: Lock) -> bool:
        """Whether the base's layers have to be fetched from another registry."""
        named = definition.base_image or self.site.workspace.default_base_image or ""
        if self.builder is not _here or lock.base.of_dockerfile or named.startswith("oci:"):
            return False
        return ImageLocation.parse(lock.base.name).address != self.site.store.address


def _waves(owners: Mapping[str, EnvironmentDefinition]) -> Iterator[list[EnvironmentDefinition]]:
    """The definitions by slug, in the order in which they can be built: one that extends another one comes after it."""
    left = dict(owners)
    while left:
        wave = [one for one in left.values() if not _waits(one, left)]
        wave = wave or list(left.values())  # a circle: each of them says what it lacks
        for one in wave:
            del left[slug(one.name)]
        yield wave


def _waits(one: EnvironmentDefinition, left: Mapping[str, EnvironmentDefinition]) -> bool:
    base = slug(one.base_version()[0]) if one.extends else ""
    return base in left and base != slug(one.name)


async def _refused(name: str, owner: str) -> FleetOutcome:
    if name == owner:
        raise NameNotAllowed(f"{name!r} is given twice with different contents; only the first is built: rename one")
    raise NameNotAllowed(
        f"{name!r} and {owner!r} would share a repository, and only {owner!r} is built; rename one so that they differ "
        "in more than case, '.', '_' and '-'"
    )


def _took(built: BuiltImage) -> str:
    if built.reused:
        return "the registry had the image"
    new = sum(not layer.reused for layer in built.layers)
    return f"{new} new layers, {len(built.layers) - new} reused" if built.layers else "copied"
