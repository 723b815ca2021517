"""What refresh must not get wrong: pins that do not hold, what is held, what changes before it is built."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core import attachments
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.dockerfiles import current_name
from prefect_environments.core.lock.age import AgeLimit
from prefect_environments.core.refresh.build import build_drifted
from prefect_environments.core.refresh.look import find_drift
from prefect_environments.core.site import open_site
from tests.images import test_refresh as parts
from tests.images.parts import Team, build, derive, push_with_skopeo
from tests.images.test_refresh import Releases, ago, look
from tests.support.base import BaseLayout
from tests.support.channel import Channel, CondaPackage

index, team, cache = parts.index, parts.team, parts.cache


async def test_a_pin_under_a_marker_is_no_pin(
    team: Team, index: Releases, base_layout: BaseLayout, cache: Path
) -> None:
    """Where it does not hold, something else asks for the package, and a newer release comes in."""
    assert team.default_base_image
    base = f"{team.default_base_image.rpartition(':')[0]}@{base_layout.digest}"
    lines = ("gamma>=0.5", 'gamma==1.0; sys_platform == "win32"', "pip==26.1")
    await build(team, index.define(*lines, base_image=base), cache)
    index.release("gamma", "1.1", days=10)
    assert (await look(team, cache))["demo"].changes == ("~ gamma 1.0 → 1.1",)


async def test_a_yanked_package_does_not_take_a_young_one_back_with_it(
    team: Team, index: Releases, cache: Path
) -> None:
    """One cannot be held any more; the other is too young for the limit only, and stays."""
    index.release("beta", "2.0", days=50)
    index.release("gamma", "2.0", days=0.1)
    await build(team, index.define("gamma", "beta"), cache)
    (found,) = index.folder.glob("beta-2.0-*")
    found.unlink()
    assert (await look(team, cache))["demo"].changes == ("~ beta 2.0 → 1.0",)


async def test_what_was_seen_is_not_registered_for_what_is_asked_for_by_now(
    team: Team, index: Releases, base_layout: BaseLayout, cache: Path, tmp_path: Path
) -> None:
    """A definition without a base asks for the workspace's: the hash of its next version must be of the base that the
    image is on, or a build finds the image of another one."""
    await build(team, index.define("gamma"), cache)
    index.release("gamma", "1.1", days=10)
    async with open_site(team, cache=cache) as site:
        seen = await find_drift(site, keep=True)
    assert team.default_base_image
    other = team.default_base_image.replace("base:1", "other:1")
    push_with_skopeo(await derive(base_layout, tmp_path / "other", {"srv/new": b"new"}), other)
    moved = replace(team, default_base_image=other)
    async with open_site(moved, cache=cache) as site:
        (done,) = await build_drifted(site, seen)
    assert done.status == "failed" and "default base image or index is another one" in done.reason
    async with open_site(team, cache=cache) as site:
        assert [one.status for one in await build_drifted(site, seen)] == ["built"]
    await build(moved, index.define("gamma"), cache)
    async with open_site(moved, cache=cache) as site:
        newest = await moved.versions.newest("demo")
        assert newest is not None and newest.version == 3
        lock = await attachments.read_lock(site.repository("demo"), newest.lock_digest)
    assert lock.base.name == other


async def test_a_report_builds_no_dockerfile_also_where_its_image_was_built_elsewhere(
    team: Team, index: Releases, base_layout: BaseLayout, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that was promoted has its image, and not what its Dockerfile made. There is no engine here."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    definition = index.define("gamma", dockerfile=f"FROM {team.default_base_image}\n")
    async with open_site(team, cache=cache) as site:
        tag = (await current_name(site, definition)).removeprefix("dockerfile:")
        base_layout.push(f"{team.registry_settings.address}/environments-builds:{tag}")  # as if it had been built
        await build(team, definition, cache)
        index.release("gamma", "1.1", days=10)
        assert (await look(team, cache))["demo"].changes == ("~ gamma 1.0 → 1.1",)
        assert await site.built_repository.delete_manifest(base_layout.digest)
    found = (await look(team, cache))["demo"]
    assert (found.status, found.changes) == ("unchanged", ())
    assert "a report builds none" in found.reason


def empty(folder: Path) -> None:
    """A channel whose packages were all taken back."""
    for file in folder.glob("*/repodata.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"packages": {}, "packages.conda": {}}))


@pytest.mark.parametrize("breaks", [shutil.rmtree, empty])
async def test_a_channel_that_cannot_be_read_is_a_failure_also_where_packages_are_young(
    team: Team, conda_channel: Path, cache: Path, tmp_path: Path, breaks: Callable[[Path], None]
) -> None:
    """What is waited for is age alone: neither a channel that is gone, nor one without the packages."""
    folder = tmp_path / "channel"
    shutil.copytree(conda_channel, folder)
    channel = Channel(folder)
    channel.add(CondaPackage("young", noarch="generic", timestamp=int(time.time() * 1000)))
    for file in folder.glob("*/repodata.json"):  # what was there stays listed
        known = json.loads((conda_channel / file.relative_to(folder)).read_text())
        told = json.loads(file.read_text())
        for kind in ("packages", "packages.conda"):
            told[kind] = {**known.get(kind, {}), **told.get(kind, {})}
        file.write_text(json.dumps(told))
    wanted = EnvironmentDefinition(
        name="demo", conda_dependencies=("python=3.11", "young"), conda_channels=(channel.url,)
    )
    await build(team, wanted, cache)
    found = (await look(team, tmp_path / "worker"))["demo"]
    assert found.status == "unchanged" and "they are waited for" in found.reason
    breaks(folder)
    found = (await look(team, tmp_path / "empty-worker"))["demo"]
    assert (found.status, found.changes) == ("failed", ())


async def test_a_young_pre_release_that_only_a_package_asks_for_stays(team: Team, index: Releases, cache: Path) -> None:
    """So does a release of another epoch."""
    index.release("zeta", "1.0", days=50, requires=("gamma>=2.0a1", "theta"))
    index.release("gamma", "2.0a1", days=0.1)
    index.release("theta", "2024.1", days=50)
    index.release("theta", "1!1.0", days=0.1)
    await build(team, index.define("zeta"), cache)
    assert (await look(team, cache))["demo"].status == "unchanged"
    index.uploaded.update(dict.fromkeys(index.uploaded, ago(10)))
    limit = AgeLimit.of_days(3)
    async with open_site(team, cache=cache) as site:
        assert [one.status for one in await find_drift(site, age=limit)] == ["unchanged"]
