"""The history of environments: who writes at once, what holds now, and what pruned versions leave behind."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core import history
from prefect_environments.core.errors import NameNotAllowed, VersionError, VersionNotFound, VersionPruned
from prefect_environments.core.history import Entry, check_label, checked_entry, life
from prefect_environments.core.shelf import Book
from prefect_environments.core.versions import FolderVersionStore, VersionRecord
from tests.core.test_versions import draft


def entry(kind: Any, version: int = 0, label: str = "", number: int = 0) -> Entry:
    return Entry(workspace="team", name="train", kind=kind, version=version, label=label, number=number)


def numbered(*entries: Entry) -> list[Entry]:
    return [replace(one, number=number) for number, one in enumerate(entries, 1)]


@pytest.fixture
async def store(tmp_path: Path) -> FolderVersionStore:
    """A store with three versions of `train`."""
    store = FolderVersionStore(tmp_path / "versions", "team")
    for number in range(3):
        await store.register(draft(record_hash=str(number)))
    return store


async def prune(store: FolderVersionStore, version: int) -> None:
    await store.append("train", lambda _book: entry("pruning", version))
    await store.append("train", lambda _book: entry("pruned", version))


def test_what_holds_now_is_read_from_the_entries_in_order() -> None:
    told = numbered(
        entry("labelled", 1, "production"),
        entry("labelled", 2, "staging"),
        entry("labelled", 3, "production"),
        entry("labelled", 0, "staging"),
        entry("pruning", 1),
        entry("pruning", 2),
        entry("spared", 2),
        entry("pruned", 1),
        entry("archived"),
    )
    now = life(reversed(told))
    assert now.labels == {"production": 3} and now.labels_of(3) == ["production"]
    assert now.gone == {1} and now.archived and now.last == 9
    assert life([*told, entry("restored", number=10)]).archived is False
    assert life(told[:6]).gone == {1, 2}  # what is half pruned is of no use either


@pytest.mark.parametrize(
    "label", ["", "7up", "a b", "x" * 61, "latest", "Latest", "v3", "sha256-ab", "a" * 64, None, "ä"]
)
def test_what_cannot_be_a_label_is_refused(label: object) -> None:
    with pytest.raises(NameNotAllowed, match="label"):
        check_label(label)


@given(st.from_regex(r"[A-Za-z_][A-Za-z0-9._-]{0,40}", fullmatch=True))
def test_a_label_that_is_allowed_may_be_a_tag(label: str) -> None:
    try:
        assert check_label(label) == label
    except NameNotAllowed:
        assert history._TAKEN.fullmatch(label) or label.lower() == "latest"


def test_an_altered_entry_and_one_of_a_later_release_are_refused() -> None:
    document = json.loads(json.dumps(entry("archived").to_json()))
    assert checked_entry(document, entry("archived").digest(), "here") == entry("archived")
    with pytest.raises(VersionError, match="here was altered"):
        checked_entry({**document, "label": "x"}, entry("archived").digest(), "here")
    later = replace(entry("archived"), schema_version=2)
    with pytest.raises(VersionError, match="newer release"):
        checked_entry(later.to_json(), later.digest(), "here")
    with pytest.raises(VersionError, match="here holds no entry"):
        checked_entry([], None, "here")


async def test_who_writes_at_the_same_time_decides_again_with_what_the_other_wrote(store: FolderVersionStore) -> None:
    """Twenty writers each add one to a number that only the history holds: no addition is lost."""

    def count(book: Book) -> Entry:
        return replace(entry("labelled", 1, "counter"), details={"count": len(book.entries) + 1})

    written = await asyncio.gather(*(store.append("train", count) for _ in range(20)))
    book = await store.book("train")
    assert [one.details["count"] for one in book.entries] == list(range(1, 21))
    assert sorted(one.number for one in written if one) == list(range(1, 21))


async def test_nothing_is_written_where_nothing_is_decided_and_for_names_that_are_not_there(
    store: FolderVersionStore,
) -> None:
    assert await store.append("train", lambda _book: None) is None
    assert (await store.book("train")).entries == ()
    with pytest.raises(VersionNotFound, match="'other' is not registered"):
        await store.append("other", lambda _book: entry("archived"))


async def test_a_pruned_version_is_a_tombstone_and_its_number_is_not_issued_again(store: FolderVersionStore) -> None:
    await prune(store, 3)
    assert [record.version for record in await store.versions("train")] == [1, 2]
    assert [record.version for record in await store.versions("train", pruned=True)] == [1, 2, 3]
    newest = await store.newest("train")
    assert newest is not None and newest.version == 2
    with pytest.raises(VersionPruned, match=r"version 3 of 'train'.*was pruned on 20.*registers a new version"):
        await store.get("train", 3)
    again = await store.register(draft(record_hash="2"))  # the very same content as version 3
    assert again.version == 4
    with pytest.raises(VersionNotFound, match="it has 1, 2, 4"):
        await store.get("train", 9)


async def test_an_archived_environment_is_not_listed_and_can_still_be_used(store: FolderVersionStore) -> None:
    await store.append("train", lambda _book: entry("archived"))
    assert await store.names() == []
    assert [record.name for record in await store.names(archived=True)] == ["train"]
    assert (await store.get("train", 2)).version == 2
    assert list(await store.books()) == ["train"]
    await store.append("train", lambda _book: entry("restored"))
    assert [record.version for record in await store.names()] == [3]


async def test_the_day_of_use_is_noted_once_a_day_and_never_for_what_is_pruned(tmp_path: Path) -> None:
    store, today = FolderVersionStore(tmp_path, "team"), datetime.now(UTC).date()
    old = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    first, fresh = await store.register(draft(created=old)), await store.register(draft(record_hash="2"))
    assert await store.mark_used(fresh) is False  # registered today
    assert await store.mark_used(first) is True
    assert await store.mark_used(first) is False
    assert (await store.book("train")).used == {1: today}
    await prune(store, 1)
    with pytest.raises(VersionPruned):
        await store.mark_used(first)


async def test_who_marks_a_version_while_it_is_being_pruned_learns_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who prunes writes first and looks at the marks then; the user writes the mark and looks then."""
    store = FolderVersionStore(tmp_path, "team")
    record = await store.register(draft(created="2020-01-01T00:00:00+00:00"))
    mark = store._shelf.mark_used

    async def late(name: str, version: int, day: date) -> None:
        await store.append("train", lambda _book: entry("pruning", 1))
        await mark(name, version, day)

    monkeypatch.setattr(store._shelf, "mark_used", late)
    with pytest.raises(VersionPruned, match="is being pruned"):
        await store.mark_used(record)
    assert 1 in (await store.book("train")).used  # which the one who prunes will see


def test_old_records_without_the_later_fields_are_read() -> None:
    document = {**draft().to_json(), "version": 1}
    del document["origin"]
    assert VersionRecord.from_json(document).origin == {}
