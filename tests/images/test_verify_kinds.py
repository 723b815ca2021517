"""Environments of every kind are verified as far as that makes sense, and what was not looked at is said."""

from pathlib import Path

import pytest

from prefect_environments.core.compare import compare_versions
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import NotFound
from prefect_environments.core.findings import failures
from prefect_environments.core.site import open_site
from prefect_environments.core.verify import Verification, verify_version
from tests.images.conftest import Define
from tests.images.parts import Team, build
from tests.images.test_conda_environment import environment_file
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine


async def verified(team: Team, cache: Path, name: str = "demo") -> Verification:
    """Everything is looked at that can be."""
    async with open_site(team, cache=cache) as site:
        return await verify_version(site, name, full=True, rebuild=True)


async def test_conda_packages_are_verified_by_their_own_lists_of_files(
    team: Team, bare: BaseLayout, conda_channel: Path, wheels: Path, tmp_path: Path
) -> None:
    """With pip's packages on top, on a base without Python, bytecode compiled for them."""
    pip = ("alpha", f"--find-links {wheels}", "--no-index")
    path = environment_file(tmp_path, conda_channel, "python=3.11", "greeter", "pip", "prefixed", pip=pip)
    environment = Environment.from_conda_specification("demo", path)
    environment.docker.base_image = bare.reference
    wanted = environment.definition().model_copy(update={"compile_bytecode": True})
    await build(team, wanted, tmp_path / "cache")
    found = await verified(team, tmp_path / "cache")
    assert found.ok and not found.skipped, str(found)
    assert {"py-rattler", "deflate"} <= found.built_by.keys()


async def test_of_a_user_managed_image_the_bytes_are_verified_and_the_packages_are_not(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    wanted = define(base_image=open_base, user_managed=True, interpreter_path="/usr/bin/python3", find_links=())
    await build(team, wanted, tmp_path / "cache")
    found = await verified(team, tmp_path / "cache")
    assert found.ok, str(found)
    assert {name for name, _ in found.skipped} == {"tag", "base and config", "contents", "rebuild"}
    assert {"contents", "lock", "SBOM", "definition"} <= {one.name for one in found.findings}


async def test_an_environment_that_extends_another_is_rebuilt_on_the_others_base(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    """Its own definition names no base image and no wheels: the base version's count."""
    variables = {"BELOW": "1"}
    await build(team, define("alpha", base_image=open_base, environment_variables=variables), tmp_path / "cache")
    extended = Environment.extend("demo", 1, pip=["gamma"]).definition()
    await build(team, extended.model_copy(update={"environment_variables": {"OWN": "2"}}), tmp_path / "cache")
    found = await verified(team, tmp_path / "cache", "demo-extended")
    assert found.ok and not found.skipped, str(found)


async def test_of_an_image_on_a_dockerfile_the_dockerfile_is_not_built_again(
    team: Team, define: Define, open_base: str, build_engine: DockerEngine, tmp_path: Path
) -> None:
    """Its base is the image that was built then, by digest; the packages on it are rebuilt."""
    text = f"FROM {open_base}\nENV FROM_DOCKERFILE=yes\n"
    await build(team, define("alpha", base_image="", dockerfile=text), tmp_path / "cache")
    found = await verified(team, tmp_path / "cache")
    assert found.ok and not found.skipped, str(found)


async def test_where_the_base_image_is_gone_the_rest_is_verified_and_a_rebuild_says_why_not(
    team: Team, define: Define, base_layout: BaseLayout, tmp_path: Path
) -> None:
    target = f"{team.registry_settings.address}/{team.repository_prefix}/base:1"
    base_layout.push(target)
    await build(team, define("alpha", base_image=target), tmp_path / "cache")
    async with open_site(team, cache=tmp_path / "cache") as site:
        repository = site.store.repository(f"{team.repository_prefix}/base")
        await repository.delete_manifest(base_layout.digest)
    found = await verified(team, tmp_path / "cache")
    assert [one.name for one in failures(found.findings)] == ["rebuild"]
    assert [name for name, why in found.skipped if "does not exist" in why] == ["base and config"]


async def test_images_in_a_folder_are_verified_and_compared_as_in_a_registry(define: Define, tmp_path: Path) -> None:
    team = Team.on(tmp_path / "images", tmp_path / "versions")
    await build(team, define("alpha"), tmp_path / "cache")
    await build(team, define("alpha", "gamma"), tmp_path / "cache")
    found = await verified(team, tmp_path / "cache")
    assert found.ok and not found.skipped, str(found)
    async with open_site(team, cache=tmp_path / "cache") as site:
        assert list(map(str, (await compare_versions(site, "demo", 1)).changes)) == ["+ gamma 1.0"]


async def test_a_curated_environment_that_nobody_built_has_nothing_to_verify(team: Team, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="curated and not built"):
        await verified(team, tmp_path / "cache", "AzureML-sklearn")
