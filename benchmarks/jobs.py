"""From "run" to the first line of a script whose image is ready: as a process, in Docker, by a docker worker; each
beside the bare command, and where the time goes.

python -m benchmarks.jobs [--rounds 5] [--print]
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import results
from tests.support.base import base_image
from tests.support.engine import DockerEngine, start_engine
from tests.support.prefect import start_server
from tests.support.registry import Registry, start_registry
from tests.support.session import Session
from tests.support.wheels import make_wheel

TIMED = """\
import time
first = time.time()
from prefect_environments import Run
Run.get_context().log("first", first)
"""
BARE = "import time\nprint(time.time())\n"
POOL = "bench"
PYTHON = "/opt/runtime/bin/python"
DOCKER_RUN = ["docker", "run", "--rm", "--network=host"]
PROCESS, DOCKER, WORKER = "a process", "local Docker", "a docker worker"
ROWS = ("bare command", "core", "flow")
STEPS = ("job image looked up", "worker takes the run", "container starts", "Prefect starts in it", "first line")
IMPORTS = {
    "Python": "pass",
    "and Prefect's engine": "import prefect.engine, prefect.flow_engine",
    "and our flow": "import prefect.engine, prefect.flow_engine, prefect_environments.flows.job",
}
CPU = "import resource; used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"


@dataclass
class Ground:
    """What all rounds share: a workspace with a ready image, the source, the engine."""

    workspace: Any
    ready: Any
    source: Path
    engine: DockerEngine

    def config(self, target: str, **fields: Any) -> Any:
        from prefect_environments import ScriptRunConfig  # noqa: PLC0415 - after its settings

        given = {"source_directory": str(self.source), "script": "train.py", "environment": self.ready, "outputs": ""}
        return ScriptRunConfig(**{**given, "compute_target": target, **fields})

    def core(self, target: str) -> float:
        """Seconds to the first line without Prefect."""
        from prefect_environments.core.jobs import run  # noqa: PLC0415
        from prefect_environments.core.site import open_site  # noqa: PLC0415

        async def work() -> float:
            started = time.time()
            record = await run.find_environment(self.workspace, self.config(target).environment)
            async with open_site(self.workspace) as site:
                result = await run.run_job(site, self.config(target), record)
            return float(result.metrics["first"]) - started

        return asyncio.run(work())

    def flow(self, target: str) -> float:
        """Seconds to the first line by the flow, in a process that has imported Prefect."""
        return self._flow(target)[0]

    def _flow(self, target: str) -> tuple[float, float, Any]:
        from prefect_environments.flows import run_training_job  # noqa: PLC0415

        started = time.time()
        result = run_training_job(self.config(target), self.workspace)
        first = float(result.metrics["first"])
        return first - started, started, result

    def worker(self) -> tuple[float, dict[str, float]]:
        """Seconds to the first line by a worker, and by step."""
        from tests.support.pool import runs_of_jobs  # noqa: PLC0415

        total, started, result = self._flow(POOL)
        (child,) = runs_of_jobs(f"job-{result.id}")
        assert child.created is not None and child.start_time is not None
        container = self.container_started(child.name, started)
        marks = [started, child.created.timestamp(), container[0], container[1]]
        marks += [child.start_time.timestamp(), started + total]
        return total, dict(zip(STEPS, (after - before for before, after in pairwise(marks)), strict=True))

    def container_started(self, name: str, since: float) -> tuple[float, float]:
        """When the engine made and started a container."""
        options = ["--since", f"{since:.3f}", "--until", f"{time.time():.3f}", "--filter", f"container={name}"]
        told = self.engine.docker("events", *options, "--format", "{{json .}}")
        events = {event["Action"]: event["timeNano"] / 1e9 for event in map(json.loads, told.splitlines())}
        return events["create"], events["start"]

    def job_image(self) -> str:
        """The image of the last job of the pool."""
        from tests.support.pool import runs_of_jobs  # noqa: PLC0415

        return str((runs_of_jobs()[0].job_variables or {})["image"])


def bare(command: list[str], **options: Any) -> float:
    """Seconds to the first line of a command that prints the time."""
    started = time.time()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options)
    return float(done.stdout) - started


def prepare(session: Session, registry: Registry, engine: DockerEngine) -> Ground:
    from prefect_environments import ContainerRegistry, EnvironmentDefinition, Workspace  # noqa: PLC0415
    from prefect_environments.flows import build_environment  # noqa: PLC0415

    wheels = session.folder / "bench-wheels"
    for name in ("pip", "alpha"):
        make_wheel(wheels, name, "1.0")
    source = session.folder / "bench-source"
    source.mkdir()
    (source / "train.py").write_text(TIMED)
    (source / "bare.py").write_text(BARE)
    workspace = Workspace(
        name="bench", registry=ContainerRegistry(address=registry.address, plain_http=True), repository_prefix="bench"
    )
    base = base_image().push(registry.repository_url("base/python:3"))
    wanted = EnvironmentDefinition(
        name="bench", base_image=base, requirements=("alpha",), find_links=(str(wheels),), no_index=True
    )
    return Ground(workspace, build_environment(wanted, workspace), source, engine)


@dataclass(frozen=True)
class Found:
    """Median seconds by target and way, of the worker by step, and of CPU time to import in a job's container."""

    ways: dict[str, dict[str, float]]
    steps: dict[str, float]
    imports: dict[str, float]


