"""Which versions stay and which go, as a pure function of what is stored: nothing here asks anybody."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from types import MappingProxyType
from typing import Literal

from prefect_environments.core.errors import VersionNotFound
from prefect_environments.core.history import Life
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.shelf import Book
from prefect_environments.core.version_record import VersionRecord, day_of

Action = Literal["keep", "prune", "finish"]


@dataclass(frozen=True, slots=True)
class Shelved:
    """One environment: its versions that are not pruned yet, by number, and what happened to them."""

    name: str
    records: Mapping[int, VersionRecord]
    life: Life = field(default_factory=Life)
    used: Mapping[int, date] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, book: Book) -> "Shelved":
        """Reads every record that is left. Raises `VersionError` for one that was altered."""
        life = book.life
        left = [number for number in book.numbers if number not in life.pruned]
        return cls(name, {number: book.load(number) for number in left}, life, book.used)

    @property
    def living(self) -> dict[int, VersionRecord]:
        """The versions that anybody may use, rising."""
        return {n: record for n, record in sorted(self.records.items()) if n not in self.life.gone}

    def last_used(self, version: int) -> date | None:
        """The day when a version was registered or last used; `None` where no readable day is stored."""
        days = [self.used.get(version), day_of(self.records[version].created)]
        return max((day for day in days if day is not None), default=None)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to happen to a version, and why. `finish` is for one that an interrupted run left half pruned."""

    record: VersionRecord
    action: Action
    reason: str

    @property
    def goes(self) -> bool:
        return self.action != "keep"


def decide(
    shelves: Sequence[Shelved],
    policy: PrunePolicy,
    today: date,
    protected: Collection[str] = (),
    held: Mapping[tuple[str, int], str] = MappingProxyType({}),
) -> list[Decision]:
    """A decision for each version of the environments that the policy names.

    `shelves` are all environments, because one may extend another; `protected` are what somebody needs, as digests of
    images or as `name:version`; `held` are reasons why versions stay, by name and number. Raises `VersionNotFound` for
    a name that is none.
    """
    unknown = sorted(set(policy.names) - {shelved.name for shelved in shelves})
    if unknown:
        raise VersionNotFound(f"nothing to prune: {', '.join(unknown)} is not registered; correct the names")
    found = {
        (shelved.name, number): decision
        for shelved in shelves
        for number, decision in _decided(shelved, policy, today, protected, held).items()
    }
    wanted = {shelved.name for shelved in shelves if not policy.names or shelved.name in policy.names}
    for key, decision in found.items():
        if key[0] not in wanted and decision.goes:
            found[key] = replace(decision, action="keep", reason="not asked for")
    _keep_extended(found)
    return [decision for (name, _), decision in sorted(found.items()) if name in wanted]


def needed(shelved: Shelved, version: int, policy: PrunePolicy, today: date, protected: Collection[str]) -> str:
    """Why a version must stay by its own rules; empty where it may go. Its place among the newest is not looked at."""
    record, labels = shelved.records[version], shelved.life.labels_of(version)
    if labels:
        return f"labelled {', '.join(labels)}"
    if {record.digest or None, f"{record.name}:{version}"}.intersection(protected):
        return "a flow run or a deployment names it"
    registered, used = day_of(record.created), shelved.last_used(version)
    if registered is None or used is None:
        return "the day of its registration cannot be read"
    if registered > today - timedelta(days=policy.older_than_days):
        return f"registered on {registered}, less than {policy.older_than_days} days ago"
    if used > today - timedelta(days=policy.unused_days):
        return f"used on {used}, less than {policy.unused_days} days ago"
    return ""


def extended(records: Iterable[VersionRecord]) -> dict[tuple[str, int], str]:
    """Name and number of each version that one of `records` extends, with one that does (`name:version`)."""
    found = {}
    for record in records:
        name, _, version = str(record.definition.get("extends") or "").rpartition(":")
        if name and version.isdecimal():
            found[name, int(version)] = f"{record.name}:{record.version}"
    return found


def _decided(
    shelved: Shelved,
    policy: PrunePolicy,
    today: date,
    protected: Collection[str],
    held: Mapping[tuple[str, int], str],
) -> dict[int, Decision]:
    count = policy.keep_archived if shelved.life.archived else policy.keep
    living = shelved.living
    newest = set(list(living)[-count:] if count else [])
    decisions = {}
    for number, record in living.items():
        why = f"among the newest {count}" if number in newest else needed(shelved, number, policy, today, protected)
        why = why or held.get((shelved.name, number), "")
        used = shelved.last_used(number)
        decisions[number] = Decision(record, "keep" if why else "prune", why or f"not used since {used}")
    for number in sorted(shelved.life.pruning & shelved.records.keys()):
        decisions[number] = Decision(shelved.records[number], "finish", "an earlier run was interrupted")
    return decisions


def _keep_extended(found: dict[tuple[str, int], Decision]) -> None:
    """Keep what is extended by what is kept, which may keep more."""
    while True:
        by = extended(decision.record for decision in found.values() if not decision.goes)
        more = [key for key in by if key in found and found[key].action == "prune"]
        if not more:
            return
        for key in more:
            found[key] = replace(found[key], action="keep", reason=f"{by[key]} extends it")
