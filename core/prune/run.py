"""A whole prune: look, decide, and unless it is a dry run, do it, each step looked at again right before."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.names import slug
from prefect_environments.core.oci.collect import collect
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.prune import beside
from prefect_environments.core.prune.plan import Decision, Shelved, decide
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.removal import check_deletion
from prefect_environments.core.prune.report import PruneReport, PruneRow, RowAction
from prefect_environments.core.prune.stock import (
    Ledger,
    Stored,
    repository_path,
    take_stock,
    with_attachments,
    with_bases,
)
from prefect_environments.core.prune.versions import Scene, VersionPruner, is_ours
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord, VersionStore

Protection = Callable[[], Awaitable[frozenset[str]]]
"""Gives what somebody needs at this moment: digests of images, image hashes, and versions as `name:version`."""

logger = logging.getLogger(__name__)


async def _nothing() -> frozenset[str]:
    return frozenset()


async def prune_environments(
    site: Site,
    policy: PrunePolicy = PrunePolicy(),  # noqa: B008 - immutable
    *,
    dry_run: bool = True,
    protection: Protection = _nothing,
    neighbours: Sequence[VersionStore] = (),
    created_by: Mapping[str, Any] | None = None,
    today: date | None = None,
) -> PruneReport:
    """Remove the versions that `policy` lets go, their images, and what is left over; a dry run only says so.

    `protection` gives digests of images in use, and is asked again before anything goes; `neighbours` are the versions
    of other workspaces that keep images under the same prefix of the same registry. What one version meets (a registry
    that refuses) stops no other, and is told in its row. Raises `VersionNotFound` for names that are none,
    `RegistryError` where the registry allows no deletion, before anything is written, and the errors of the stores.
    """
    day = today or datetime.now(UTC).date()
    shelves = await read_shelves(site.workspace.versions)
    others = [one for store in neighbours for one in await read_shelves(store)]
    foreign = [record for one in others for record in one.living.values()]
    stock = await take_stock(site, [*shelves, *others])
    protected = with_bases(await protection(), stock)
    decisions = decide(shelves, policy, day, protected, _elsewhere(site, shelves, stock))
    gone, sizes = _simulate(site, shelves, decisions, foreign, stock)
    going = {(one.record.name, one.record.version) for one in decisions if one.goes}
    kept = [r for one in shelves for r in one.records.values() if (r.name, r.version) not in going]
    stores = site.workspace.versions, *neighbours
    rest = beside.Beside(site, policy, day, _without(stock, gone), [*kept, *foreign], stores)
    left = await rest.look(protected) if policy.leftovers and not policy.names else beside.NOTHING
    if dry_run:
        rows = [_row(one, "prune" if one.goes else "keep", size) for one, size in zip(decisions, sizes, strict=True)]
        return PruneReport(dry_run=True, rows=(*rows, *left.rows(Ledger(_without(stock, gone)))))
    if going or left.due:
        await check_deletion(site.store.repository(f"{site.workspace.repository_prefix}-layers"))
    scene = Scene(site, policy, day, protection, tuple(neighbours), dict(created_by or {}), stock)
    rows = [await _carry_out(scene, one) for one in decisions]
    rows += await rest.remove(left, scene.ledger, protection)
    freed = 0
    try:
        freed = await _collect(site, foreign)
    except PrefectEnvironmentsError as error:
        rows.append(PruneRow(name="the folder's files", action="failed", reason=str(error)))
    return PruneReport(dry_run=False, rows=tuple(rows), freed=freed)


async def _collect(site: Site, foreign: Sequence[VersionRecord]) -> int:
    if not isinstance(site.store, Layout):
        return 0
    living = [record for one in await read_shelves(site.workspace.versions) for record in one.living.values()]
    keep = [record.digest for record in (*living, *foreign) if record.digest]
    return await asyncio.to_thread(collect, site.store, keep=keep)


async def read_shelves(store: VersionStore) -> list[Shelved]:
    """Every environment of a workspace with its records. Raises `VersionError` for one that was altered."""
    return [Shelved.of(name, book) for name, book in sorted((await store.books()).items())]


async def _carry_out(scene: Scene, decision: Decision) -> PruneRow:
    if not decision.goes:
        return _row(decision, "keep")
    record = decision.record
    try:
        return await VersionPruner(scene, decision).prune()
    except TimeoutError:
        why = "the registry took too long; the next run goes on with it"
    except PrefectEnvironmentsError as error:
        why = str(error)
    logger.warning("%s version %d is not pruned: %s", record.name, record.version, why)
    return PruneRow(name=record.name, version=record.version, action="failed", reason=why)


def _elsewhere(site: Site, shelves: Sequence[Shelved], stock: Sequence[Stored]) -> dict[tuple[str, int], str]:
    """Why a version stays whose image was put into other repositories than the workspace's of today: it would be left
    there for ever, and the version could not be used any more."""
    there = {one.key for one in stock}
    found = {}
    for shelved in shelves:
        here, path = site.repository(shelved.name).name, repository_path(site, shelved.name)
        for number, record in shelved.living.items():
            place = record.reference.rpartition("@")[0]
            if is_ours(record) and place != here and f"{path}@{record.digest}" not in there:
                found[shelved.name, number] = f"its image was put into {place}, which the workspace does not have today"
    return found


def _simulate(
    site: Site,
    shelves: Sequence[Shelved],
    decisions: Sequence[Decision],
    foreign: Sequence[VersionRecord],
    stock: Sequence[Stored],
) -> tuple[set[str], list[int]]:
    """The keys of the manifests that go with the decisions, and the bytes that each decision frees."""
    ledger, gone, sizes = Ledger(stock), set[str](), list[int]()
    elsewhere = {(slug(record.name), record.digest) for record in foreign}
    left = {(one.name, number): record.digest for one in shelves for number, record in one.records.items()}
    for decision in decisions:
        record = decision.record
        if decision.goes:
            del left[record.name, record.version]
        sharing = any(name == record.name and digest == record.digest for (name, _), digest in left.items())
        if not decision.goes or sharing or (slug(record.name), record.digest) in elsewhere:
            sizes.append(0)
            continue
        found = with_attachments(stock, repository_path(site, record.name), record.digest)
        found = [one for one in found if one.digest != record.digest or is_ours(record)]
        if isinstance(site.store, Layout) and record.digest in {*left.values(), *(one.digest for one in foreign)}:
            found = [one for one in found if one.digest == record.digest]  # see `VersionPruner`
        gone |= {one.key for one in found}
        sizes.append(ledger.remove(found))
    return gone, sizes


def _without(stock: Sequence[Stored], gone: set[str]) -> list[Stored]:
    return [one for one in stock if one.key not in gone]


def _row(decision: Decision, action: RowAction, size: int = 0) -> PruneRow:
    record = decision.record
    return PruneRow(name=record.name, version=record.version, action=action, reason=decision.reason, bytes=size)
