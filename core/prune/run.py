"""A whole prune: look, decide, and unless it is a dry run, do it, each step looked at again right before."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.names import slug
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.prune import beside
from prefect_environments.core.prune.plan import Decision, Shelved, decide
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.removal import check_deletion
from prefect_environments.core.prune.report import PruneReport, PruneRow
from prefect_environments.core.prune.stock import Ledger, Stored, repository_path, take_stock, with_attachments
from prefect_environments.core.prune.versions import Scene, VersionPruner, is_ours
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord, VersionStore

Protection = Callable[[], Awaitable[frozenset[str]]]
"""Gives the digests of images that somebody needs at this moment."""

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
    foreign = [record for store in neighbours for one in await read_shelves(store) for record in one.living.values()]
    stock = await take_stock(site, shelves)
    protected = with_bases(await protection(), stock)
    decisions = decide(shelves, policy, day, protected)
    gone, sizes = _simulate(site, shelves, decisions, foreign, stock)
    going = {(one.record.name, one.record.version) for one in decisions if one.goes}
    kept = [r for one in shelves for r in one.records.values() if (r.name, r.version) not in going]
    rest = beside.Beside(site, policy, day, [one for one in stock if one.key not in gone], [*kept, *foreign])
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
    if isinstance(site.store, Layout):
        living = [
            record.digest for one in await read_shelves(site.workspace.versions) for record in one.living.values()
        ]
        keep = [digest for digest in (*living, *(record.digest for record in foreign)) if digest]
        freed = await asyncio.to_thread(site.store.collect, keep=keep)
    return PruneReport(dry_run=False, rows=tuple(rows), freed=freed)


async def read_shelves(store: VersionStore) -> list[Shelved]:
    """Every environment of a workspace with its records. Raises `VersionError` for one that was altered."""
    return [Shelved.of(name, book) for name, book in sorted((await store.books()).items())]


def with_bases(protected: frozenset[str], stock: Sequence[Stored]) -> frozenset[str]:
    """Also the environments' images under the job images that are protected."""
    return protected | {one.base for one in stock if one.kind == "job" and one.digest in protected and one.base}


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
        gone |= {one.key for one in found}
        sizes.append(ledger.remove(found))
    return gone, sizes


def _without(stock: Sequence[Stored], gone: set[str]) -> list[Stored]:
    return [one for one in stock if one.key not in gone]


def _row(decision: Decision, action: Any, size: int = 0) -> PruneRow:
    record = decision.record
    return PruneRow(name=record.name, version=record.version, action=action, reason=decision.reason, bytes=size)
