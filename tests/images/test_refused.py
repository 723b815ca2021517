"""Wheels that are not what they should be end a build before anything is tagged or registered."""

import os
from pathlib import Path

import pytest

from prefect_environments.core import steps
from prefect_environments.core.errors import PackageError
from prefect_environments.core.hashes import image_hash
from prefect_environments.core.site import open_site
from tests.images.conftest import Define
from tests.images.parts import Team, build
from tests.support.engine import DockerEngine
from tests.support.wheels import make_wheel, serve_index


@pytest.fixture
def folder(wheels: Path, tmp_path: Path) -> Path:
    """An index's folder with pip and beta in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for wheel in [*wheels.glob("pip-*"), *wheels.glob("beta-*")]:
        os.link(wheel, folder / wheel.name)
    return folder


async def assert_nothing_is_there(team: Team) -> None:
    async with open_site(team) as site:
        assert await site.repository("demo").tags() == []
        kept = await site.catalog.repository.tags()
        assert [tag for tag in kept if not tag.startswith("base-")] == [], "no package layer was sent"
    assert await team.versions.names() == []


@pytest.mark.parametrize("lie", ["other bytes", "more bytes"])
async def test_a_server_that_lies_is_found_out(
    *, lie: str, team: Team, define: Define, open_base: str, folder: Path, tmp_path: Path
) -> None:
    """The wheel was changed at the index after it was locked."""
    wheel = make_wheel(folder, "epsilon", "1.0", compress=False)
    with serve_index(folder) as index:
        wanted = define("epsilon", base_image=open_base, find_links=(), no_index=False, index_url=index.url)
        async with open_site(team, cache=tmp_path / "cache") as site:
            lock = await steps.resolve(site, wanted)
            content = wheel.read_bytes()
            wheel.write_bytes(content.replace(b'"1.0"', b'"6.6"') + b"more" * (lie == "more bytes"))
            assert wheel.read_bytes() != content
            with pytest.raises(PackageError, match=r"epsilon-1\.0-py3-none-any\.whl"):
                await steps.build(site, wanted, lock)
            assert await site.repository("demo").find_manifest(image_hash(lock).partition(":")[2]) is None
    await assert_nothing_is_there(team)
    assert not [path for path in (tmp_path / "cache/scratch").iterdir() if path.is_file()]


@pytest.mark.parametrize(
    "member", ["../../../../../etc/cron.d/evil", "/etc/cron.d/evil", "epsilon-1.0.data/data/bin/python"]
)
async def test_a_wheel_that_leaves_its_place_is_refused(
    *, member: str, team: Team, define: Define, open_base: str, folder: Path, tmp_path: Path
) -> None:
    """Out of the environment, to the root, or over the environment's own interpreter."""
    make_wheel(folder, "epsilon", "1.0", {"epsilon.py": b"", member: b"evil"})
    wanted = define("epsilon", "beta", base_image=open_base, find_links=(str(folder),))
    with pytest.raises(PackageError, match="epsilon"):
        await build(team, wanted, tmp_path / "cache")
    await assert_nothing_is_there(team)


@pytest.mark.parametrize("big", ["aaa", "zzz"])
async def test_of_two_wheels_with_one_file_the_last_layer_wins_and_is_reported(
    *, big: str, team: Team, define: Define, open_base: str, folder: Path, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    """The bigger wheel's layer lies deeper, whatever it is called and whichever is ready first."""
    for name in ("aaa", "zzz"):
        more = {f"{name}_data.bin": os.urandom(3_000_000)} if name == big else {}
        make_wheel(folder, name, "1.0", {"both/__init__.py": f"owner = '{name}'\n".encode(), **more})
    wanted = define("aaa", "zzz", base_image=open_base, find_links=(str(folder),))
    built = await build(team, wanted, tmp_path / "cache")
    assert built.image is not None
    (overlap,) = [found for found in built.image.overlaps if found.path.endswith("both/__init__.py")]
    docker_engine.pull(built.ready.reference)
    winner = docker_engine.run(built.ready.reference, "python", "-c", "import both; print(both.owner)").strip()
    assert winner == ("zzz" if big == "aaa" else "aaa")
    assert (overlap.winner, overlap.loser) == (winner, big)
