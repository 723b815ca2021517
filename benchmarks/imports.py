"""How long importing takes: median of fresh interpreters, with bytecode in place as pip leaves it."""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

EVERYTHING = (
    "benchmarks.ours, prefect_environments.core.resolving, prefect_environments.core.building,"
    "prefect_environments.core.distribution.registry"
)
"""Modules of a build that does everything."""

CODES = {
    "nothing": "pass",
    "prefect_environments": "import prefect_environments",
    "….core.definition": "import prefect_environments.core.definition",
    "….core.steps (a layout's warm path)": "import prefect_environments.core.steps",
    "….core.steps, ….core.distribution.registry (a registry's)": (
        "import prefect_environments.core.steps, prefect_environments.core.distribution.registry"
    ),
    "everything that a build needs": f"import {EVERYTHING}",
    "prefect alone": "from prefect import flow, task",
    "….flows": "import prefect_environments.flows",
}


def environment(folder: Path) -> dict[str, str]:
    """This process's environment, but bytecode is written and found, whatever is set here against it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder)}


def measure(folder: Path, times: int = 5) -> dict[str, tuple[float, float]]:
    """Seconds of wall and of CPU time by what is imported; the first run of each, which compiles, is not counted."""
    found = {}
    for name, code in CODES.items():
        runs = [_run(code, folder) for _ in range(times + 1)][1:]
        found[name] = statistics.median(wall for wall, _ in runs), statistics.median(cpu for _, cpu in runs)
    return found


def _run(code: str, folder: Path) -> tuple[float, float]:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(folder))
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
