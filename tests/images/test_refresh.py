"""Refresh against an index whose packages get new releases, and a base tag that moves in a real registry."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core import labels
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, UndatedPackages, VersionNotFound
from prefect_environments.core.history import Entry
from prefect_environments.core.lock.age import AgeLimit
from prefect_environments.core.refresh.build import build_drifted
from prefect_environments.core.refresh.look import find_drift
from prefect_environments.core.refresh.outcome import RefreshOutcome, drift_markdown, told
from prefect_environments.core.site import open_site
from tests.images.parts import Team, build, derive, push_with_skopeo, requests_of
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.wheels import make_wheel, serve_index


def ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass
class Releases:
    """An index that tells when each file was uploaded."""

    folder: Path
    url: str = ""
    uploaded: dict[str, str] = field(default_factory=dict)

    def release(self, name: str, version: str, *, days: float | None, requires: tuple[str, ...] = ()) -> None:
        """Publish a version so many days ago; `None`: the index does not tell when."""
        wheel = make_wheel(self.folder, name, version, requires=requires)
        if days is not None:
            self.uploaded[wheel.name] = ago(days)

    def define(self, *requirements: str, name: str = "demo", **options: Any) -> EnvironmentDefinition:
        return EnvironmentDefinition(name=name, requirements=requirements, index_url=self.url, **options)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Releases]:
    """With an old release of pip, of `alpha`, which needs `beta`, of `beta` and of `gamma`."""
    found = Releases(tmp_path / "index")
    for name, version, requires in (
        ("pip", "26.1", ()),
        ("alpha", "1.0", ("beta",)),
        ("beta", "1.0", ()),
        ("gamma", "1.0", ()),
    ):
        found.release(name, version, days=100, requires=requires)
    with serve_index(found.folder, uploaded=found.uploaded) as served:
        found.url = served.url
        yield found


@pytest.fixture
def team(fresh_registry: Registry, base_layout: BaseLayout, tmp_path: Path) -> Team:
    """A workspace on a registry of this test's own, with the base image in it by tag."""
    base = fresh_registry.repository_url("base:1")
    base_layout.push(base)
    return Team.on(fresh_registry, tmp_path / "versions", default_base_image=base)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


async def look(team: Team, cache: Path, *names: str, days: int = 3, **options: Any) -> dict[str, RefreshOutcome]:
    age = AgeLimit.of_days(days, allow_undated=options.pop("allow_undated", False))
    async with open_site(team, cache=cache) as site:
        return {one.name: one for one in await find_drift(site, names, age=age, **options)}


async def move_base(team: Team, base: BaseLayout, folder: Path, **settings: Any) -> None:
    """Let the tag of the workspace's base name an image with one more file."""
    assert team.default_base_image
    push_with_skopeo(await derive(base, folder, {"srv/new": b"new"}, **settings), team.default_base_image)


async def test_new_releases_and_a_moved_base_tag_are_told_as_a_diff_and_nothing_is_written(
    team: Team, index: Releases, base_layout: BaseLayout, fresh_registry: Registry, cache: Path, tmp_path: Path
) -> None:
    await build(team, index.define("alpha"), cache)
    await build(team, index.define("gamma", name="still"), cache)
    assert told((await look(team, cache)).values()) == "2 unchanged"
    index.release("alpha", "1.1", days=10, requires=("gamma",))
    with requests_of(fresh_registry) as seen:
        found = await look(team, cache)
    assert not [line for line in seen if line.split()[0] in ("PUT", "POST", "PATCH", "DELETE")]
    assert told(found.values()) == "1 drifted, 1 unchanged"
    assert found["demo"].changes == ("~ alpha 1.0 → 1.1", "- beta 1.0", "+ gamma 1.0")
    assert "~ alpha 1.0 → 1.1" in drift_markdown([*found.values()])
    await move_base(team, base_layout, tmp_path / "moved")
    moved = await look(team, cache, "still")
    assert [*moved] == ["still"]
    (change,) = moved["still"].changes
    assert change.startswith(f"~ base digest {base_layout.digest} → sha256:")


async def test_a_release_is_taken_in_once_it_is_old_enough(team: Team, index: Releases, cache: Path) -> None:
    """The newest of those that are; with no limit, the newest of all."""
    await build(team, index.define("gamma"), cache)
    index.release("gamma", "1.1", days=4)
    index.release("gamma", "1.2", days=1 / 24)
    assert (await look(team, cache))["demo"].changes == ("~ gamma 1.0 → 1.1",)
    assert (await look(team, cache, days=5))["demo"].status == "unchanged"
    assert (await look(team, cache, days=0))["demo"].changes == ("~ gamma 1.0 → 1.2",)


