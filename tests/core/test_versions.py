"""Version records, the rule that hands out numbers, and the store in a folder."""

import asyncio
import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core import files, folder_shelf, versions
from prefect_environments.core.errors import NameNotAllowed, VersionError, VersionNotFound
from prefect_environments.core.history import Entry
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.shelf import Book
from prefect_environments.core.versions import FolderVersionStore, VersionRecord, hand_out_number

DIGEST = "sha256:" + "ab" * 32


def draft(name: str = "train", record_hash: str = "r1", workspace: str = "team", **others: Any) -> VersionRecord:
    return VersionRecord(
        workspace=workspace,
        name=name,
        version=0,
        reference=f"registry.example.com/environments/{name}@{DIGEST}",
        record_hash=record_hash,
        **others,
    )


FULL = draft(
    digest=DIGEST,
    definition={"requirements": ["numpy==2.1"], "conda": None, "empty": {}},
    environment_variables={"TOKEN": "secret:t"},
    tags={"owner": "ä ☃"},
    created_by={"tools": {"uv": "0.9"}, "flow_run": "x"},
    packages=3,
    size=10**11,
)


def test_a_record_survives_json() -> None:
    again = VersionRecord.from_json(json.loads(json.dumps(FULL.to_json())))
    assert again == FULL
    assert again.record_digest() == FULL.record_digest()


def test_an_old_record_gets_defaults_and_a_later_ones_keys_are_kept() -> None:
    old = {"workspace": "w", "name": "n", "version": 3, "reference": "r"}
    assert VersionRecord.from_json(old).environment_variables == {}
    later = {**old, "signature": {"by": "x"}}
    assert VersionRecord.from_json(later).extra == {"signature": {"by": "x"}}
    assert VersionRecord.from_json(later).to_json()["signature"] == {"by": "x"}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "JSON object, got list"),
        ({"workspace": "w", "name": "n"}, "lacks version, reference"),
        ({"workspace": "w", "name": "n", "version": "3", "reference": "r"}, "version of the wrong type"),
        ({"workspace": "w", "name": "n", "version": True, "reference": "r"}, "version of the wrong type"),
        ({"workspace": "w", "name": "n", "version": 3, "reference": "r", "tags": []}, "tags of the wrong type"),
        (
            {"workspace": "w", "name": "n", "version": 3, "reference": "r", "schema_version": 2},
            "newer release.*upgrade",
        ),
    ],
)
def test_what_is_no_record_is_refused(document: object, says: str) -> None:
    with pytest.raises(VersionError, match=says):
        VersionRecord.from_json(document)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", max_size=3), json_values, max_size=4))
def test_the_digest_does_not_depend_on_the_order_of_keys(definition: dict[str, Any]) -> None:
    turned = dict(reversed(definition.items()))
    assert draft(definition=definition).record_digest() == draft(definition=turned).record_digest()
    loaded = VersionRecord.from_json(json.loads(versions.canonical(draft(definition=definition).to_json())))
    assert loaded.record_digest() == draft(definition=definition).record_digest()


@pytest.mark.parametrize("value", [float("nan"), object(), "\ud800"])
def test_a_record_that_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(VersionError, match="cannot be written as JSON"):
        draft(definition={"x": value}).record_digest()


class Memory:
    """A shelf in memory; `lose_replies` makes every create report a conflict, as a repeated request does."""

    def __init__(self, *, lose_replies: bool = False) -> None:
        self.records: dict[int, VersionRecord] = {}
        self.entries: dict[int, Entry] = {}
        self.used: dict[int, date] = {}
        self.lose_replies = lose_replies
        self.before_create: Callable[[], None] = lambda: None

    async def create(self, document: VersionRecord | Entry) -> bool:
        self.before_create()
        kept: dict[int, Any] = self.entries if isinstance(document, Entry) else self.records
        number = document.number if isinstance(document, Entry) else document.version
        if number in kept:
            return False
        kept[number] = document
        return not self.lose_replies

    async def read(self, name: str, version: int) -> VersionRecord | None:
        return self.records.get(version)

    async def read_entry(self, name: str, number: int) -> Entry | None:
        return self.entries.get(number)

    async def read_book(self, name: str) -> Book:
        numbers = tuple(sorted(self.records))
        return Book(numbers, self.records.__getitem__, tuple(self.entries.values()), dict(self.used))

    async def read_books(self) -> list[Book]:
        return [await self.read_book("")]

    async def mark_used(self, name: str, version: int, day: date) -> None:
        self.used[version] = day


