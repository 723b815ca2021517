"""A lock that the user brings: used as it is, hashes checked, and nothing resolved."""

import asyncio
from pathlib import Path

import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import NoFittingWheel, PackageError
from prefect_environments.core.formats import pylock
from prefect_environments.core.oci import digest as digests
from tests.images.conftest import Define
from tests.images.parts import Team, build, conforms
from tests.support.wheels import make_sdist, make_wheel


def lock(folder: Path, *wheels: Path, sha256: str = "") -> str:
    tables = [
        f'[[packages]]\nname = "{wheel.name.split("-")[0]}"\nversion = "{wheel.name.split("-")[1]}"\n'
        f'wheels = [{{path = "{wheel.name}", hashes = {{sha256 = "{sha256 or digests.of_file(wheel)[7:]}"}}}}]\n'
        for wheel in wheels
    ]
    (folder / "pylock.toml").write_text('lock-version = "1.0"\n' + "\n".join(tables))
    return pylock.read(folder / "pylock.toml")


async def test_an_older_version_stays_and_nothing_is_added(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    """No index is asked: the lock's own files are what is installed, an old one where a newer lies beside it."""
    wheel = make_wheel(tmp_path, "epsilon", "1.0")
    make_wheel(tmp_path, "epsilon", "2.0")
    wanted = define(pylock=lock(tmp_path, wheel), base_image=open_base, find_links=(str(tmp_path),))
    found = await build(team, wanted, tmp_path / "cache")
    assert found.lock is not None
    assert [(p.name, p.version) for p in found.lock.packages] == [("epsilon", "1.0")]
    assert found.sent_layers[-1] == "epsilon 1.0"
    assert (await build(team, wanted, tmp_path / "cache")).ready.reused
    await conforms(found.ready.reference, tmp_path / "conforms")


async def test_a_file_without_the_locks_hash_is_refused(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    text = lock(tmp_path, make_wheel(tmp_path, "epsilon", "1.0"), sha256="b" * 64)
    with pytest.raises(PackageError, match="epsilon"):
        await build(team, define(pylock=text, base_image=open_base), tmp_path / "cache")
    assert await team.versions.names() == []


async def test_a_lock_of_sources_needs_their_builds_allowed(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    sdist = make_sdist(tmp_path, "sourced", "1.0")
    (tmp_path / "pylock.toml").write_text(
        f'lock-version = "1.0"\n[[packages]]\nname = "sourced"\nversion = "1.0"\n'
        f'sdist = {{path = "{sdist.name}", hashes = {{sha256 = "{digests.of_file(sdist)[7:]}"}}}}\n'
    )
    wanted = define(pylock=pylock.read(tmp_path / "pylock.toml"), base_image=open_base)
    with pytest.raises(NoFittingWheel, match="sourced"):
        await build(team, wanted, tmp_path / "cache")


async def test_an_empty_lock_is_an_environment_with_nothing_in_it(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    """There is no package layer to wait for; a lock adds nothing, pip neither."""
    wanted = define(pylock='lock-version = "1.0"\npackages = []\n', base_image=open_base)
    async with asyncio.timeout(120):
        found = await build(team, wanted, tmp_path / "cache")
    assert found.lock is not None and found.lock.packages == ()
    assert [title for title, _ in found.layers] == [f"empty environment for Python {found.lock.target.python}"]
    await conforms(found.ready.reference, tmp_path / "conforms")


async def test_an_extension_of_a_lock_takes_its_very_files_which_no_index_needs_to_have(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    """A wheel and what was built from source here; the index of the definition has neither."""
    sdist, wheel = make_sdist(tmp_path, "sourced", "1.0"), make_wheel(tmp_path, "epsilon", "1.0")
    text = lock(tmp_path, wheel) + (
        f'[[packages]]\nname = "sourced"\nversion = "1.0"\n'
        f'sdist = {{path = "{sdist}", hashes = {{sha256 = "{digests.of_file(sdist)[7:]}"}}}}\n'
    )
    wanted = define(name="base", pylock=text, base_image=open_base, allow_source_builds=True)
    base = await build(team, wanted, tmp_path / "cache")
    more = EnvironmentDefinition(name="more", extends="base:1", requirements=("gamma",))
    found = await build(team, more, tmp_path / "empty-cache")
    assert base.lock is not None and found.lock is not None
    assert {p.name for p in base.lock.packages} == {"epsilon", "sourced"}
    assert set(base.lock.packages) < set(found.lock.packages)
