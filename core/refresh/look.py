"""Resolve what is registered afresh, and say what would change. Nothing is registered here."""

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from prefect_environments.core import attachments, steps
from prefect_environments.core.bases import open_base
from prefect_environments.core.compare import Change, LockDiff, compare_locks
from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import (
    NotFound,
    PrefectEnvironmentsError,
    ResolveError,
    UndatedPackages,
    VersionNotFound,
)
from prefect_environments.core.fleet.locks import keep_lock
from prefect_environments.core.lock.age import AgeLimit, gone_back
from prefect_environments.core.lock.model import Lock, LockedPackage
from prefect_environments.core.redact import redact
from prefect_environments.core.refresh.outcome import RefreshOutcome
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord

logger = logging.getLogger(__name__)

_REAL_TIMES = datetime(2000, 1, 1, tzinfo=UTC)  # reproducible builds write 1970, or 1980


async def find_drift(
    site: Site, names: Sequence[str] = (), *, age: AgeLimit | None = None, keep: bool = False
) -> list[RefreshOutcome]:
    """Resolve the newest version of each environment afresh, or of those in `names`; a failure stops no other.

    Archived environments are left out. With `keep` each fresh lock that differs is kept in the registry, to be built
    as it was seen; without it nothing is written but what saves work later (a new base's facts, wheels built from
    source), and what a Dockerfile installs is not found out, as it is not built.
    Raises `VersionNotFound` for a name that is not registered.
    """
    records = await _records(site, names)
    at_once = asyncio.Semaphore(os.cpu_count() or 2)
    look = _Look(site, age, keep)

    async def one(record: VersionRecord) -> RefreshOutcome:
        async with at_once:
            found = await look.outcome(record)
        tell = logger.warning if found.status == "failed" else logger.info
        tell("%s %s%s", found.label(), found.status, f": {found.reason}" if found.reason else "")
        return found

    return await gather(map(one, records))


async def _records(site: Site, names: Sequence[str]) -> list[VersionRecord]:
    known = {record.name: record for record in await site.workspace.versions.names()}
    if missing := sorted(set(names) - known.keys()):
        there = ", ".join(list(known)[:20]) or "nothing"
        raise VersionNotFound(
            f"{', '.join(missing)}: not registered in the workspace {site.workspace.name!r}, or archived; it has "
            f"{there}. Correct the names, or restore what is archived"
        )
    return [known[name] for name in dict.fromkeys(names)] if names else list(known.values())