async def test_a_write_whose_reply_was_lost_is_recognised_by_its_nonce() -> None:
    shelf = Memory(lose_replies=True)
    first = await hand_out_number(shelf, draft(record_hash=""))
    second = await hand_out_number(shelf, draft(record_hash=""))
    assert (first.version, second.version) == (1, 2)
    assert sorted(shelf.records) == [1, 2]


async def test_a_number_lost_to_an_equal_draft_gives_that_version_and_to_another_the_next_number() -> None:
    for theirs, expected in (("mine", 1), ("other", 2)):
        shelf = Memory()

        def overtake(shelf: Memory = shelf, theirs: str = theirs) -> None:
            shelf.records.setdefault(1, replace(draft(record_hash=theirs), version=1, nonce="theirs"))

        shelf.before_create = overtake
        assert (await hand_out_number(shelf, draft(record_hash="mine"))).version == expected


async def test_a_number_lost_to_another_owner_is_refused() -> None:
    shelf = Memory()
    shelf.before_create = lambda: shelf.records.update({1: replace(draft("Train"), version=1)})
    with pytest.raises(NameNotAllowed, match=r"'train'.*'Train'"):
        await hand_out_number(shelf, draft("train"))


@pytest.fixture
def store(tmp_path: Path) -> FolderVersionStore:
    return FolderVersionStore(tmp_path / "versions", "team")


async def test_registering_hands_out_numbers_and_repeats_only_the_newest(store: FolderVersionStore) -> None:
    one = await store.register(draft(record_hash="a", definition_hash="d1"))
    assert await store.register(draft(record_hash="a")) == one
    two = await store.register(draft(record_hash="b", definition_hash="d2"))
    three = await store.register(draft(record_hash="a", definition_hash="d1"))
    assert [r.version for r in await store.versions("train")] == [one.version, two.version, three.version] == [1, 2, 3]
    assert await store.newest("train") == three
    assert await store.find("train", definition_hash="d1") == three
    assert await store.find("train", definition_hash="d9") is None
    assert await store.get("train", 2) == two
    assert one.created.endswith("+00:00")


async def test_versions_sort_as_numbers(store: FolderVersionStore) -> None:
    for number in range(12):
        await store.register(draft(record_hash=str(number)))
    assert [record.version for record in await store.versions("train")] == list(range(1, 13))
    assert (await store.names())[0].version == 12


async def test_a_missing_version_names_what_exists(store: FolderVersionStore) -> None:
    with pytest.raises(VersionNotFound, match="no version of it is registered"):
        await store.get("train", 1)
    await store.register(draft(record_hash="a"))
    await store.register(draft(record_hash="b"))
    for missing in (3, 0, -1):
        with pytest.raises(VersionNotFound, match=f"no version {missing} in workspace 'team'; it has 1, 2"):
            await store.get("train", missing)
    assert await store.versions("other") == []
    assert await store.newest("other") is None


async def test_a_name_with_a_taken_slug_is_refused_naming_its_owner(store: FolderVersionStore) -> None:
    await store.register(draft("My.Env"))
    for call in (store.register(draft("my-env")), store.versions("my_env"), store.get("my-env", 1)):
        with pytest.raises(NameNotAllowed, match=r"'My\.Env'"):
            await call


async def test_a_workspace_with_a_taken_slug_is_refused_naming_the_other(tmp_path: Path) -> None:
    await FolderVersionStore(tmp_path, "team").register(draft())
    other = FolderVersionStore(tmp_path, "Team")
    with pytest.raises(NameNotAllowed, match=r"'Team'.*'team'"):
        await other.register(draft(workspace="Team"))
    assert await other.names() == []


async def test_a_draft_of_another_workspace_or_with_an_illegal_name_is_refused(store: FolderVersionStore) -> None:
    with pytest.raises(VersionError, match="'elsewhere' cannot be registered in 'team'"):
        await store.register(draft(workspace="elsewhere"))
    with pytest.raises(NameNotAllowed):
        await store.register(draft("../outside"))


async def test_names_gives_the_newest_of_every_name(store: FolderVersionStore) -> None:
    for name, record_hash in (("b", "1"), ("A", "1"), ("b", "2")):
        await store.register(draft(name, record_hash))
    assert [(r.name, r.version) for r in await store.names()] == [("A", 1), ("b", 2)]


