"""An environment on a registered one: nothing of the base moves, and only what is added is new."""

from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, ResolveError, VersionNotFound
from prefect_environments.core.extend import effective
from prefect_environments.core.site import open_site
from tests.images.conftest import Define
from tests.images.parts import Team, build, conforms, tool
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.wheels import make_wheel


@pytest.fixture
def shelf(wheels: Path, tmp_path: Path) -> Path:
    """A copy of the shared wheels that a test may add to."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for wheel in wheels.iterdir():
        (folder / wheel.name).symlink_to(wheel)
    return folder


async def test_nothing_of_the_base_moves_and_one_layer_is_new(
    team: Team, define: Define, open_base: str, shelf: Path, tmp_path: Path
) -> None:
    """A newer release of a package that the base has appears; the extension neither takes it nor needs it."""
    links = {"base_image": open_base, "find_links": (str(shelf),)}
    base = await build(team, define("alpha", name="base", **links), tmp_path / "one")
    make_wheel(shelf, "beta", "2.0")
    wanted = EnvironmentDefinition(name="more", extends="base:1", requirements=("gamma",))
    found = await build(team, wanted, tmp_path / "two")
    assert base.lock is not None and found.lock is not None
    assert set(base.lock.packages) < set(found.lock.packages)
    assert {p.name for p in set(found.lock.packages) - set(base.lock.packages)} == {"gamma"}
    skeleton = f"empty environment for Python {base.lock.target.python}"
    assert sorted(found.sent_layers) == sorted([skeleton, "gamma 1.0"])  # the skeleton is sent by its few bytes
    assert found.ready.name == "more" and found.ready.version == 1
    await conforms(found.ready.reference, tmp_path / "conforms")


async def test_the_same_lock_reached_another_way_is_the_same_image(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    await build(team, define("alpha", name="base", base_image=open_base), tmp_path / "cache")
    extended = EnvironmentDefinition(name="way-one", extends="base:1", requirements=("gamma",))
    direct = define("alpha", "gamma", name="way-two", base_image=open_base)
    one, two = await build(team, extended, tmp_path / "cache"), await build(team, direct, tmp_path / "cache")
    assert one.ready.digest == two.ready.digest
    assert one.ready.image_hash == two.ready.image_hash


async def test_an_extension_is_found_again_and_can_be_extended(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    base = define("alpha", name="base", base_image=open_base, environment_variables={"A": "base", "B": "base"})
    await build(team, base, tmp_path / "cache")
    second = EnvironmentDefinition(
        name="second", extends="base:1", requirements=("gamma",), environment_variables={"B": "second"}
    )
    first = await build(team, second, tmp_path / "cache")
    again = await build(team, second, tmp_path / "cache")
    assert (again.ready.reused, again.ready.version, again.ready.digest) == (True, 1, first.ready.digest)
    third = await build(
        team, EnvironmentDefinition(name="third", extends="second:1", requirements=("delta",)), tmp_path
    )
    assert third.lock is not None
    assert {p.name for p in third.lock.packages} == {"alpha", "beta", "gamma", "delta", "pip"}
    record = await team.versions.get("third", 1)
    assert record.environment_variables == {"A": "base", "B": "second"}


async def test_a_requirement_against_the_base_is_refused_in_plain_words(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    await build(team, define("alpha", name="base", base_image=open_base), tmp_path / "cache")
    wanted = EnvironmentDefinition(name="more", extends="base:1", requirements=("beta>=2",))
    with pytest.raises(DefinitionError, match=r"asks for beta>=2, but base:1, which it extends, has beta 1\.0"):
        await build(team, wanted, tmp_path / "cache")


async def test_what_indirectly_wants_another_version_is_an_error_and_moves_nothing(
    team: Team, define: Define, open_base: str, shelf: Path, tmp_path: Path
) -> None:
    links = {"base_image": open_base, "find_links": (str(shelf),)}
    await build(team, define("alpha", name="base", **links), tmp_path / "cache")
    make_wheel(shelf, "beta", "2.0")
    make_wheel(shelf, "greedy", "1.0", requires=["beta>=2"])
    with pytest.raises(ResolveError, match="beta"):
        await build(
            team, EnvironmentDefinition(name="more", extends="base:1", requirements=("greedy",)), tmp_path / "cache"
        )


async def test_what_is_not_registered_or_user_managed_cannot_be_extended(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    with pytest.raises(VersionNotFound):
        await build(team, EnvironmentDefinition(name="more", extends="base:1"), tmp_path / "cache")
    await build(team, define(name="theirs", base_image=open_base, user_managed=True, find_links=()), tmp_path / "cache")
    with pytest.raises(DefinitionError, match="user-managed"):
        await build(team, EnvironmentDefinition(name="more", extends="theirs:1"), tmp_path / "cache")


async def test_a_base_whose_tag_moved_is_still_the_base_of_the_lock(
    *,
    team: Team,
    define: Define,
    open_registry: Registry,
    base_layout: BaseLayout,
    dressed: str,
    tmp_path: Path,
) -> None:
    target = open_registry.repository_url("images/moving-below:1")
    base_layout.push(target)
    base = await build(team, define("alpha", name="base", base_image=target), tmp_path / "cache")
    tool("skopeo", "copy", "-q", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false",
         f"docker://{dressed}", f"docker://{target}")  # fmt: skip
    found = await build(team, EnvironmentDefinition(name="more", extends="base:1"), tmp_path / "cache")
    assert base.lock is not None and found.lock is not None
    assert found.lock.base.digest == base.lock.base.digest == base_layout.digest
    assert found.ready.digest == base.ready.digest


async def test_the_bases_image_is_where_it_was_when_the_workspaces_default_is_another(
    team: Team, define: Define, open_base: str, open_registry: Registry, tmp_path: Path
) -> None:
    before = replace(team, default_base_image=open_base)
    base = await build(before, define("alpha", name="base", base_image=""), tmp_path / "cache")
    after = replace(team, default_base_image=open_registry.repository_url("images/another:2"))
    more = EnvironmentDefinition(name="more", extends="base:1", requirements=("gamma",))
    found = await build(after, more, tmp_path / "cache")
    assert base.lock is not None and found.lock is not None
    assert found.lock.base == base.lock.base


async def test_what_is_extended_keeps_its_files_on_upgrade_and_what_is_added_is_resolved_afresh(
    team: Team, define: Define, open_base: str, shelf: Path, tmp_path: Path
) -> None:
    """A build of the base's version with a higher build number, and a newer release of the addition, appear."""
    links = {"base_image": open_base, "find_links": (str(shelf),)}
    base = await build(team, define("alpha", name="base", **links), tmp_path / "cache")
    more = EnvironmentDefinition(name="more", extends="base:1", requirements=("gamma",))
    await build(team, more, tmp_path / "cache")
    (shelf / "beta-1.0-1-py3-none-any.whl").write_bytes((shelf / "beta-1.0-py3-none-any.whl").read_bytes())
    make_wheel(shelf, "gamma", "2.0")
    found = await build(team, more, tmp_path / "cache", upgrade=True)
    assert base.lock is not None and found.lock is not None
    assert {p.filename for p in base.lock.packages} < {p.filename for p in found.lock.packages}
    assert ("gamma", "2.0") in {(p.name, p.version) for p in found.lock.packages}


