"""Looking into images in a registry: read once, then known by digest."""

from pathlib import Path

import pytest

from prefect_environments.core.errors import DefinitionError, NotFound
from prefect_environments.core.looking import look_inside
from prefect_environments.core.site import open_site
from tests.images.parts import Team, downloads, requests_of
from tests.support.base import BaseLayout
from tests.support.registry import Registry


async def test_layers_are_read_once_for_all_workers(
    team: Team, open_registry: Registry, base_layout: BaseLayout, tmp_path: Path
) -> None:
    own = open_registry.repository_url("images/looked-into:1")  # other tests read the base's own repository
    base_layout.push(own)
    async with open_site(team, cache=tmp_path / "one") as site:
        first = await look_inside(site, own)
    async with open_site(team, cache=tmp_path / "two") as site:
        with requests_of(open_registry) as seen:
            again = await look_inside(site, own)
    assert again == first
    assert first.reference == own and first.interpreters
    layers = downloads([line for line in seen if "/v2/images/looked-into/" in line])
    assert len(layers) == 1  # the config


async def test_what_is_no_image_is_an_error_before_and_after_the_network(
    team: Team, open_base: str, tmp_path: Path
) -> None:
    async with open_site(team, cache=tmp_path / "cache") as site:
        with pytest.raises(DefinitionError):
            await look_inside(site, "not a reference")
        with pytest.raises(DefinitionError):
            await look_inside(site, "")
        with pytest.raises(NotFound):
            await look_inside(site, open_base + "none")
