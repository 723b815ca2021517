"""What a prune would do, as a pure function of what is stored; and who sees whom of builds and prunes."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_environments.core import archive
from prefect_environments.core.errors import VersionNotFound, VersionPruned
from prefect_environments.core.history import Entry, Life
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.repository import Manifest
from prefect_environments.core.prune import claims
from prefect_environments.core.prune.leftovers import is_due, sighted, unneeded
from prefect_environments.core.prune.plan import Decision, Shelved, decide
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.stock import Ledger, Stored, stored, with_attachments
from prefect_environments.core.prune.use import marked_as_used
from prefect_environments.core.versions import FolderVersionStore, VersionRecord
from tests.core.test_versions import draft

TODAY = date(2030, 6, 30)
OLD = PrunePolicy(keep=1, older_than_days=30, unused_days=10)


def version(number: int, *, name: str = "train", age: int = 100, digest: str = "", extends: str = "") -> VersionRecord:
    created = datetime(2030, 6, 30, 12, tzinfo=UTC) - timedelta(days=age)
    return replace(
        draft(name=name, record_hash=str(number)),
        version=number,
        digest=digest or digests.of(f"{name}{number}".encode()),
        created=created.isoformat(),
        definition={"name": name, "extends": extends},
    )


def shelf(*records: VersionRecord, life: Life = Life(), used: dict[int, date] | None = None) -> Shelved:  # noqa: B008
    return Shelved(records[0].name, {record.version: record for record in records}, life, used or {})


def gone(decisions: list[Decision]) -> list[tuple[str, int]]:
    return [(one.record.name, one.record.version) for one in decisions if one.goes]


def reasons(decisions: list[Decision]) -> dict[int, str]:
    return {one.record.version: one.reason for one in decisions}


shelves: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.builds(
        dict,
        ages=st.lists(st.integers(0, 200), min_size=1, max_size=8),
        labelled=st.sets(st.integers(1, 8)),
        used=st.dictionaries(st.integers(1, 8), st.integers(0, 200)),
        extends=st.dictionaries(st.integers(1, 8), st.tuples(st.integers(0, 3), st.integers(1, 8))),
        archived=st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def made(given: list[dict[str, Any]]) -> list[Shelved]:
    found = []
    for place, one in enumerate(given):
        numbers = range(1, len(one["ages"]) + 1)
        extends = {n: f"e{other}:{at}" for n, (other, at) in one["extends"].items() if (other, at) < (place, n)}
        records = [version(n, name=f"e{place}", age=one["ages"][n - 1], extends=extends.get(n, "")) for n in numbers]
        labels = {f"label{n}": n for n in numbers if n in one["labelled"]}
        used = {n: TODAY - timedelta(days=days) for n, days in one["used"].items() if n in numbers}
        found.append(shelf(*records, life=Life(labels=labels, archived=one["archived"]), used=used))
    return found


@given(shelves, st.integers(1, 4), st.integers(0, 100), st.integers(2, 60))
def test_what_is_labelled_new_used_or_extended_never_goes_and_the_rest_does(
    given: list[dict[str, Any]], keep: int, older: int, unused: int
) -> None:
    policy = PrunePolicy(keep=keep, keep_archived=0, older_than_days=older, unused_days=unused)
    everything = made(given)
    decisions = decide(everything, policy, TODAY)
    going = set(gone(decisions))
    assert len(decisions) == sum(len(one.records) for one in everything)
    stays = [one.record for one in decisions if not one.goes]
    extended = {str(record.definition["extends"]) for record in stays}
    assert not any(f"{name}:{number}" in extended for name, number in going)
    for one in everything:
        newest = [] if one.life.archived else sorted(one.records)[-keep:]
        for number in one.records:
            used = one.last_used(number)
            assert used is not None
            young = (TODAY - datetime.fromisoformat(one.records[number].created).date()).days < older
            must = number in newest or one.life.labels_of(number) or young or (TODAY - used).days < unused
            if must:
                assert (one.name, number) not in going
            elif f"{one.name}:{number}" not in extended:
                assert (one.name, number) in going


def test_each_version_is_told_why_it_stays() -> None:
    records = [version(1), version(2), version(3), version(4, age=5), version(5), version(6)]
    life = Life(labels={"production": 2}, pruning=frozenset())
    used = {3: TODAY - timedelta(days=3)}
    decisions = decide([shelf(*records, life=life, used=used)], OLD, TODAY, {records[4].digest})
    assert gone(decisions) == [("train", 1)]
    told = reasons(decisions)
    assert told[2] == "labelled production" and told[6] == "among the newest 1"
    assert told[3] == "used on 2030-06-27, less than 10 days ago"
    assert told[4] == "registered on 2030-06-25, less than 30 days ago"
    assert told[5] == "a flow run or a deployment names it"
    assert told[1] == "not used since 2030-03-22"


def test_what_an_interrupted_run_left_is_finished_and_takes_no_place_among_the_newest() -> None:
    life = Life(pruning=frozenset({3}))
    decisions = decide([shelf(version(1), version(2), version(3), life=life)], OLD, TODAY)
    assert [(one.record.version, one.action) for one in decisions] == [(1, "prune"), (2, "keep"), (3, "finish")]


def test_names_limit_what_goes_and_a_wrong_one_is_refused() -> None:
    base, top = shelf(version(1), version(2)), shelf(version(1, name="top"), version(2, name="top"))
    only = OLD.model_copy(update={"names": ("top",)})
    assert gone(decide([base, top], only, TODAY)) == [("top", 1)]
    with pytest.raises(VersionNotFound, match="other is not registered"):
        decide([base, top], OLD.model_copy(update={"names": ("other",)}), TODAY)


def test_what_is_not_asked_for_still_keeps_what_it_extends() -> None:
    base = shelf(version(1), version(2))
    top = shelf(version(1, name="top", extends="train:1"), version(2, name="top"))
    assert gone(decide([base, top], OLD, TODAY)) == [("top", 1), ("train", 1)]
    decisions = decide([base, top], OLD.model_copy(update={"names": ("train",)}), TODAY)
    assert gone(decisions) == [] and reasons(decisions)[1] == "top:1 extends it"


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"unused_days": 1}, {"older_than_days": -1}, {"days": 3}])
def test_a_policy_that_would_hurt_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        PrunePolicy(**wrong)  # type: ignore[arg-type]


def kept(kind: Any, digest: str, *blobs: str, path: str = "environments-layers", **others: Any) -> Stored:
    return Stored(path, digest, kind, blobs={digest: 1, **dict.fromkeys(blobs, 100)}, **others)


def test_bytes_are_counted_when_the_last_that_refers_to_them_goes() -> None:
    one, two = kept("image", "m1", "a", "b"), kept("image", "m2", "b", "c")
    ledger = Ledger([one, two, one])
    assert ledger.remove([one]) == 101  # b is the other's, too
    assert ledger.remove([one]) == 0
    assert ledger.remove([two]) == 201


def test_a_version_without_a_digest_takes_no_image_of_others_along() -> None:
    """Records have had a digest since the first release, but need none to be read."""
    image = kept("image", "m1", "a", path="environments/train")
    lock = kept("attachment", "m2", path="environments/train", subject="m1")
    assert with_attachments([image, lock], "environments/train", "m1") == [image, lock]
    assert with_attachments([image, lock], "environments/train", "") == []


@pytest.mark.parametrize("notes", ["[1]", '["ab", "abc"]', "5", '"text"'])
def test_a_manifest_with_odd_annotations_keeps_what_it_names(notes: str) -> None:
    blob = Descriptor("text/plain", digests.of(b"x"), 7)
    text = f'{{"layers": [{json.dumps(blob.to_json())}], "annotations": {notes}}}'.encode()
    own = Descriptor(types.IMAGE_MANIFEST, digests.of(text), len(text))
    found = stored("environments-layers", Manifest(text, own), "layer", ["1" * 64])
    assert found.kind == "other" and found.blobs == {own.digest: len(text), blob.digest: 7}


def test_leftovers_are_what_no_image_no_version_and_no_run_needs() -> None:
    record = replace(version(1, digest="sha256:" + "1" * 64), image_hash="sha256:" + "2" * 64)
    image = kept("image", record.digest, "used-layer", path="environments/train", base="base")
    needed = [
        image,
        kept("layer", "l1", "used-layer"),
        kept("job", "j1", "runtime-layer"),
        kept("runtime", "r1", "runtime-layer"),
        kept("build", "base"),
        kept("lock", "k1", tags=("2" * 64,)),
        kept("lock", "k3", tags=("4" * 64,)),
        kept("other", "o1"),
    ]
    left = [
        kept("layer", "l2", "old-layer"),
        kept("job", "j2", "old-runtime"),
        kept("runtime", "r2", "old-runtime"),
        kept("build", "b2"),
        kept("lock", "k2", tags=("3" * 64,)),
    ]
    assert unneeded([*needed, *left], [record], {"j1", "sha256:" + "4" * 64}) == left


def test_a_leftover_goes_only_after_it_was_seen_unneeded_for_long_and_is_forgotten_once_it_is_needed() -> None:
    layer = kept("layer", "l", "x")
    first = sighted({}, [layer], TODAY)
    assert not is_due(first[layer.key], TODAY, 30)
    later = sighted(first, [layer], TODAY + timedelta(days=30))
    assert later == first and is_due(later[layer.key], TODAY + timedelta(days=30), 30)
    assert sighted(first, [], TODAY) == {}
    assert sighted({layer.key: TODAY + timedelta(days=9)}, [layer], TODAY) == {layer.key: TODAY}  # a wrong clock


@pytest.fixture
async def store(tmp_path: Path) -> FolderVersionStore:
    """One version of `train`, registered long ago."""
    store = FolderVersionStore(tmp_path / "versions", "team")
    await store.register(replace(draft(), image_hash="h", created="2020-01-01T00:00:00+00:00"))
    return store


def pruning(_book: object) -> Entry:
    return Entry("team", "train", "pruning", version=1)


async def test_a_build_marks_the_version_whose_image_it_is_about_to_use(store: FolderVersionStore) -> None:
    await claims.claim(store, "nobody", "h")
    await claims.claim(store, "train", "other")
    assert not (await store.book("train")).used
    await claims.claim(store, "train", "h")
    assert (await store.book("train")).used == {1: datetime.now(UTC).date()}


async def test_a_build_waits_for_the_end_of_a_prune_of_its_image(store: FolderVersionStore) -> None:
    await store.append("train", pruning)
    waiting = asyncio.create_task(claims.claim(store, "train", "h"))
    await asyncio.sleep(3 * claims._GLANCE)
    assert not waiting.done()
    await store.append("train", lambda _book: Entry("team", "train", "spared", version=1))
    await asyncio.wait_for(waiting, 60)
    assert (await store.book("train")).used  # and then marks what was spared


async def test_a_prune_that_died_does_not_hold_builds_up_for_ever(store: FolderVersionStore) -> None:
    long_ago = (datetime.now(UTC) - timedelta(seconds=claims.LEASE + 5)).isoformat()
    await store.append("train", lambda _book: replace(pruning(_book), created=long_ago))
    await asyncio.wait_for(claims.claim(store, "train", "h"), 60)
    assert not claims.in_progress(await store.book("train"), 1)


async def test_a_job_marks_its_version_at_its_start_and_again_while_it_runs(store: FolderVersionStore) -> None:
    class Here:
        versions = store

    (record,) = await store.versions("train")
    marks = store._shelf._folder / "train" / "used" / "1"  # type: ignore[attr-defined]
    async with marked_as_used(Here(), record, every=0.01):  # type: ignore[arg-type]
        assert marks.exists()
        marks.unlink()
        while not marks.exists():  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)
    await store.append("train", pruning)
    with pytest.raises(VersionPruned):
        async with marked_as_used(Here(), record):  # type: ignore[arg-type]
            raise AssertionError("a job started in an image that is going")


async def test_a_mark_that_fails_in_a_way_that_nobody_foresaw_costs_no_job_its_result(
    store: FolderVersionStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here:
        versions = store

    (record,) = await store.versions("train")
    tried = asyncio.Event()

    async def broken(_record: VersionRecord) -> bool:
        tried.set()
        raise RuntimeError("no such thing")

    async with marked_as_used(Here(), record, every=0.01):  # type: ignore[arg-type]
        monkeypatch.setattr(store, "mark_used", broken)
        await asyncio.wait_for(tried.wait(), 60)
    assert "could not note that it uses its version: no such thing" in caplog.text


async def test_an_archived_environment_is_not_listed_and_still_usable_until_it_is_restored(
    store: FolderVersionStore,
) -> None:
    assert await archive.archive(store, "train", reason="replaced") is True
    assert await archive.archive(store, "train") is False
    assert await store.names() == [] and len(await store.names(archived=True)) == 1
    assert (await store.get("train", 1)).version == 1
    assert await archive.restore(store, "train") is True
    assert await archive.restore(store, "train") is False
    assert len(await store.names()) == 1
    assert [(one.kind, one.reason) for one in (await store.book("train")).entries] == [
        ("archived", "replaced"),
        ("restored", ""),
    ]
    with pytest.raises(VersionNotFound, match="'other' is not registered"):
        await archive.archive(store, "other")
