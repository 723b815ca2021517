"""What the tests of promotions share: a workspace to promote from, and workspaces to promote to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_environments.core import attachments, promote
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.artifact import put_artifact
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.promotion import Promotion
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import FolderVersionStore
from tests.images.conftest import Define
from tests.images.parts import Outcome, Team, build
from tests.support.registry import Registry

KINDS = {attachments.DEFINITION, attachments.LOCK, attachments.SBOM}


@dataclass
class Ground:
    """A dev workspace in a layout with an environment, and a folder for more."""

    dev: Team
    define: Define
    folder: Path

    def workspace(self, place: Registry | Path | RegistrySettings, name: str, prefix: str = "prod") -> Team:
        settings = place if isinstance(place, RegistrySettings) else Team.on(place, self.folder).registry_settings
        versions = FolderVersionStore(self.folder / f"versions-{name}", name)
        return Team(settings, versions, name=name, repository_prefix=prefix)

    async def build(self, *requirements: str, team: Team | None = None, **options: Any) -> Outcome:
        return await build(team or self.dev, self.define(*requirements, **options), self.folder / "cache")

    async def promote(self, target: Team, name: str = "demo", version: int | str = "", **options: str) -> Promotion:
        return await self.between(self.dev, target, name, version, **options)

    async def between(
        self, source: Team, target: Team, name: str = "demo", version: int | str = "", **options: str
    ) -> Promotion:
        """By a worker with an empty cache."""
        cache = self.folder / "worker"
        async with open_site(source, cache=cache) as giver, open_site(target, cache=cache) as taker:
            return await promote.promote(
                giver, taker, name, version, created_by={"flow_run_name": "promoting"}, **options
            )

    @classmethod
    def make(cls, define: Define, folder: Path) -> "Ground":
        versions = FolderVersionStore(folder / "dev", "dev")
        return cls(Team(RegistrySettings(f"oci:{folder / 'dev-images'}"), versions, name="dev"), define, folder)


async def referrers(team: Team, name: str, digest: str) -> set[str]:
    async with open_site(team) as site:
        return {one.digest for one in await site.repository(name).referrers(digest)}


async def put(repository: Repository, kind: str, content: bytes, **options: Any) -> Descriptor:
    """A small artifact."""
    blob = Descriptor(kind, digests.of(content), len(content))
    return await put_artifact(repository, blob, content, **options)
