"""Labels that move from version to version: in the history, as a tag in real stores, and under a race."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core import labels
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import NameNotAllowed, NotFound, VersionNotFound, VersionPruned
from prefect_environments.core.history import Entry
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.artifact import put_artifact
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.site import Site, open_site
from prefect_environments.core.steps import find_version
from prefect_environments.core.stores import reference_of
from prefect_environments.core.versions import VersionRecord
from tests.core.test_versions import draft
from tests.images.parts import Team
from tests.support.registry import Registry


async def register(site: Site, text: str) -> VersionRecord:
    """A version whose image is a small manifest of its own."""
    content = text.encode()
    blob = Descriptor("text/plain", digests.of(content), len(content))
    image = await put_artifact(site.repository("train"), blob, content)
    return await site.workspace.versions.register(
        replace(
            draft(record_hash=text),
            reference=reference_of(site.repository("train"), image.digest),
            digest=image.digest,
            definition=EnvironmentDefinition(name="train", base_image="debian:13").model_dump(mode="json"),
        )
    )


@pytest.fixture(params=["registry", "layout"])
async def site(request: pytest.FixtureRequest, tmp_path: Path, test_session: Any) -> AsyncIterator[Site]:
    """A workspace with two versions of `train`."""
    place: Registry | Path = tmp_path / "images"
    if request.param == "registry":
        place = request.getfixturevalue("fresh_registry")
    async with open_site(Team.on(place, tmp_path / "versions"), cache=tmp_path / "cache") as site:
        for text in ("one", "two"):
            await register(site, text)
        yield site


async def tagged(site: Site, label: str) -> str:
    found = await site.repository("train").find_manifest(label)
    return found.digest if found else ""


async def test_a_label_names_a_version_moves_and_is_rolled_back_and_the_tag_follows(site: Site) -> None:
    versions = site.workspace.versions
    one, two = await versions.versions("train")
    for version in (one, two, one):
        assert await labels.set_label(site, "train", "production", version.version) == version
        assert await find_version(site.workspace, "train", label="production") == version
        assert await tagged(site, "production") == version.digest
    history = (await versions.book("train")).entries
    assert [(entry.version, entry.details["from"]) for entry in history] == [(1, 0), (2, 1), (1, 2)]
    assert await labels.set_label(site, "train", "staging") == two  # the newest
    assert await find_version(site.workspace, "train", label="latest") == two


async def test_setting_a_label_again_writes_nothing_but_puts_a_wrong_tag_right(site: Site) -> None:
    one, two = await site.workspace.versions.versions("train")
    await labels.set_label(site, "train", "production", 1)
    manifest = await site.repository("train").get_manifest(two.digest)
    await site.repository("train").put_manifest(manifest.content, manifest.descriptor.media_type, tag="production")
    await labels.set_label(site, "train", "production", 1)
    assert await tagged(site, "production") == one.digest
    assert len((await site.workspace.versions.book("train")).entries) == 1


async def test_a_label_that_is_removed_names_nothing_and_what_there_is_is_told(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    await labels.set_label(site, "train", "production", 1)
    await labels.set_label(site, "train", "staging", 2)
    assert await labels.remove_label(site, "train", "production") is True
    assert await labels.remove_label(site, "train", "production") is False
    with pytest.raises(VersionNotFound, match=r"no version of 'train'.*label 'production'; it has staging \(2\)"):
        await find_version(site.workspace, "train", label="production")
    # distribution-spec, "Deleting tags": not every registry can; then it is said
    assert await tagged(site, "production") == "" or "cannot delete tags" in caplog.text


async def test_a_label_that_is_set_anew_while_it_is_removed_keeps_its_tag(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = await site.workspace.versions.get("train", 2)
    await labels.set_label(site, "train", "production", 1)
    repository = type(site.repository("train"))
    real = repository.delete_tag

    async def set_meanwhile(self: Any, tag: str) -> bool:
        await labels.set_label(site, "train", "production", 2)
        return await real(self, tag)

    monkeypatch.setattr(repository, "delete_tag", set_meanwhile)
    assert await labels.remove_label(site, "train", "production") is True
    assert await find_version(site.workspace, "train", label="production") == two
    assert await tagged(site, "production") == two.digest


async def test_the_label_of_an_image_that_stays_where_it_is_has_no_tag_to_be_missed(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    place = site.store.repository("library/own")
    blob = Descriptor("text/plain", digests.of(b"own"), 3)
    image = await put_artifact(place, blob, b"own", tag="1")
    own = EnvironmentDefinition(name="train", base_image="debian:13", user_managed=True).model_dump(mode="json")
    reference = reference_of(place, image.digest)
    draft_ = replace(draft(record_hash="own"), reference=reference, digest=image.digest, definition=own)
    record = await site.workspace.versions.register(draft_)
    await labels.set_label(site, "train", "production", record.version)
    assert await labels.remove_label(site, "train", "production") is True
    assert "cannot delete tags" not in caplog.text


async def test_movers_at_the_same_time_lose_no_move_and_leave_the_tag_where_the_history_ends(site: Site) -> None:
    one, two = await site.workspace.versions.versions("train")
    wanted = [one.version, two.version] * 5
    await asyncio.gather(*(labels.set_label(site, "train", "production", version) for version in wanted))
    book = await site.workspace.versions.book("train")
    moves = [(entry.details["from"], entry.version) for entry in book.entries]
    assert moves[0][0] == 0 and all(before[1] == after[0] for before, after in pairwise(moves))
    holds = await find_version(site.workspace, "train", label="production")
    assert await tagged(site, "production") == holds.digest


async def test_what_cannot_be_labelled_is_refused_and_nothing_is_written(site: Site) -> None:
    one = await site.workspace.versions.get("train", 1)
    for label, version, error in (("Latest", 1, NameNotAllowed), ("production", 7, VersionNotFound)):
        with pytest.raises(error):
            await labels.set_label(site, "train", label, version)
    with pytest.raises(VersionNotFound, match="nothing"):
        await labels.set_label(site, "nothing", "production")
    await site.repository("train").delete_manifest(one.digest)
    with pytest.raises(NotFound, match=r"version 1, is gone.*build the environment again"):
        await labels.set_label(site, "train", "production", 1)

    def pruning(_book: object) -> Entry:
        return Entry("team", "train", "pruning", version=2)

    await site.workspace.versions.append("train", pruning)
    with pytest.raises(VersionPruned, match="is being pruned"):
        await labels.set_label(site, "train", "production", 2)
    assert [entry.kind for entry in (await site.workspace.versions.book("train")).entries] == ["pruning"]
