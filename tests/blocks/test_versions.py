"""Versions on a real Prefect API, with processes that race for numbers."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_environments.blocks import EnvironmentHistory, EnvironmentVersion, versions
from prefect_environments.blocks.versions import PrefectVersionStore
from prefect_environments.core.errors import NameNotAllowed, VersionError, VersionNotFound, VersionPruned
from prefect_environments.core.history import Entry
from prefect_environments.core.names import document_name, history_name
from prefect_environments.core.shelf import Book
from prefect_environments.core.versions import VersionRecord


def draft(workspace: str, name: str = "train", record_hash: str = "r1", **others: Any) -> VersionRecord:
    reference = f"registry.example.com/environments/train@sha256:{'ab' * 32}"
    return VersionRecord(workspace, name, 0, reference, record_hash=record_hash, **others)


@pytest.fixture
async def store(prefect_server: str) -> AsyncIterator[PrefectVersionStore]:
    yield PrefectVersionStore(f"W{uuid4().hex[:12]}")


async def test_a_record_comes_back_as_it_was_written(store: PrefectVersionStore) -> None:
    full = draft(
        store.workspace,
        definition={"requirements": ["numpy"], "conda": None, "empty": {}, "list": [], "ref": {"$ref": "x"}},
        environment_variables={"TOKEN": "secret:t", "TEMPLATE": "{{ x }}"},
        tags={"owner": "ä ☃"},
        size=10**11,
        extra={"later": {"a": {}}},
    )
    written = await store.register(full)
    assert await store.get("train", 1) == written
    assert written.definition == full.definition
    block: EnvironmentVersion = await EnvironmentVersion.aload(document_name(store.workspace, "train", 1))
    assert block.to_record() == written


async def test_registering_hands_out_numbers_and_repeats_only_the_newest(store: PrefectVersionStore) -> None:
    one = await store.register(draft(store.workspace, record_hash="a", definition_hash="d1"))
    assert await store.register(draft(store.workspace, record_hash="a")) == one
    await store.register(draft(store.workspace, record_hash="b"))
    three = await store.register(draft(store.workspace, record_hash="a", definition_hash="d1"))
    assert [record.version for record in await store.versions("train")] == [1, 2, 3]
    assert await store.newest("train") == three
    assert await store.find("train", definition_hash="d1") == three
    with pytest.raises(VersionNotFound, match="it has 1, 2, 3"):
        await store.get("train", 4)


async def test_lists_go_over_pages_and_sort_as_numbers(
    store: PrefectVersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "PAGE", 4)
    for number in range(1, 12):
        await store.register(draft(store.workspace, record_hash=str(number)))
    await store.register(draft(store.workspace, "train-2"))
    await store.register(draft(store.workspace, "Evaluate"))
    assert [record.version for record in await store.versions("train")] == list(range(1, 12))
    assert [(r.name, r.version) for r in await store.names()] == [("Evaluate", 1), ("train", 11), ("train-2", 1)]


async def test_a_workspace_whose_name_ends_like_another_sees_only_its_own(prefect_server: str) -> None:
    short = f"w{uuid4().hex[:12]}"
    await PrefectVersionStore(f"big-{short}").register(draft(f"big-{short}"))
    assert await PrefectVersionStore(short).names() == []
    assert await PrefectVersionStore(short).versions("train") == []


async def test_long_names_are_listed_as_well(prefect_server: str) -> None:
    long = PrefectVersionStore(f"W{uuid4().hex}{'w' * 27}")
    for name, record_hash in (("n" * 127 + "a", "1"), ("n" * 127 + "b", "1"), ("n" * 127 + "b", "2")):
        await long.register(draft(long.workspace, name, record_hash))
    assert [record.version for record in await long.versions("n" * 127 + "b")] == [1, 2]
    assert [(r.name[-1], r.version) for r in await long.names()] == [("a", 1), ("b", 2)]


async def test_names_and_workspaces_with_a_taken_slug_are_refused(store: PrefectVersionStore) -> None:
    await store.register(draft(store.workspace, "My.Env"))
    with pytest.raises(NameNotAllowed, match=r"'my-env'.*'My\.Env'"):
        await store.register(draft(store.workspace, "my-env"))
    other = PrefectVersionStore(store.workspace.lower())
    with pytest.raises(NameNotAllowed, match=store.workspace):
        await other.register(draft(other.workspace, "My.Env"))
    assert await other.names() == []


async def test_an_altered_document_is_refused_and_named(store: PrefectVersionStore) -> None:
    await store.register(draft(store.workspace))
    name = document_name(store.workspace, "train", 1)
    block: EnvironmentVersion = await EnvironmentVersion.aload(name)
    block.record["reference"] = "registry.example.com/other"
    await block.asave(name, overwrite=True)
    for call in (store.get("train", 1), store.newest("train"), store.names()):
        with pytest.raises(VersionError, match=f"environment-version/{name} was altered"):
            await call


async def test_a_repeated_request_after_a_lost_reply_is_recognised(
    store: PrefectVersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every document is sent twice, as the client does when the first answer is lost."""
    create = PrefectClient.create_block_document

    async def twice(client: Any, document: Any, **others: Any) -> Any:
        await create(client, document, **others)
        return await create(client, document, **others)

    monkeypatch.setattr(PrefectClient, "create_block_document", twice)
    numbers = [(await store.register(draft(store.workspace, record_hash=text))).version for text in ("a", "b", "c")]
    assert numbers == [1, 2, 3]
    assert len(await store.versions("train")) == 3