def measure(session: Session, rounds: int) -> Found:
    from prefect_environments.core import loop  # noqa: PLC0415
    from prefect_environments.core.jobs.local_docker import NETWORK_VARIABLE  # noqa: PLC0415
    from tests.support.pool import docker_worker, make_docker_pool  # noqa: PLC0415

    registry, engine = start_registry(session, "bench-jobs"), DockerEngine(**start_engine(session))
    os.environ |= {NETWORK_VARIABLE: "host", **{k: v for k, v in engine.environment.items() if v}}
    ground = prepare(session, registry, engine)
    python = loop.run(local_python(ground))
    make_docker_pool(POOL)
    steps: list[dict[str, float]] = []
    with docker_worker(session, POOL, engine):
        found = {
            target: {name: median(way, rounds) for name, way in of.items()}
            for target, of in ways_of(ground, python, steps).items()
        }

        def imported(code: str) -> float:
            return float(engine.run(ground.job_image(), PYTHON, "-I", "-c", f"{code}; {CPU}"))

        cpu = {name: median(partial(imported, code), rounds) for name, code in IMPORTS.items()}
    return Found(found, {name: statistics.median(one[name] for one in steps[1:]) for name in STEPS}, cpu)


def ways_of(ground: Ground, python: str, steps: list[dict[str, float]]) -> dict[str, dict[str, Callable[[], float]]]:
    """What is measured; the worker's steps are added to `steps`."""

    def by_worker() -> float:
        total, taken = ground.worker()
        steps.append(taken)
        return total

    def in_image(image: str) -> float:
        mounted = ["--volume", f"{ground.source}:/job", "--workdir=/job"] if image == ground.ready.reference else []
        return bare([*DOCKER_RUN, "--init", *mounted, image, ground.ready.python_path, "bare.py"])

    return {
        PROCESS: {
            "bare command": lambda: bare([python, "bare.py"], cwd=ground.source),
            "core": lambda: ground.core("local:process"),
            "flow": lambda: ground.flow("local:process"),
        },
        DOCKER: {
            "bare command": lambda: in_image(ground.ready.reference),
            "core": lambda: ground.core("local:docker"),
            "flow": lambda: ground.flow("local:docker"),
        },
        WORKER: {"flow": by_worker, "bare command": lambda: in_image(ground.job_image())},
    }


async def local_python(ground: Ground) -> str:
    """The interpreter of the local environment, made here."""
    from prefect_environments.core.jobs import run  # noqa: PLC0415
    from prefect_environments.core.jobs.local_environment import ensure_environment  # noqa: PLC0415
    from prefect_environments.core.site import open_site  # noqa: PLC0415

    record = await run.find_environment(ground.workspace, ground.ready.name)
    async with open_site(ground.workspace) as site:
        return str(await ensure_environment(site, await run.lock_of(site, record)))


def median(way: Callable[[], float], rounds: int) -> float:
    """The first one, which pulls images and fills caches, is not counted."""
    return statistics.median([way() for _ in range(rounds + 1)][1:])


def report(found: Found, rounds: int) -> str:
    lines = [
        '## From "run" to the first line of a script',
        "",
        f"`python -m benchmarks.jobs`, median of {rounds} rounds. Ready are the image and the job's image, both in",
        f"the engine. {results.conditions()}",
        "",
        "| job in | bare command, s | core alone, s | `run_training_job`, s |",
        "|---|--:|--:|--:|",
    ]
    for target, row in found.ways.items():
        cells = [f"{row[name]:.2f}" if name in row else "" for name in ROWS]
        lines.append(f"| {target} | {' | '.join(cells)} |")
    lines += [
        "",
        "*Bare*: `python` of the same environment; `docker run` of the same image, `python` and the script. The flow",
        "runs in a process that has imported Prefect, with a server on loopback. The worker asks for work every second",
        "(`PREFECT_WORKER_QUERY_SECONDS=1`; by default it is every ten). Its seconds by step:",
        "",
        "| step | seconds |",
        "|---|--:|",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in found.steps.items()),
        "",
        "CPU seconds of what is imported in the container before the job can begin, each row with those above it:",
        "",
        "| imported | CPU, s |",
        "|---|--:|",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in found.imports.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured; the median counts")
    parser.add_argument("--print", action="store_true", help="print the results instead of writing RESULTS.md")
    arguments = parser.parse_args()
    session = Session.join()
    session.isolate()
    try:
        os.environ |= {"PREFECT_API_URL": start_server(session)["url"], "PREFECT_LOGGING_TO_CONSOLE": "false"}
        text = report(measure(session, arguments.rounds), arguments.rounds)
    finally:
        session.close()
    if arguments.print:
        print(text)
    else:
        results.write(text)
        print(f"written to {results.RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
