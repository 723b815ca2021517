"""The steps before there is work to do: by which hash an environment is looked for."""

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from prefect_environments.core import steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import VersionRecord
from tests.images.parts import Team


@pytest.mark.parametrize("where", ["git@git.example.com:team/iris.git", "https://git.example.com/team/iris.git"])
async def test_a_git_context_counts_by_its_hash_of_today(where: str, tmp_path: Path) -> None:
    """Only a folder that is not here counts by the hash that its version was registered with."""
    team = Team.on(tmp_path / "images", tmp_path / "versions")
    assert await relied_on(team, f"{where}#{'0' * 40}", tmp_path) == {}
    (today,) = (await relied_on(team, str(tmp_path / "on-another-machine"), tmp_path)).values()
    assert today == datetime.now(UTC).date()


async def relied_on(team: Team, context: str, folder: Path) -> dict[int, date]:
    """The marks of use after a look for a version that was registered long ago under another recipe's hash."""
    wanted = EnvironmentDefinition(name="iris", build_context=context, user_managed=True)
    draft = VersionRecord(
        workspace="team",
        name="iris",
        version=0,
        reference=f"registry.example.com/iris@sha256:{'1' * 64}",
        digest=f"sha256:{'1' * 64}",
        image_hash=f"sha256:{'2' * 64}",
        definition_hash=f"sha256:{'3' * 64}",
        created="2020-01-01T00:00:00+00:00",
        definition=wanted.model_dump(mode="json"),
    )
    record = await team.versions.register(replace(draft, record_hash=context))
    async with open_site(team, cache=folder / "cache") as site:
        assert await steps.find_registered(site, wanted) is None  # the layout has no image
    used = (await team.versions.book("iris")).used
    return {version: day for version, day in used.items() if version == record.version}