async def test_an_api_that_is_not_there_is_an_error_that_says_so() -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(VersionError, match=r"http://127\.0\.0\.1:9/api cannot be reached.*PREFECT_API_URL"),
    ):
        await PrefectVersionStore("team").versions("train")


def register_on_api(url: str, workspace: str, record_hash: str, barrier: Any, results: Any) -> None:
    """What each racing process does: wait for the others, then register."""
    with temporary_settings({PREFECT_API_URL: url}):
        barrier.wait()
        store = PrefectVersionStore(workspace)
        results.put(asyncio.run(store.register(draft(workspace, record_hash=record_hash))).version)


def race(url: str, workspace: str, hashes: list[str]) -> list[int]:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(hashes)), context.Queue()
    processes = [
        context.Process(target=register_on_api, args=(url, workspace, text, barrier, results)) for text in hashes
    ]
    for process in processes:
        process.start()
    numbers = sorted(results.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()
    return numbers


async def test_ten_processes_with_different_drafts_get_ten_numbers(store: PrefectVersionStore) -> None:
    async with get_client() as client:
        url = str(client.api_url)
    assert race(url, store.workspace, [str(n) for n in range(10)]) == list(range(1, 11))
    found = await store.versions("train")
    assert {record.record_hash for record in found} == {str(n) for n in range(10)}


async def test_ten_processes_with_one_record_hash_make_one_version(store: PrefectVersionStore) -> None:
    async with get_client() as client:
        url = str(client.api_url)
    assert race(url, store.workspace, ["same"] * 10) == [1] * 10
    assert len(await store.versions("train")) == 1


def told(store: PrefectVersionStore, kind: Any, version: int = 0, **others: Any) -> Entry:
    return Entry(workspace=store.workspace, name="train", kind=kind, version=version, **others)


async def test_the_history_of_an_environment_is_kept_in_documents_that_are_created_once(
    store: PrefectVersionStore,
) -> None:
    for number in range(2):
        await store.register(draft(store.workspace, record_hash=str(number)))

    def count(book: Book) -> Entry:
        return told(store, "labelled", 1, label="counter", details={"count": len(book.entries) + 1})

    await asyncio.gather(*(store.append("train", count) for _ in range(5)))
    book = await store.book("train")
    assert [(entry.number, entry.details["count"]) for entry in book.entries] == [(n, n) for n in range(1, 6)]
    await store.append("train", lambda _book: told(store, "pruning", 2))
    assert [record.version for record in await store.versions("train")] == [1]
    assert (await store.names())[0].version == 1
    with pytest.raises(VersionPruned):
        await store.get("train", 2)
    assert list(await store.books()) == ["train"]
    shown: EnvironmentHistory = await EnvironmentHistory.aload(history_name(store.workspace, "train", 6))
    assert (shown.kind, shown.version) == ("pruning", 2)


async def test_the_day_of_use_is_one_document_that_is_written_again(store: PrefectVersionStore) -> None:
    record = await store.register(draft(store.workspace, created="2020-01-01T00:00:00+00:00"))
    await store._shelf.mark_used("train", 1, date(2020, 2, 3))
    assert (await store.book("train")).used == {1: date(2020, 2, 3)}
    assert await store.mark_used(record) is True
    assert await store.mark_used(record) is False
    assert (await store.book("train")).used == {1: datetime.now(UTC).date()}
    assert [found.version for found in await store.versions("train")] == [1]
