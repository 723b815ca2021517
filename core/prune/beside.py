"""Leftovers beside the environments: job images and their runtimes, package layers, Dockerfile images, locks."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from prefect_environments.core.errors import NotFound, PrefectEnvironmentsError
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.prune import removal
from prefect_environments.core.prune.leftovers import is_due, read_seen, sighted, unneeded, write_seen
from prefect_environments.core.prune.plan import Shelved
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.report import PruneRow, RowAction
from prefect_environments.core.prune.stock import Kind, Ledger, Stored, stored
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord, VersionStore

if TYPE_CHECKING:
    from prefect_environments.core.prune.run import Protection

_NAMES: dict[Kind, str] = {
    "layer": "package layers",
    "job": "job images",
    "runtime": "job runtimes",
    "build": "Dockerfile images",
    "lock": "locks",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Left:
    """What nothing needs: what may go now, and what waits, as it has not been unneeded for long."""

    due: tuple[Stored, ...] = ()
    waiting: tuple[Stored, ...] = ()
    days: int = 0
    seen: dict[str, date] = field(default_factory=dict)

    def rows(self, ledger: Ledger) -> list[PruneRow]:
        """What would go, a row for each kind."""
        return [*_rows(self.due, "prune", "that nothing needs", ledger), *self.waiting_rows()]

    def waiting_rows(self) -> list[PruneRow]:
        """What stays for now."""
        return _rows(self.waiting, "keep", f"unneeded, known for less than {self.days} days")


NOTHING = Left()


@dataclass(frozen=True, slots=True)
class Beside:
    """`stock` and `kept` are what there is once the versions that go are gone, `stores` what has the versions."""

    site: Site
    policy: PrunePolicy
    today: date
    stock: Sequence[Stored]
    kept: Sequence[VersionRecord]
    stores: Sequence[VersionStore]

    @property
    def _memory(self) -> Repository:
        return self.site.store.repository(f"{self.site.workspace.repository_prefix}-layers")

    async def look(self, protected: frozenset[str]) -> Left:
        """What nothing needs, and since when."""
        found = unneeded(self.stock, self.kept, protected)
        seen, days = sighted(await read_seen(self._memory), found, self.today), self.policy.unused_days
        due = [one for one in found if is_due(seen[one.key], self.today, days)]
        waiting = [one for one in found if one not in due]
        return Left(tuple(due), tuple(waiting), days, seen)

    async def remove(self, left: Left, ledger: Ledger, protection: "Protection") -> list[PruneRow]:
        """Delete what is due, put back what became needed meanwhile, and note the rest for later runs."""
        if left is NOTHING:
            return []
        gone: list[tuple[Stored, removal.Remembered]] = []
        failed: dict[Kind, str] = {}
        for one in left.due:
            if one.kind in failed:
                continue  # the registry refused the first: all others wait for the next run
            repository = self.site.store.repository(one.path)
            try:
                known = await removal.remember(repository, one.digest, one.tags)
                await removal.take_away(self.site, repository, known)
            except PrefectEnvironmentsError as error:
                logger.warning("%s of %s is not removed: %s", one.digest, one.path, error)
                failed[one.kind] = str(error)
            else:
                gone.append((one, known))
        again: set[str] = set()
        unsaid: list[PruneRow] = []
        try:
            again = await self._needed_again([one for one, _ in gone], protection)
            await self._put_back([(one, known) for one, known in gone if one.key in again])
            done = {one.key for one, _ in gone if one.key not in again}
            await write_seen(self._memory, {key: day for key, day in left.seen.items() if key not in done})
        except PrefectEnvironmentsError as error:  # what was removed is told all the same
            unsaid.append(PruneRow(name="leftovers", action="failed", reason=str(error)))
        removed = [one for one, _ in gone if one.key not in again]
        rows = _rows(removed, "pruned", "that nothing needed", ledger)
        rows += [PruneRow(name=_NAMES[kind], action="failed", reason=why) for kind, why in failed.items()]
        return [*rows, *unsaid, *left.waiting_rows()]

    async def _put_back(self, needed: Sequence[tuple[Stored, removal.Remembered]]) -> None:
        for one, known in needed:
            logger.info("%s became needed again meanwhile", one.key)
            await removal.put_back(self.site, self.site.store.repository(one.path), known)

    async def _needed_again(self, gone: Sequence[Stored], protection: "Protection") -> set[str]:
        """What versions that were registered, and flow runs that were made since, need."""
        if not gone:
            return set()
        known = {(record.workspace, record.name, record.version) for record in self.kept}
        books = [pair for store in self.stores for pair in (await store.books()).items()]
        records = [r for name, book in books for r in Shelved.of(name, book).living.values()]
        images = []
        for record in records:
            if (record.workspace, record.name, record.version) not in known:
                repository = self.site.repository(record.name)
                try:
                    images.append(stored(repository.path, await repository.get_manifest(record.digest), "image"))
                except NotFound:
                    continue
        return {one.key for one in gone} - {one.key for one in unneeded([*gone, *images], records, await protection())}


def _rows(found: Sequence[Stored], action: RowAction, why: str, ledger: Ledger | None = None) -> list[PruneRow]:
    counts = Counter(one.kind for one in found)
    size: Callable[[Kind], int] = lambda kind: ledger.remove([x for x in found if x.kind == kind]) if ledger else 0  # noqa: E731
    return [
        PruneRow(name=_NAMES[kind], action=action, reason=f"{counts[kind]} {why}", bytes=size(kind))
        for kind in _NAMES
        if counts[kind]
    ]