async def test_what_is_registered_does_not_go_back_because_it_is_young(
    team: Team, index: Releases, cache: Path
) -> None:
    """A version of today has a release of today, pinned or not; what is old enough still comes in beside it."""
    index.release("gamma", "2.0", days=0.1)
    await build(team, index.define("gamma", "alpha"), cache)
    await build(team, index.define("gamma==2.0", name="pinned"), cache)
    index.release("beta", "1.5", days=10)
    index.release("beta", "1.6", days=0.1)
    index.release("gamma", "2.1", days=0.05)
    found = await look(team, cache)
    assert found["demo"].changes == ("~ beta 1.0 → 1.5",)
    assert found["pinned"].status == "unchanged"


async def test_an_index_without_upload_times_is_an_error_with_advice_or_allowed(
    team: Team, index: Releases, cache: Path
) -> None:
    """What a package without a time needs may have none either."""
    index.release("dark", "1.0", days=None, requires=("deep",))
    index.release("deep", "1.0", days=None)
    await build(team, index.define("dark", "gamma"), cache)
    await build(team, index.define("gamma", name="other"), cache)
    index.release("deep", "1.1", days=None)
    index.release("gamma", "1.1", days=0.1)
    found = await look(team, cache)
    assert found["other"].status == "unchanged"
    assert found["demo"].status == "failed"
    assert "tells no upload times (of dark-1.0-py3-none-any.whl" in found["demo"].reason
    assert "Allow undated packages" in found["demo"].reason
    assert (await look(team, cache, "demo", allow_undated=True))["demo"].changes == ("~ deep 1.0 → 1.1",)
    async with open_site(team, cache=cache) as site:
        from prefect_environments.core import steps

        with pytest.raises(UndatedPackages):
            await steps.resolve(site, index.define("dark"), upgrade=True, age=AgeLimit.of_days(3))


async def test_what_drifted_is_built_as_it_was_seen_and_one_failure_stops_no_other(
    team: Team, index: Releases, cache: Path
) -> None:
    """A release that comes after the look is not in it; only the label that is asked for is set; twice is once."""
    for name in ("bad", "demo"):
        await build(team, index.define("gamma", name=name), cache)
    async with open_site(team, cache=cache) as site:
        await labels.set_label(site, "demo", "production")
        index.release("gamma", "1.1", days=10)
        seen = await find_drift(site, age=AgeLimit.of_days(3), keep=True)
        assert told(seen) == "2 drifted"
        index.release("gamma", "1.2", days=9)
        await build(team, index.define("gamma", "alpha", name="bad"), cache)  # somebody was faster, with something else
        done = await build_drifted(site, seen, label="staging", created_by={"flow_run_id": "run"})
        assert [(one.name, one.status) for one in done] == [("bad", "failed"), ("demo", "built")]
        assert "bad has version 2 by now" in done[0].reason
        record = await site.workspace.versions.get("demo", 2)
        assert (record.created_by["refreshed_from"], record.created_by["flow_run_id"]) == (1, "run")
        assert record.image_hash == seen[1].image_hash
        book = await site.workspace.versions.book("demo")
        assert dict(book.life.labels) == {"production": 1, "staging": 2}
        again = await build_drifted(site, seen[1:])
        assert [(one.status, one.new_version) for one in again] == [("built", 2)]
        assert (await look(team, cache, "demo"))["demo"].changes == ("~ gamma 1.1 → 1.2",)


async def test_what_is_pinned_cannot_drift_and_is_not_resolved(
    team: Team, index: Releases, base_layout: BaseLayout, cache: Path
) -> None:
    """Its base by digest, and every package of its lock by version; a base by tag can."""
    assert team.default_base_image
    pinned = f"{team.default_base_image.rpartition(':')[0]}@{base_layout.digest}"
    every = ("alpha==1.0", "beta==1.0", "pip==26.1")
    await build(team, index.define(*every, name="pinned", base_image=pinned), cache)
    await build(team, index.define(*every, name="tagged"), cache)
    await build(team, EnvironmentDefinition(name="image", base_image=pinned, user_managed=True), cache)
    index.release("alpha", "1.1", days=10)
    found = await look(team, cache)
    assert {name: (one.status, one.reason) for name, one in found.items()} == {
        "image": ("unchanged", "base and packages are pinned by digest: it cannot drift"),
        "pinned": ("unchanged", "base and all packages are pinned: it cannot drift"),
        "tagged": ("unchanged", ""),
    }


async def test_archived_environments_are_left_out_and_unknown_names_refused(
    team: Team, index: Releases, cache: Path
) -> None:
    await build(team, index.define("gamma"), cache)
    await build(team, index.define("gamma", name="old"), cache)
    await team.versions.append("old", lambda _book: Entry("team", "old", "archived"))
    assert [*await look(team, cache)] == ["demo"]
    with pytest.raises(VersionNotFound, match=r"nope, old: not registered.*or archived; it has demo"):
        await look(team, cache, "nope", "old", "demo")


@pytest.mark.parametrize("days", [-1, 100_000, True])
def test_a_wrong_number_of_days_is_refused(days: int) -> None:
    with pytest.raises(DefinitionError, match="exclude_newer_days"):
        AgeLimit.of_days(days)
