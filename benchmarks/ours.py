"""One build by prefect-environments' core, in a process of its own; prints what it took as JSON.

python -m benchmarks.ours '{"registry": "127.0.0.1:5000", "base": "…", "requirements": ["numpy"], …}'
"""

import time

STARTED = time.perf_counter()

from prefect_environments.cli import collect_seldom  # noqa: E402

if __name__ == "__main__":
    collect_seldom()  # before all other imports, as the command line does

import asyncio  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from prefect_environments.core import steps  # noqa: E402
from prefect_environments.core.definition import EnvironmentDefinition  # noqa: E402
from prefect_environments.core.registry_settings import RegistrySettings  # noqa: E402
from prefect_environments.core.secrets import SecretReference, SecretStore  # noqa: E402
from prefect_environments.core.site import open_site  # noqa: E402
from prefect_environments.core.versions import FolderVersionStore, VersionStore  # noqa: E402


def peak_of(pid: int) -> float:
    """The most memory that a process ever had, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


class NoSecrets:
    async def get(self, reference: SecretReference) -> str:
        raise KeyError(str(reference))


@dataclass
class BenchWorkspace:
    """A workspace without Prefect: versions in a folder."""

    registry_settings: RegistrySettings
    versions: VersionStore
    name: str = "bench"
    repository_prefix: str = "environments"
    default_base_image: str | None = None
    allow_source_builds: bool = False
    index_url: str | None = None

    @property
    def secrets(self) -> SecretStore:
        return NoSecrets()

    @property
    def index_credentials(self) -> Mapping[str, tuple[str, str]]:
        return {}


async def build(order: dict[str, Any]) -> dict[str, Any]:
    workspace = BenchWorkspace(
        RegistrySettings(order["registry"]), FolderVersionStore(Path(order["versions"]), "bench")
    )
    definition = EnvironmentDefinition(
        name=order["name"], base_image=order["base"], requirements=tuple(order["requirements"])
    )
    stages, converting = {"import": time.perf_counter() - STARTED}, 0.0
    async with open_site(workspace, cache=Path(order["cache"])) as site:
        started = time.perf_counter()
        ready = await steps.find_registered(site, definition)
        stages["find"] = time.perf_counter() - started
        if ready is None:
            started = time.perf_counter()
            lock = await steps.resolve(site, definition)
            stages["resolve"] = time.perf_counter() - started
            started = time.perf_counter()
            built = await steps.build(site, definition, lock)
            stages["assemble and push"] = time.perf_counter() - started
            started = time.perf_counter()
            await steps.register(site, definition, built)
            stages["register"] = time.perf_counter() - started
            converting = sum(peak_of(pid) for pid in site.converters.pids)
        traffic = getattr(site.store, "traffic", None)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "stages": stages,
        "requests": traffic.requests if traffic else 0,
        "peak_mib": own + converting,
        "own_seconds": time.perf_counter() - STARTED,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(build(json.loads(sys.argv[1])))))
    gc.freeze()  # as the command line ends
