"""What the flow adds to bare core, and how much of it is Prefect's own; one process, a real server, a warmed-up client.

python -m benchmarks.flow '{"api": "http://127.0.0.1:4200/api", "base": "oci:…", "wheels": "…", "folder": "…"}'
"""

import asyncio
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import ours

TIMES = 5


def measure(order: dict[str, Any]) -> dict[str, float]:
    """Median seconds of each way to the same small image, three tasks of a flow or none, on a layout."""
    os.environ |= {"PREFECT_API_URL": order["api"], "PREFECT_LOGGING_TO_CONSOLE": "false"}
    from prefect import flow, task  # noqa: PLC0415 - after its settings

    from prefect_environments import EnvironmentDefinition, Workspace  # noqa: PLC0415
    from prefect_environments.flows import build_environment  # noqa: PLC0415

    logging.disable(logging.INFO)
    folder = Path(order["folder"])
    given = {"base_image": order["base"], "find_links": (order["wheels"],), "no_index": True}

    @task(persist_result=False)
    def nothing() -> None:
        return None

    @flow(name="empty", persist_result=False)
    def with_tasks(count: int) -> None:
        for _ in range(count):
            nothing()

    def core(name: str) -> None:
        lines = [*order["requirements"], "--no-index", f"--find-links {order['wheels']}"]
        wanted = {"registry": f"oci:{folder / 'core'}", "base": order["base"], "name": name, "requirements": lines}
        asyncio.run(ours.build({**wanted, "cache": str(folder / "cache"), "versions": str(folder / "versions")}))

    workspace = Workspace.local(folder / "flow")

    def ours_as_flow(name: str) -> None:
        build_environment(
            EnvironmentDefinition(name=name, requirements=tuple(order["requirements"]), **given), workspace
        )

    ways: dict[str, Callable[[str], object]] = {
        "core, new": lambda number: core(f"core-{number}"),
        "flow, new": lambda number: ours_as_flow(f"flow-{number}"),
        "an empty flow of three tasks": lambda _: with_tasks(3),
        "core, unchanged": lambda _: core("core-0"),
        "flow, unchanged": lambda _: ours_as_flow("flow-0"),
        "an empty flow without tasks": lambda _: with_tasks(0),
    }
    return {name: _median(way) for name, way in ways.items()}


def _median(way: Callable[[str], object]) -> float:
    seconds = []
    for number in range(TIMES + 1):  # the first one warms up
        started = time.perf_counter()
        way(str(number))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
