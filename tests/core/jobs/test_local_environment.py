"""Local environments on a machine that has none yet."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.errors import JobError
from prefect_environments.core.jobs.local_environment import ensure_environment
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.lock.target import ARCHITECTURES, Platform
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import FolderVersionStore
from tests.core.lock.conftest import BASE, TARGET
from tests.images.parts import Team


async def test_a_python_that_is_not_there_is_told_also_where_nothing_was_cached_yet(tmp_path: Path) -> None:
    """Not that uv is missing."""
    own = next(name for name, machine in ARCHITECTURES.items() if machine == platform.machine())
    target = replace(TARGET, python="3.99.0", platform=Platform(own))
    team = Team(RegistrySettings(f"oci:{tmp_path / 'images'}"), FolderVersionStore(tmp_path / "versions", "team"))
    async with open_site(team, cache=tmp_path / "none" / "cache") as site:
        with pytest.raises(JobError, match=r"needs Python 3\.99, which is not on this machine"):
            await ensure_environment(site, Lock(BASE, target, (), ()))