@dataclass(frozen=True, slots=True)
class _Look:
    site: Site
    age: AgeLimit | None
    keep: bool

    async def outcome(self, record: VersionRecord) -> RefreshOutcome:
        known: dict[str, Any] = {"name": record.name, "version": record.version, "reference": record.reference}
        try:
            return await self._compared(record)
        except PrefectEnvironmentsError as error:
            return RefreshOutcome(**known, status="failed", reason=str(error))
        except Exception as error:  # whatever it is, it stops no other environment
            return RefreshOutcome(**known, status="failed", reason=redact(f"{type(error).__name__}: {error}"))

    async def _compared(self, record: VersionRecord) -> RefreshOutcome:
        definition = EnvironmentDefinition(**record.definition)
        known = RefreshOutcome(name=record.name, version=record.version, reference=record.reference, status="unchanged")
        asked = await asyncio.to_thread(steps.definition_hash, self.site.workspace, definition)
        fixed = self._is_fixed(definition) and asked == record.definition_hash
        if fixed and (definition.pylock or definition.user_managed):
            return known.model_copy(update={"reason": "base and packages are pinned by digest: it cannot drift"})
        old = await self._old_lock(record)
        if fixed and _pins_all(definition, old):
            return known.model_copy(update={"reason": "base and all packages are pinned: it cannot drift"})
        if not self.keep and (found := await self._unbuilt(definition, old)):
            return known.model_copy(update=found)
        new = await self._resolved(record, definition, old)
        if new is None:
            waits = "conda packages of this version are younger than the age limit: they are waited for"
            return known.model_copy(update={"reason": waits})
        diff = compare_locks(old, new)
        if diff.equal:
            return known
        if self.keep:
            await keep_lock(self.site, new)
        drift = {"status": "drifted", "changes": tuple(map(str, diff.changes)), "archive_bytes": diff.archive_bytes}
        reason = await self._age_of_base(definition, new, diff)
        hashed = {"image_hash": diff.image_hashes[1], "definition_hash": asked}
        return known.model_copy(update={**drift, **hashed, "reason": reason})

    def _is_fixed(self, definition: EnvironmentDefinition) -> bool:
        """Whether the base is named by digest."""
        if definition.dockerfile or definition.build_context or definition.extends:
            return False
        return "@sha256:" in (definition.base_image or self.site.workspace.default_base_image or "")

    async def _old_lock(self, record: VersionRecord) -> Lock:
        try:
            return await attachments.read_lock(self.site.repository(record.name), record.lock_digest)
        except NotFound as error:
            raise NotFound(
                f"the lock of {record.name} version {record.version} is gone from the registry, so it is not known "
                "what it held; build the environment again"
            ) from error

    async def _resolved(self, record: VersionRecord, definition: EnvironmentDefinition, old: Lock) -> Lock | None:
        """The fresh lock. What the version has already does not go back because it is younger than the limit: that can
        only be so where the version itself is. `None` where conda's packages would."""
        if self.age is None or not self.age.is_before(record.created):
            return await self._fresh(definition)
        young = {package.name for package in old.conda if self.age.is_too_young(package)}
        new, back = None, old.packages
        try:
            new = await self._fresh(definition)
            gone = gone_back(old, new)
            back = tuple(package for package in gone if isinstance(package, LockedPackage))
            if any(package.name in young for package in gone):
                return None
        except UndatedPackages:
            raise
        except ResolveError:
            if young:
                await self._without_limit(definition)  # raises what is no matter of age
                return None
            if not back:
                raise
        return new if new and not back else await self._held(definition, old, back, new)

    async def _fresh(self, definition: EnvironmentDefinition, settled: tuple[LockedPackage, ...] = ()) -> Lock:
        return await steps.resolve(self.site, definition, upgrade=True, age=self.age, settled=settled)

    async def _without_limit(self, definition: EnvironmentDefinition) -> Lock:
        return await steps.resolve(self.site, definition, upgrade=True)

    async def _held(
        self, definition: EnvironmentDefinition, old: Lock, back: tuple[LockedPackage, ...], new: Lock | None
    ) -> Lock:
        """With `back` held at their versions; where that is not possible, because one was yanked, perhaps, without
        those that go back at any age; else `new`."""
        try:
            return await self._fresh(definition, back)
        except ResolveError as error:
            gone = {package.name for package in gone_back(old, await self._without_limit(definition))}
            young = tuple(package for package in back if package.name not in gone)
            try:
                return await self._fresh(definition, young)
            except ResolveError:
                if new is None:
                    raise error from None
                return new

    async def _unbuilt(self, definition: EnvironmentDefinition, old: Lock) -> dict[str, object]:
        """What is known of an environment whose Dockerfile would have to be built to know more: because what goes into
        it is not what it was, or because this workspace has no image of it. Nothing for all others."""
        if not (definition.dockerfile or definition.build_context):
            return {}
        from prefect_environments.core.dockerfiles import NAME, current_name  # noqa: PLC0415  # the docker package

        name = await current_name(self.site, definition)
        if name == old.base.name:
            if await self.site.built_repository.find_manifest(name.removeprefix(f"{NAME}:")) is not None:
                return {}
            return {  # as of a version that was promoted from another workspace
                "reason": "the image of its Dockerfile is not among those that this workspace built, and a report "
                "builds none: whether packages drifted is not known"
            }
        change = Change("~", "base", "base of the Dockerfile, or its context", old.base.name[:23], name[:23])
        reason = "what else changes is known once the Dockerfile is built"
        return {"status": "drifted", "changes": (str(change),), "reason": reason}

    async def _age_of_base(self, definition: EnvironmentDefinition, new: Lock, diff: LockDiff) -> str:
        """How young the base is that a tag names now, where its config says so: a tag itself has no age."""
        if not diff.base or new.base.of_dockerfile:
            return ""
        async with open_base(self.site, definition, lock=new) as base:
            created = _moment(base.config.data.get("created"))
        if created is None:
            return ""
        young = self.age is not None and created > self.age.moment
        return f"the base was made on {created:%Y-%m-%d}{', after the age limit of packages' if young else ''}"


def _moment(text: object) -> datetime | None:
    """A config's `created` (image-spec, RFC 3339), where that is a time at which something was made."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo is not None and found > _REAL_TIMES else None


def _pins_all(definition: EnvironmentDefinition, lock: Lock) -> bool:
    """Whether requirements and constraints name the version of every package that was locked, pip too."""
    pinned = dict(_pins((*definition.requirements, *definition.constraints)))
    return not lock.conda and all(pinned.get(canonicalize_name(p.name)) == p.version for p in lock.packages)


def _pins(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        try:
            asked = Requirement(line.split(" --hash")[0])
        except InvalidRequirement:
            continue
        if asked.marker is not None:  # it may be one that does not hold here
            continue
        for one in asked.specifier:
            if one.operator in ("==", "===") and not one.version.endswith(".*"):
                yield canonicalize_name(asked.name), one.version