def file_of(store: FolderVersionStore, tmp_path: Path, number: int) -> Path:
    return tmp_path / "versions" / "train" / f"{number}.json"


async def test_an_altered_record_is_refused_and_named(store: FolderVersionStore, tmp_path: Path) -> None:
    await store.register(FULL)
    path = file_of(store, tmp_path, 1)
    path.write_text(path.read_text().replace("numpy==2.1", "numpy==2.0"))
    with pytest.raises(VersionError, match=r"1\.json was altered"):
        await store.get("train", 1)
    path.write_text("{")
    with pytest.raises(VersionError, match=r"1\.json holds no version"):
        await store.newest("train")


async def test_a_record_moved_to_another_number_is_refused(store: FolderVersionStore, tmp_path: Path) -> None:
    await store.register(FULL)
    file_of(store, tmp_path, 1).rename(file_of(store, tmp_path, 2))
    with pytest.raises(VersionError, match="it was moved here"):
        await store.get("train", 2)


async def test_an_old_file_with_fewer_and_unknown_keys_is_still_valid(
    store: FolderVersionStore, tmp_path: Path
) -> None:
    record = {"workspace": "team", "name": "train", "version": 1, "reference": "r", "colour": "blue"}
    document = {"record": record, "record_digest": digests.of(versions.canonical(record))}
    path = file_of(store, tmp_path, 1)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document, indent=2))
    assert (await store.get("train", 1)).extra == {"colour": "blue"}
    assert (await store.register(draft())).version == 2


async def test_leftovers_of_dead_processes_are_no_versions_and_are_removed(
    store: FolderVersionStore, tmp_path: Path
) -> None:
    folder = tmp_path / "versions" / "train"
    folder.mkdir(parents=True)
    dead = folder / "tmp-dead"
    for leftover in (dead, folder / "notes.json", folder / "01.json", folder / "0.json"):
        leftover.write_text('{"record": {')
    with files.temporary_file(folder) as alive:
        assert await store.versions("train") == []
        assert (await store.register(draft())).version == 1
        assert not dead.exists()
        assert Path(alive.name).exists()


async def test_a_folder_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VersionError, match="file cannot be read or written: Not a directory"):
        await FolderVersionStore(tmp_path / "file", "team").register(draft())


def no_hard_links(source: object, target: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


async def test_without_hard_links_a_file_still_appears_whole(
    store: FolderVersionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_hard_links)
    monkeypatch.setattr(folder_shelf, "_CLAIM_PATIENCE", 0.1)
    assert (await store.register(draft(record_hash="a"))).version == 1
    (tmp_path / "versions" / "train" / "2.claim").touch()  # its writer died before it wrote
    assert (await store.register(draft(record_hash="b"))).version == 3
    assert [record.version for record in await store.versions("train")] == [1, 3]
    assert (await store.register(draft(record_hash="b"))).version == 3


def register_in_folder(folder: Path, record_hash: str, links: bool, barrier: Any, results: Any) -> None:
    """What each racing process does: wait for the others, then register."""
    if not links:
        os.link = no_hard_links  # type: ignore[assignment]
    barrier.wait()
    results.put(asyncio.run(FolderVersionStore(folder, "team").register(draft(record_hash=record_hash))).version)


def race(worker: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[int]:
    """Run `worker` in one process for each of `arguments`, started together; the numbers that they got, sorted."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(arguments)), context.Queue()
    processes = [context.Process(target=worker, args=(*given, barrier, results)) for given in arguments]
    for process in processes:
        process.start()
    numbers = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return numbers


@pytest.mark.parametrize("links", [True, False])
async def test_ten_processes_with_different_drafts_get_ten_numbers(tmp_path: Path, links: bool) -> None:
    assert race(register_in_folder, [(tmp_path, str(n), links) for n in range(10)]) == list(range(1, 11))
    found = await FolderVersionStore(tmp_path, "team").versions("train")
    assert [record.version for record in found] == list(range(1, 11))
    assert {record.record_hash for record in found} == {str(n) for n in range(10)}


@pytest.mark.parametrize("links", [True, False])
async def test_ten_processes_with_one_record_hash_make_one_version(tmp_path: Path, links: bool) -> None:
    assert race(register_in_folder, [(tmp_path, "same", links)] * 10) == [1] * 10
    assert len(await FolderVersionStore(tmp_path, "team").versions("train")) == 1
