"""Many environments by prefect-environments' core, in a process of its own; prints what it took as JSON.

python -m benchmarks.fleet_run '{"work": "build", "count": 200, "registry": "127.0.0.1:5000", …}'
"""

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.ours import BenchWorkspace
from prefect_environments.blocks.versions import PrefectVersionStore
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.fleet.build import build_environments
from prefect_environments.core.fleet.status import check_images
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site

PACKAGES, DISTINCT = 40, 200
"""How many packages there are, and differing images; further environments have images that are equal to these."""


def definitions(base: str, wheels: str, count: int) -> list[EnvironmentDefinition]:
    """Environments of random subsets of the packages, the same ones every time."""
    dice, chosen = random.Random(7), dict[tuple[int, ...], None]()
    while len(chosen) < DISTINCT:
        chosen[tuple(sorted(dice.sample(range(PACKAGES), dice.randint(3, 12))))] = None
    subsets = list(chosen)
    return [
        EnvironmentDefinition(
            name=f"env-{number}",
            base_image=base,
            requirements=tuple(f"part{package}" for package in subsets[number % DISTINCT]),
            find_links=(wheels,),
            no_index=True,
        )
        for number in range(count)
    ]


async def run(order: dict[str, Any]) -> dict[str, Any]:
    """Build, find or look at the environments of an order; wall seconds without imports."""
    versions = PrefectVersionStore(order["workspace"])
    workspace = BenchWorkspace(RegistrySettings(order["registry"]), versions, order["workspace"], order["prefix"])
    wanted = definitions(order["base"], order["wheels"], order["count"])
    started = time.perf_counter()
    async with open_site(workspace, cache=Path(order["cache"])) as site:
        if order["work"] == "build":
            states: list[str] = [one.status for one in await build_environments(site, wanted)]
        else:
            states = [one.state for one in await check_images(site, await versions.names())]
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "states": Counter(states),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
