"""A fleet whose registry goes away in the middle."""

import os
import signal
from pathlib import Path

import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.fleet.build import UNANSWERED, build_environments
from prefect_environments.core.fleet.outcome import FleetOutcome
from prefect_environments.core.site import open_site
from tests.images.parts import Team
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.wheels import make_wheel

MANY = 40


@pytest.fixture
def several(tmp_path: Path) -> list[EnvironmentDefinition]:
    """Many environments, each with a package of its own."""
    index = tmp_path / "index"
    make_wheel(index, "pip", "26.1")
    for number in range(MANY):
        make_wheel(index, f"part{number}", "1.0")
    return [
        EnvironmentDefinition(name=f"e{one}", requirements=(f"part{one}",), find_links=(str(index),), no_index=True)
        for one in range(MANY)
    ]


async def test_a_registry_that_goes_away_is_not_waited_for_by_each_environment(
    fresh_registry: Registry, base_layout: BaseLayout, several: list[EnvironmentDefinition], tmp_path: Path
) -> None:
    """What was built until then counts; after some environments without an answer the others are not tried."""
    base = fresh_registry.repository_url("base:1")
    base_layout.push(base)
    team = Team.on(fresh_registry, tmp_path / "versions", default_base_image=base)
    heard: list[FleetOutcome] = []

    def hear(outcome: FleetOutcome) -> None:
        heard.append(outcome)
        if len(heard) == 2:
            os.kill(fresh_registry.pid, signal.SIGKILL)

    async with open_site(team, cache=tmp_path / "cache") as site:
        found = await build_environments(site, several, concurrency=2, on_outcome=hear)
    assert [one.status for one in heard[:2]] == ["built", "built"]
    assert len(heard) == len(found) == MANY
    failed = [one for one in found if one.status == "failed"]
    assert [one.version for one in found if one.status == "built"] == [1] * (MANY - len(failed))
    skipped = [one for one in failed if one.reason.startswith(f"not tried, as the registry {fresh_registry.address}")]
    assert UNANSWERED <= len(failed) - len(skipped) <= UNANSWERED + 2, [one.reason for one in failed]


async def test_a_base_whose_registry_is_down_stops_only_those_that_lie_on_it(
    fresh_registry: Registry, base_layout: BaseLayout, several: list[EnvironmentDefinition], tmp_path: Path
) -> None:
    base = fresh_registry.repository_url("base:1")
    base_layout.push(base)
    team = Team.on(fresh_registry, tmp_path / "versions", default_base_image=base)
    away = [one.model_copy(update={"base_image": "127.0.0.1:1/base:1"}) for one in several[: UNANSWERED + 1]]
    async with open_site(team, cache=tmp_path / "cache") as site:
        found = await build_environments(site, [*away, several[-1]], concurrency=3)
    assert [one.status for one in found] == [*["failed"] * len(away), "built"]
    assert not any(one.reason.startswith("not tried") for one in found)
