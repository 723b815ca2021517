"""Many environments at once on a real registry: what they share is made and sent once, by the registry's own log."""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core import steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import NotFound
from prefect_environments.core.fleet.build import build_environments
from prefect_environments.core.fleet.locks import keep_lock, kept_lock
from prefect_environments.core.fleet.outcome import FleetOutcome
from prefect_environments.core.fleet.status import check_images
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import Site, open_site
from prefect_environments.core.versions import FolderVersionStore
from tests.images.parts import Team, build, convert_by_processes, mounts, read_image, repository_of, requests_of
from tests.support.base import BaseLayout
from tests.support.jobs import is_alive
from tests.support.leaks import everything_below
from tests.support.registry import Registry
from tests.support.session import end
from tests.support.wheels import make_wheel

PACKAGES = 12


@pytest.fixture
def own(fresh_registry: Registry, base_layout: BaseLayout, tmp_path: Path) -> Team:
    """A workspace on a registry of this test's own, with the base image in the same registry."""
    base = fresh_registry.repository_url("base:1")
    base_layout.push(base)
    return Team.on(fresh_registry, tmp_path / "versions", default_base_image=base)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder of wheels: pip and twelve packages of several sizes."""
    folder = tmp_path / "index"
    make_wheel(folder, "pip", "26.1")
    for number in range(PACKAGES):
        content = random.Random(number).randbytes(5_000 + 7_000 * number)
        make_wheel(folder, f"part{number}", "1.0", {f"part{number}/data.bin": content})
    return folder


def wanted(name: str, index: Path, *requirements: str, **options: Any) -> EnvironmentDefinition:
    return EnvironmentDefinition(
        name=name,
        requirements=requirements,
        find_links=(str(index),),
        no_index=True,
        **options,
    )


def subsets(index: Path, count: int) -> list[EnvironmentDefinition]:
    """Environments of random, differing subsets of the packages."""
    dice, seen = random.Random(count), set[tuple[int, ...]]()
    while len(seen) < count:
        seen.add(tuple(sorted(dice.sample(range(PACKAGES), dice.randint(2, 7)))))
    return [wanted(f"env-{n}", index, *(f"part{i}" for i in chosen)) for n, chosen in enumerate(sorted(seen))]


async def run(team: Team, definitions: Sequence[EnvironmentDefinition], cache: Path) -> dict[str, FleetOutcome]:
    async with open_site(team, cache=cache) as site:
        return {one.name: one for one in await build_environments(site, definitions)}


def sent(requests: list[str]) -> Counter[str]:
    """How often each blob was sent, by digest."""
    found = (re.search(r"^PUT .*/blobs/uploads/.*[?&]digest=(sha256\S{3,5}[0-9a-f]{64})", line) for line in requests)
    return Counter(match[1].replace("%3A", ":") for match in found if match)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in everything_below(folder) if path.name.startswith("tmp-") and path.exists()]


MANY = 200


async def test_many_environments_send_each_layer_once_and_are_then_warm(
    own: Team, fresh_registry: Registry, index: Path, tmp_path: Path
) -> None:
    """From random subsets of twelve packages. One that cannot be resolved fails alone. Then all are found by at most
    two requests each."""
    several = [*subsets(index, MANY), wanted("broken", index, "no-such-package")]
    with requests_of(fresh_registry) as cold:
        found = await run(own, several, tmp_path / "cache")
    assert Counter(one.status for one in found.values()) == {"built": MANY, "failed": 1}
    assert "no-such-package" in found["broken"].reason
    counts = sent(cold)
    async with repository_of(str(own.default_base_image)) as (repository, tag):
        base = {layer.digest for layer in (await read_image(repository, tag))[0].layers}
    layers: set[str] = set()
    for one in several[:-1]:
        async with repository_of(found[one.name].reference) as (repository, digest):
            layers |= {layer.digest for layer in (await read_image(repository, digest))[0].layers} - base
    assert {digest: counts[digest] for digest in layers} == dict.fromkeys(layers, 1)
    assert max(counts.values()) == 1
    assert len(layers) >= PACKAGES + 2  # each package, pip, and what differs by environment
    async with repository_of(found["env-0"].reference) as (repository, digest):
        await validate(repository, digest, tmp_path / "look")
    assert len([line for line in cold if line.startswith("GET /v2/base/")]) <= 4  # manifest, config, its layers once
    with requests_of(fresh_registry) as warm:
        again = await run(own, several[:-1], tmp_path / "another-machine")
    assert {one.status for one in again.values()} == {"ready"}
    assert len(warm) <= 2 * len(again)
    assert {name: one.reference for name, one in again.items()} == {
        name: one.reference for name, one in found.items() if name != "broken"
    }
    with requests_of(fresh_registry) as looks:
        async with open_site(own, cache=tmp_path / "cache") as site:
            states = await check_images(site, await own.versions.names())
    assert ({one.state for one in states}, len(looks)) == ({"there"}, MANY)


async def test_equal_images_are_built_once_and_mounted_for_the_others(
    own: Team, fresh_registry: Registry, index: Path, tmp_path: Path
) -> None:
    """Each name has its repository, version and attachments; the image of the second is mounts and one manifest."""
    names = ("one", "two", "three")
    with requests_of(fresh_registry) as seen:
        found = await run(own, [wanted(name, index, "part1", "part2") for name in names], tmp_path / "cache")
    assert sorted(one.status for one in found.values()) == ["built", "reused", "reused"]
    (digest,) = {one.reference.rpartition("@")[2] for one in found.values()}
    first = next(one for one in found.values() if one.status == "built")
    (other, _) = (one for one in found.values() if one is not first)
    assert other.reason == f"the image of {first.name}"
    path = f"environments/{other.name}"
    assert mounts(seen, path) >= 5
    named = [line for line in seen if line == f"PUT /v2/{path}/manifests/{first.image_hash.partition(':')[2]}"]
    assert len(named) == 1
    for one in found.values():
        async with repository_of(one.reference) as (repository, _):
            await validate(repository, digest, tmp_path / one.name)
            assert len(await repository.referrers(digest)) == 3
    assert max(sent(seen).values()) == 1


async def test_equal_definitions_are_resolved_once_unless_one_has_versions_whose_lock_counts(
    own: Team, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved, original = list[str](), steps.resolve

    async def resolve(site: Site, definition: EnvironmentDefinition, **options: Any) -> Lock:
        resolved.append(definition.name)
        return await original(site, definition, **options)

    await run(own, [wanted("old", index, "part3<2")], tmp_path / "cache")
    monkeypatch.setattr(steps, "resolve", resolve)
    names = ("one", "two", "three", "old")
    found = await run(own, [wanted(name, index, "part3", "part4") for name in names], tmp_path / "cache")
    assert {one.status for one in found.values()} <= {"built", "reused"}
    assert sorted(resolved, reverse=True)[1:] == ["old"]
    assert len({one.image_hash for one in found.values()}) == 1


async def test_who_requires_hashes_gets_no_lock_of_one_who_does_not(own: Team, index: Path, tmp_path: Path) -> None:
    """The two have one definition hash: requiring hashes changes no image."""
    easy, strict = wanted("easy", index, "part3"), wanted("strict", index, "part3", require_hashes=True)
    found = await run(own, [easy, strict], tmp_path / "cache")
    assert (found["easy"].status, found["strict"].status) == ("built", "failed")
    assert "every package must have a --hash" in found["strict"].reason


async def test_another_variable_is_a_new_version_of_the_image_and_says_who_made_it(
    own: Team, fresh_registry: Registry, index: Path, tmp_path: Path
) -> None:
    first = wanted("one", index, "part1")
    changed = first.model_copy(update={"environment_variables": {"LEVEL": "2"}})
    await run(own, [first], tmp_path / "cache")
    with requests_of(fresh_registry) as seen:
        async with open_site(own, cache=tmp_path / "cache") as site:
            (found,) = await build_environments(site, [changed], created_by={"user": "ann"})
    assert (found.status, found.version, found.reason) == ("reused", 2, "the image of an earlier version")
    (before, after) = await own.versions.versions("one")
    assert (before.digest, after.created_by["user"]) == (after.digest, "ann")
    assert len(seen) == 1


async def test_a_base_of_another_registry_is_fetched_and_sent_once(
    own: Team,
    fresh_registry: Registry,
    base_layout: BaseLayout,
    open_registry: Registry,
    index: Path,
    tmp_path: Path,
) -> None:
    """Its layers are read once, for all environments on it; the others mount them."""
    path = f"fleet-{os.urandom(4).hex()}/base"  # others look into the shared ones at the same time
    far = open_registry.repository_url(f"{path}:1")
    base_layout.push(far)
    several = [one.model_copy(update={"base_image": far}) for one in subsets(index, 6)]
    with requests_of(open_registry) as read, requests_of(fresh_registry) as seen:
        found = await run(own, several, tmp_path / "cache")
    assert {one.status for one in found.values()} == {"built"}
    assert max(sent(seen).values()) == 1
    async with repository_of(far) as (repository, reference):
        base, _ = await read_image(repository, reference)
    layers = [layer.digest for layer in base.layers]
    looks = [line for line in read if line.startswith(f"GET /v2/{path}/") and line.rpartition("/")[2] in layers]
    assert max(Counter(looks).values()) <= 2  # to look into it for its Python, and to copy it
    assert set(layers) <= set(sent(seen))


async def test_names_that_share_a_repository_or_are_given_twice(own: Team, index: Path, tmp_path: Path) -> None:
    """The first one is built and the other refused before any work; the very same one again is the same outcome."""
    first = wanted("iris", index, "part1")
    async with open_site(own, cache=tmp_path / "cache") as site:
        given = [first, wanted("Iris", index, "part2"), wanted("iris", index, "part3"), first]
        found = await build_environments(site, given)
    assert [one.status for one in found] == ["built", "failed", "failed", "built"]
    assert "would share a repository" in found[1].reason
    assert "given twice" in found[2].reason
    assert [record.name for record in await own.versions.names()] == ["iris"]


async def test_an_environment_that_extends_comes_after_the_others(own: Team, index: Path, tmp_path: Path) -> None:
    """One that stands on another one that does so itself comes last, whatever the order of the list."""

    def extending(name: str, base: str, package: str) -> EnvironmentDefinition:
        given = {"find_links": (str(index),), "no_index": True}
        return EnvironmentDefinition(name=name, extends=base, requirements=(package,), **given)

    several = [extending("most", "more:1", "part3"), extending("more", "less:1", "part2")]
    several += [wanted("less", index, "part1"), extending("round", "Round:1", "part4")]
    found = await run(own, several, tmp_path / "cache")
    assert {name: one.status for name, one in found.items()} == {
        "most": "built",
        "more": "built",
        "less": "built",
        "round": "failed",
    }


async def test_every_environment_that_was_asked_for_is_heard_of(own: Team, index: Path, tmp_path: Path) -> None:
    """Also one that is given twice, or who counts waits for the rest of it for ever."""
    heard: list[FleetOutcome] = []
    one = wanted("iris", index, "part1")
    async with open_site(own, cache=tmp_path / "cache") as site:
        found = await build_environments(site, [one, one, wanted("other", index, "no-such")], on_outcome=heard.append)
    assert sorted(one.name for one in heard) == sorted(one.name for one in found) == ["iris", "iris", "other"]


async def test_a_fleet_shares_its_converting_processes_and_ends_them(
    own: Team, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = convert_by_processes(monkeypatch)
    async with open_site(own, cache=tmp_path / "cache") as site:
        found = await build_environments(site, subsets(index, 5))
        assert {one.status for one in found} == {"built"}
        assert len(started) == 2 and not any(is_alive(pid) for pid in started)


async def test_a_cancelled_fleet_leaves_nothing(
    own: Team, fresh_registry: Registry, index: Path, tmp_path: Path
) -> None:
    """No temporary file here and no half-sent upload in the registry; the next run completes."""
    several = subsets(index, 10)
    task = asyncio.ensure_future(run(own, several, tmp_path / "cache"))
    while not any(line.startswith("PUT ") for line in fresh_registry.requests()):  # noqa: ASYNC110 - its log tells
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(tmp_path) == []
    assert [path for path in everything_below(fresh_registry.folder) if path.match("_uploads/*/data")] == []
    found = await run(own, several, tmp_path / "cache")
    assert {one.status for one in found.values()} <= {"built", "reused", "ready"}


async def test_a_kept_lock_is_read_back_by_its_hash(own: Team, index: Path, tmp_path: Path) -> None:
    """What one machine resolved, another builds as it is; an unknown hash is not found."""
    made = await build(own, wanted("iris", index, "part1"), tmp_path / "cache")
    assert made.lock is not None
    async with open_site(own, cache=tmp_path / "other") as site:
        image_hash = await keep_lock(site, made.lock)
        assert image_hash == made.ready.image_hash
        assert await kept_lock(site, image_hash) == made.lock
        with pytest.raises(NotFound, match="no lock of the image hash"):
            await kept_lock(site, f"sha256:{'0' * 64}")


# ---- two processes


PROCESS = """
import asyncio, json, sys
from tests.images import test_fleet
test_fleet.work(json.loads(sys.argv[1]))
"""


def work(order: dict[str, str]) -> None:
    """What each process does: all environments in the workspace of `order`."""
    team = Team(
        RegistrySettings(order["registry"]),
        FolderVersionStore(order["versions"], "team"),
        default_base_image=order["base"],
    )
    found = asyncio.run(run(team, subsets(Path(order["index"]), 8), Path(order["cache"])))
    print(json.dumps({name: [one.status, one.version, one.reference] for name, one in found.items()}))


def test_two_processes_at_once_register_each_version_once(
    own: Team, fresh_registry: Registry, index: Path, tmp_path: Path
) -> None:
    """Numbers without gap or double, and one digest for each environment, whoever put its manifest."""
    order = {
        "registry": fresh_registry.address,
        "base": str(own.default_base_image),
        "versions": str(tmp_path / "versions"),
        "index": str(index),
    }
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps({**order, "cache": str(tmp_path / f"cache-{number}")})],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for number in range(2)
    ]
    try:
        results = [json.loads(process.communicate(timeout=180)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            end(process.pid)
    assert all(status != "failed" and version == 1 for one in results for status, version, _ in one.values())
    assert {name: found[2] for name, found in results[0].items()} == {
        name: found[2] for name, found in results[1].items()
    }
    for name in results[0]:
        assert [record.version for record in asyncio.run(own.versions.versions(name))] == [1]