async def test_a_file_of_the_base_that_is_another_one_now_is_an_error(
    team: Team, define: Define, open_base: str, shelf: Path, tmp_path: Path
) -> None:
    wanted = define("alpha", name="base", base_image=open_base, find_links=(str(shelf),))
    await build(team, wanted, tmp_path / "cache")
    (shelf / "beta-1.0-py3-none-any.whl").unlink()
    make_wheel(shelf, "beta", "1.0", {"beta/__init__.py": b"print('another')\n"})
    with pytest.raises(ResolveError, match=r"does not move, but .* beta-1\.0-py3-none-any\.whl"):
        await build(team, EnvironmentDefinition(name="more", extends="base:1"), tmp_path / "cache")


async def test_an_extension_has_the_bases_platform_and_all_of_its_credentials(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    """The base is of a Dockerfile that names a private registry; the platform of an extension is not its own choice."""
    await build(team, define("alpha", name="base", base_image=open_base), tmp_path / "cache")
    dockerfile = define(
        name="base",
        base_image="",
        dockerfile="FROM registry.example.com/a:1",
        base_image_username="ann",
        base_image_password="secret:registry",
        base_image_registry="registry.example.com",
    )
    first = await team.versions.get("base", 1)
    draft = replace(first, version=0, record_hash="another", definition=dockerfile.model_dump(mode="json"))
    second = await team.versions.register(draft)
    more = EnvironmentDefinition(name="more", extends=f"base:{second.version}")
    async with open_site(team, cache=tmp_path / "cache") as site:
        found = (await effective(site, more)).definition
        assert (found.base_image_username, found.base_image_registry) == ("ann", "registry.example.com")
        with pytest.raises(DefinitionError, match="for linux/arm64, but base:2, which it extends, is for linux/amd64"):
            await effective(site, more.model_copy(update={"platform": "linux/arm64"}))
