"""A registry that wants a password, with a base image in it, and the build that all fault tests repeat."""

import asyncio
import base64
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.limits import Limits
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.registry_settings import RegistrySettings
from tests.faults.parts import NAME, PATIENT, Plan, lock_of, make_wheels, plan_on, push, team, write_base
from tests.images.parts import Team
from tests.support.leaks import everything_below
from tests.support.registry import Registry as Running


@dataclass(frozen=True)
class Ground:
    """The registry behind the proxy, the plan to push there, and a repository prefix of the test's own."""

    registry: Running
    plan: Plan
    base: str
    """The base's repository path."""
    prefix: str
    folder: Path

    @property
    def authorization(self) -> str:
        pair = f"{self.registry.username}:{self.registry.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    @property
    def repository(self) -> str:
        return f"{self.prefix}/{NAME}"

    def at(
        self, address: str, *, limits: Limits = PATIENT, username: str = "", password: str = ""
    ) -> tuple[Plan, Team]:
        """The plan and a workspace that reach the registry by another address, such as a proxy's."""
        user, secret = username or self.registry.username, password or self.registry.password
        settings = RegistrySettings(address, user, secret, plain_http=True, limits=limits)
        plan = plan_on(f"{address}/{self.base}:1", self.plan.lock, self.plan.digest)
        return plan, team(settings, self.folder / "versions", self.prefix)

    def client(self) -> Registry:
        """A client of our own straight to the registry."""
        return Registry(self.registry.address, credentials=Credentials(self.registry.username, self.registry.password))

    async def open_uploads(self) -> list[Path]:
        """Upload sessions in the test's repositories that could have been deleted, once the registry has finished what
        it had in hand."""
        for _ in range(50):
            if not (found := open_uploads(self.registry, self.prefix)):
                break
            await asyncio.sleep(0.2)
        return found


def open_uploads(registry: Running, prefix: str) -> list[Path]:
    """Upload sessions that a registry holds open and would delete. It refuses that for one which has bytes already
    ("resumed at wrong offset"): such a one waits for the registry's purge, whatever a client does."""
    root = registry.folder / "docker/registry/v2/repositories"
    places = [path for top in root.glob(f"{prefix}*") for path in everything_below(top)]
    found = [path.parent for path in places if path.match("_uploads/*/startedat")]
    return [path for path in found if path.exists() and not _has_bytes(path / "data")]


def _has_bytes(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with the tiny base image `1`."""
    folder = tmp_path_factory.mktemp("base") / "layout"
    asyncio.run(write_base(Layout(folder).repository("")))
    return folder


@pytest.fixture(scope="session")
def plan(wheels: list[Path], base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The plan on the base in its layout, with the digest that a build into another layout gave."""
    folder = tmp_path_factory.mktemp("expected")

    async def prepare() -> Plan:
        locked = await write_base(Layout(base_folder).repository(""))
        unbuilt = plan_on(f"oci:{base_folder}:1", lock_of(wheels, locked))
        there = team(RegistrySettings(f"oci:{folder / 'images'}"), folder / "versions")
        record = await push(unbuilt, there, folder / "cache")
        return replace(unbuilt, digest=record.digest)

    return asyncio.run(prepare())


@pytest.fixture(scope="session")
def base_path(basic_registry: Running) -> str:
    """The repository of the tiny base image in the shared registry."""
    path = f"base/{uuid4().hex[:8]}"

    async def prepare() -> None:
        credentials = Credentials(basic_registry.username, basic_registry.password)
        async with Registry(basic_registry.address, credentials=credentials) as registry:
            await write_base(registry.repository(path))

    asyncio.run(prepare())
    return path


@pytest.fixture
def ground(basic_registry: Running, plan: Plan, base_path: str, tmp_path: Path) -> Ground:
    return Ground(basic_registry, plan, base_path, f"faults/{uuid4().hex[:8]}", tmp_path)
