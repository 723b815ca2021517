"""Same input, same bytes: the digest of an image depends on its lock alone."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.oci.digest import hex_of
from tests.images.conftest import Define
from tests.images.parts import Outcome, Team, build, convert_by_processes
from tests.support.base import BaseLayout
from tests.support.jobs import is_alive
from tests.support.registry import Registry
from tests.support.wheels import make_wheel, serve_index

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def first(define: Define, tmp_path: Path) -> Outcome:
    """An image in a layout, built here and now."""
    wanted = define("alpha", "gamma", "delta")
    return await build(Team.on(tmp_path / "first", tmp_path / "versions"), wanted, tmp_path / "cache")


def _locked(first: Outcome, path: Path) -> str:
    assert first.lock is not None
    path.write_text(first.lock.to_pylock())
    return str(path)


CIRCUMSTANCES = {
    "closed": {"umask": 0o077, "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "1", "LC_ALL": "C", "name": "other"},
    "usual": {"umask": 0o022, "TZ": "America/Los_Angeles", "PYTHONHASHSEED": "4242", "LC_ALL": "C.UTF-8", "name": "Ö"},
}


async def test_other_processes_give_the_same_digest(
    first: Outcome, base_layout: BaseLayout, open_registry: Registry, tmp_path: Path
) -> None:
    """Other folder, time zone, umask, hash seed, locale, environment name and user's home; layout and registry."""
    lock = _locked(first, tmp_path / "pylock.toml")
    addresses = {"closed": f"oci:{tmp_path / 'a/deeper/layout'}", "usual": open_registry.address}
    running = []
    for key, circumstances in CIRCUMSTANCES.items():
        given = {
            "address": addresses[key],
            "versions": str(tmp_path / key / "versions"),
            "cache": str(tmp_path / key / "cache"),
            "lock": lock,
            "base": base_layout.reference,
            "umask": circumstances["umask"],
            "name": "other-name" if key == "closed" else "Third_Name",
        }
        command = [sys.executable, "-m", "tests.images.rebuild", json.dumps(given)]
        variables = {name: str(circumstances[name]) for name in ("TZ", "PYTHONHASHSEED", "LC_ALL")}
        running.append(
            await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env={**os.environ, **variables, "HOME": str(tmp_path / key)}, stdout=subprocess.PIPE
            )
        )
    said = [(await process.communicate())[0].decode().strip() for process in running]
    assert said == [first.ready.digest] * 2


async def test_processes_that_convert_the_wheels_give_the_same_digest(
    first: Outcome, define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there is much to convert. None of them is left when the build has ended."""
    started = convert_by_processes(monkeypatch)
    team = Team.on(tmp_path / "second", tmp_path / "versions-2")
    again = await build(team, define("alpha", "gamma", "delta"), tmp_path / "cache-2")
    assert again.ready.digest == first.ready.digest
    assert len(started) == 2 and not any(is_alive(pid) for pid in started)


async def test_the_mirror_that_serves_a_wheel_does_not_count(define: Define, wheels: Path, tmp_path: Path) -> None:
    """Two indexes on other ports, one with queries in its addresses: other URLs in the locks, one image hash."""
    found = []
    for number, query in enumerate(("", "?mirror=2")):
        with serve_index(wheels, query=query) as index:
            wanted = define("alpha", find_links=(), no_index=False, index_url=index.url)
            team = Team.on(tmp_path / f"images-{number}", tmp_path / f"versions-{number}")
            found.append(await build(team, wanted, tmp_path / f"cache-{number}"))
            assert any(path.startswith("/files/alpha") for path in index.requests)
    first, second = found
    assert first.lock is not None and second.lock is not None
    assert {p.url for p in first.lock.packages}.isdisjoint({p.url for p in second.lock.packages})
    assert (first.ready.image_hash, first.ready.digest) == (second.ready.image_hash, second.ready.digest)


async def test_what_an_index_tells_of_sizes_does_not_count(define: Define, tmp_path: Path, wheels: Path) -> None:
    """A page of links tells no sizes, a JSON index does: the lock has them in any case, as they order the layers."""
    folder = tmp_path / "index"
    shutil.copytree(wheels, folder)
    make_wheel(folder, "zeta", "1.0", {"zeta.bin": bytes(range(256)) * 4000}, compress=False)
    with serve_index(folder) as index:
        links = define("alpha", "zeta", find_links=(), no_index=False, index_url=index.url)
        served = await build(Team.on(tmp_path / "a", tmp_path / "a-versions"), links, tmp_path / "a-cache")
    local = await build(
        Team.on(tmp_path / "b", tmp_path / "b-versions"),
        define("alpha", "zeta", find_links=(str(folder),)),
        tmp_path / "b-cache",
    )
    for one in (served, local):
        assert one.lock is not None
        assert {p.filename: p.size for p in one.lock.packages} == {
            p.filename: (folder / p.filename).stat().st_size for p in one.lock.packages
        }
    assert served.ready.digest == local.ready.digest
    titles = [title for title, _ in served.layers[1:]]  # the empty environment is first
    assert [title.split()[0] for title in titles] == ["pip", "zeta", "alpha", "beta"]


async def test_how_an_image_came_about_does_not_count(
    first: Outcome, define: Define, wheels: Path, tmp_path: Path
) -> None:
    """Grown package by package, with layers reused by descriptor, it is the image that is built at once."""
    team = Team.on(tmp_path / "grown", tmp_path / "grown-versions")
    await build(team, define("delta"), tmp_path / "cache-1")
    await build(team, define("delta", "gamma"), tmp_path / "cache-2")
    cache = tmp_path / "cache-3"  # some wheels are at hand, others come later: another order of the work
    kept = cache / "wheels"
    kept.mkdir(parents=True)
    assert first.lock is not None
    for package in first.lock.packages[::2]:
        shutil.copy(wheels / package.filename, kept / package.sha256)
    grown = await build(team, define("delta", "gamma", "alpha"), cache)
    assert sorted(grown.sent_layers) == ["alpha 1.0", "beta 1.0"]
    assert grown.ready.digest == first.ready.digest


async def test_building_again_by_force_gives_the_same_digest(first: Outcome, define: Define, tmp_path: Path) -> None:
    team = Team.on(tmp_path / "first", tmp_path / "versions")
    again = await build(team, define("alpha", "gamma", "delta"), tmp_path / "cache-2", force=True)
    assert again.image is not None and not again.image.reused
    assert (again.ready.digest, again.ready.version) == (first.ready.digest, 1)


async def test_another_wheel_another_recipe_of_the_lock_is_another_image(first: Outcome, tmp_path: Path) -> None:
    """The control: what decides the bytes decides the image hash, which is the tag."""
    from prefect_environments.core.hashes import image_hash

    assert first.lock is not None
    package = replace(first.lock.packages[0], sha256="0" * 64)
    other = replace(first.lock, packages=(package, *first.lock.packages[1:]))
    assert image_hash(other) != image_hash(first.lock)
    assert hex_of(image_hash(first.lock)) == hex_of(first.ready.image_hash)
