"""Build the image of a lock in a process of its own: `python -m tests.images.rebuild <JSON>`; prints its digest."""

import asyncio
import json
import os
import sys
from pathlib import Path

from prefect_environments.core import steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import FolderVersionStore
from tests.images.parts import Team


async def main() -> None:
    given = json.loads(sys.argv[1])
    os.umask(given["umask"])
    team = Team(
        RegistrySettings(given["address"]), FolderVersionStore(given["versions"], "team"), repository_prefix="again"
    )
    lock = Lock.from_pylock(Path(given["lock"]).read_text())
    definition = EnvironmentDefinition(name=given["name"], base_image=given["base"])
    async with open_site(team, cache=Path(given["cache"])) as site:
        built = await steps.build(site, definition, lock)
    print(built.descriptor.digest)


if __name__ == "__main__":
    asyncio.run(main())
