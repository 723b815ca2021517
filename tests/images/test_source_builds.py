"""A package that has sources only is built once for all workers, if that is allowed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.errors import NoFittingWheel
from prefect_environments.core.site import open_site
from tests.images.conftest import Define
from tests.images.parts import Team, build, conforms
from tests.support.engine import DockerEngine
from tests.support.wheels import make_sdist


async def test_an_sdist_is_built_once_and_found_by_every_worker(
    *,
    team: Team,
    define: Define,
    open_base: str,
    wheels: Path,
    docker_engine: DockerEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second worker, with an empty cache and for another environment, takes the wheel from the registry."""
    ran = tmp_path / "backend-ran"
    monkeypatch.setenv("BACKEND_RAN", str(ran))
    folder = tmp_path / "index"
    make_sdist(folder, "sourced", "1.0")
    shutil.copy(next(wheels.glob("pip-*")), folder)
    wanted = define("sourced", base_image=open_base, find_links=(str(folder),))
    with pytest.raises(NoFittingWheel, match=r"sourced 1\.0: a source distribution"):
        await build(team, wanted, tmp_path / "cache")
    assert not ran.exists()
    allowing = replace(team, allow_source_builds=True)
    first = await build(allowing, wanted, tmp_path / "cache")
    assert ran.read_text().split() == ["sourced-1.0"]
    again = define("sourced", name="other", base_image=open_base, find_links=(str(folder),))
    second = await build(allowing, again, tmp_path / "empty-cache")
    assert ran.read_text().split() == ["sourced-1.0"]
    assert second.ready.digest == first.ready.digest
    async with open_site(allowing) as site:  # no layer is reused: the wheel itself comes out of the registry
        tags = await site.store.repository(f"{team.repository_prefix}-wheels").tags()
    assert sorted(tag.partition("-")[0] for tag in tags) == ["source", "wheel"]
    await conforms(second.ready.reference, tmp_path / "conforms", engine=docker_engine, check="import sourced")


async def test_a_built_wheel_comes_out_of_the_registry_for_a_new_layer(
    *, team: Team, define: Define, open_base: str, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced to make all layers afresh in an empty cache, a worker fetches the built wheel and runs no backend."""
    ran = tmp_path / "backend-ran"
    monkeypatch.setenv("BACKEND_RAN", str(ran))
    folder = tmp_path / "index"
    make_sdist(folder, "sourced", "1.0")
    shutil.copy(next(wheels.glob("pip-*")), folder)
    wanted = define("sourced", base_image=open_base, find_links=(str(folder),), allow_source_builds=True)
    first = await build(team, wanted, tmp_path / "cache")
    assert first.lock is not None
    (package,) = [package for package in first.lock.packages if package.name == "sourced"]
    assert package.url is None
    async with open_site(team, cache=tmp_path / "empty-cache") as site:
        path = await site.wheel_store.fetch(package.sha256)
    assert path is not None and path.stat().st_size == package.size
    assert ran.read_text().split() == ["sourced-1.0"]
