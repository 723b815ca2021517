"""The versions of a fleet: listed once, marked as used together, and still the store's own in all else."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from prefect_environments.core.errors import NameNotAllowed, VersionNotFound, VersionPruned
from prefect_environments.core.fleet.versions import ListedVersions
from prefect_environments.core.folder_shelf import FolderShelf
from prefect_environments.core.history import Entry
from prefect_environments.core.shelf import Book
from prefect_environments.core.versions import ShelvedVersions, VersionRecord

TODAY = datetime.now(UTC).date()


class CountedShelf(FolderShelf):
    """A shelf that counts what is asked of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: Counter[str] = Counter()

    async def read_book(self, name: str) -> Book:
        self.asked["book"] += 1
        return await super().read_book(name)

    async def read_books(self) -> list[Book]:
        self.asked["books"] += 1
        return await super().read_books()

    async def mark_used(self, name: str, version: int, day: date) -> None:
        self.asked["mark"] += 1
        await super().mark_used(name, version, day)


@pytest.fixture
def shelf(tmp_path: Path) -> CountedShelf:
    return CountedShelf(tmp_path / "versions")


@pytest.fixture
def store(shelf: CountedShelf) -> ShelvedVersions:
    return ShelvedVersions(shelf, "team")


def draft(name: str, content: str = "1") -> VersionRecord:
    return VersionRecord(
        workspace="team",
        name=name,
        version=0,
        reference=f"registry.example.com/{name.lower()}@sha256:{content * 64}",
        record_hash=f"sha256:{content * 64}",
        definition_hash=f"definition-{content}",
        created="2020-01-01T00:00:00+00:00",
    )


async def fill(store: ShelvedVersions, count: int) -> list[VersionRecord]:
    return [await store.register(draft(f"env-{number}")) for number in range(count)]


async def test_reading_many_asks_the_store_once(store: ShelvedVersions, shelf: CountedShelf) -> None:
    records = await fill(store, 20)
    second = await store.register(draft("env-0", "2"))
    shelf.asked.clear()
    listed = await ListedVersions.of(store)
    assert [await listed.newest(one.name) for one in records] == [second, *records[1:]]
    assert await listed.versions("env-0") == [records[0], second]
    assert await listed.find("env-0", definition_hash="definition-1") == records[0]
    assert await listed.get("env-0", 1) == records[0]
    assert await listed.newest("other") is None
    assert shelf.asked == {"books": 1}


async def test_many_are_marked_with_one_listing_more(store: ShelvedVersions, shelf: CountedShelf) -> None:
    """One entry for each, then one listing; after that, and in another run of the day, nothing is asked."""
    records = await fill(store, 20)
    listed = await ListedVersions.of(store)
    shelf.asked.clear()
    await listed.mark_all_used(records)
    assert [await listed.mark_used(one) for one in records] == [False] * 20
    assert shelf.asked == {"mark": 20, "books": 1}
    assert {(await store.book(one.name)).used[1] for one in records} == {TODAY}
    again = await ListedVersions.of(store)
    shelf.asked.clear()
    await again.mark_all_used(records)
    assert [await again.mark_used(one) for one in records] == [False] * 20
    assert shelf.asked == {}


async def test_what_is_pruned_while_it_is_marked_is_not_relied_on(store: ShelvedVersions, shelf: CountedShelf) -> None:
    """Who prunes wrote before the mark, and so does not see it: the listing after the mark shows what was written."""
    lost, kept = await fill(store, 2)
    listed = await ListedVersions.of(store)
    await store.append(lost.name, lambda _: Entry("team", lost.name, "pruning", version=1))
    await listed.mark_all_used([lost, kept])
    assert await listed.mark_used(kept) is False
    assert await listed.newest(lost.name) is None
    with pytest.raises(VersionPruned):
        await listed.mark_used(lost)


async def test_what_was_registered_since_is_known(store: ShelvedVersions) -> None:
    (first,) = await fill(store, 1)
    listed = await ListedVersions.of(store)
    second, new = await listed.register(draft("env-0", "2")), await listed.register(draft("new"))
    assert (second.version, await listed.register(draft("env-0", "2"))) == (2, second)
    assert (await listed.newest("env-0"), await listed.newest("new")) == (second, new)
    assert await listed.versions("env-0") == [first, second]
    assert await listed.get("env-0", 2) == second
    assert await listed.find("env-0", definition_hash="definition-2") == second


async def test_a_number_that_another_took_meanwhile_is_seen(store: ShelvedVersions) -> None:
    await fill(store, 1)
    listed = await ListedVersions.of(store)
    theirs = await store.register(draft("env-0", "2"))
    assert (await listed.register(draft("env-0", "3"))).version == 3
    assert await listed.get("env-0", 2) == theirs


async def test_a_name_that_shares_a_slug_is_told_by_the_store(store: ShelvedVersions) -> None:
    await fill(store, 1)
    listed = await ListedVersions.of(store)
    with pytest.raises(NameNotAllowed, match="would share a repository"):
        await listed.newest("ENV-0")
    with pytest.raises(VersionNotFound, match="has no version 7"):
        await listed.get("env-0", 7)


async def test_a_mark_of_yesterday_is_renewed(store: ShelvedVersions, shelf: CountedShelf) -> None:
    (record,) = await fill(store, 1)
    await shelf.mark_used(record.name, 1, date(2020, 2, 3))
    listed = await ListedVersions.of(store)
    await listed.mark_all_used([record])
    assert (await store.book(record.name)).used == {1: TODAY}
    fresh = replace(record, name="fresh", created="", version=0)
    assert await listed.mark_used(await listed.register(fresh)) is False
