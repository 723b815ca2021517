"""What `compile_bytecode` costs and gives: seconds to build, bytes of layers, the first import in a fresh container.

python -m benchmarks.bytecode [--rounds 5] [--print]
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.cold import PACKAGES
from benchmarks.ours import BenchWorkspace
from prefect_environments.core import steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import FolderVersionStore
from tests.support.base import base_image
from tests.support.engine import DockerEngine, start_engine
from tests.support.registry import Registry, start_registry
from tests.support.session import Session

TIMED = (
    "import time; t, c = time.perf_counter(), time.process_time(); import numpy, pandas, sklearn; "
    "print(time.perf_counter() - t, time.process_time() - c)"
)
WAYS = {False: "without", True: "with bytecode"}


@dataclass
class Way:
    """What was measured of one way: seconds of wall and CPU time, bytes of all layers as stored and unpacked."""

    built: list[float] = field(default_factory=list)
    build_cpu: list[float] = field(default_factory=list)
    imported: list[float] = field(default_factory=list)
    import_cpu: list[float] = field(default_factory=list)
    container: list[float] = field(default_factory=list)
    stored: int = 0
    unpacked: int = 0
    reference: str = ""


async def build(order: dict[str, Any]) -> dict[str, Any]:
    """Resolve, assemble and push by a worker whose disk is empty, wheels and uv's cache apart."""
    store = FolderVersionStore(Path(order["versions"]), "bench")
    workspace = BenchWorkspace(RegistrySettings(order["registry"]), store, repository_prefix=order["prefix"])
    definition = EnvironmentDefinition(
        name="bench",
        base_image=order["base"],
        requirements=tuple(PACKAGES),
        compile_bytecode=order["bytecode"],
    )
    async with open_site(workspace, cache=Path(order["cache"])) as site:
        lock = await steps.resolve(site, definition)
        started = time.perf_counter()
        built = await steps.build(site, definition, lock)
        seconds = time.perf_counter() - started
        repository = site.repository(definition.name)
        manifest = ImageManifest.from_bytes((await repository.get_manifest(built.descriptor.digest)).content)
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": seconds,
        "cpu": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        "stored": sum(layer.size for layer in manifest.layers),
        "packages": len(lock.packages),
        "reference": built.reference,
    }


def run_build(registry: Registry, base: str, folder: Path, bytecode: bool, number: int) -> dict[str, Any]:
    order = {
        "registry": registry.address,
        "base": base,
        "prefix": f"round-{number}/{'with' if bytecode else 'without'}",
        "versions": str(folder / f"versions-{number}-{bytecode}"),
        "cache": str(folder / "cache"),
        "bytecode": bytecode,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bytecode", "--build", json.dumps(order)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "UV_CACHE_DIR": str(folder / "uv")},
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def measure(session: Session, rounds: int) -> tuple[dict[bool, Way], int]:
    """Both ways in turn, so that both see the same machine; the wheels are on disk in every round."""
    registry, engine = start_registry(session, "bench-bytecode"), DockerEngine(**start_engine(session))
    base = base_image().push(registry.repository_url("base/python:3"))
    found, packages = {way: Way() for way in WAYS}, 0
    run_build(registry, base, session.folder, False, 0)
    for number in range(1, rounds + 1):
        for bytecode, way in found.items():
            told = run_build(registry, base, session.folder, bytecode, number)
            way.built.append(told["seconds"])
            way.build_cpu.append(told["cpu"])
            way.stored, way.reference, packages = told["stored"], told["reference"], told["packages"]
    for way in found.values():
        engine.pull(way.reference)
        way.unpacked = int(engine.docker("inspect", "--format", "{{.Size}}", way.reference))
        engine.run(way.reference, "python", "-c", TIMED)  # the files are in the page cache after this
    for _ in range(rounds):
        for way in found.values():
            started = time.perf_counter()
            imported, cpu = map(float, engine.run(way.reference, "python", "-c", TIMED).split())
            way.imported.append(imported)
            way.import_cpu.append(cpu)
            way.container.append(time.perf_counter() - started)
    return found, packages


def report(found: dict[bool, Way], packages: int, rounds: int) -> str:
    lines = [
        "## Bytecode",
        "",
        f"`python -m benchmarks.bytecode`, median of {rounds} rounds, {packages} wheels (numpy, pandas, scikit-learn,",
        "scipy, matplotlib … on a Debian base with Python), wheels on disk, nothing in the registry.",
        results.conditions(),
        "",
        "| | build, s | CPU, s | stored, MB | unpacked, MB | first import, s | CPU, s | `docker run` of it, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for bytecode, way in found.items():
        times = (way.built, way.build_cpu, way.imported, way.import_cpu, way.container)
        built, build_cpu, imported, import_cpu, container = map(statistics.median, times)
        lines.append(
            f"| {WAYS[bytecode]} | {built:.2f} | {build_cpu:.1f} | {way.stored / 1e6:.1f} | {way.unpacked / 1e6:.0f} "
            f"| {imported:.2f} | {import_cpu:.2f} | {container:.2f} |"
        )
    lines += [
        "",
        "*Build* is assembling and pushing; its CPU that of the process and its children. *Stored* and *unpacked*",
        "are all layers, the base's too. *First import*: `import numpy, pandas, sklearn` in a new container each time,",
        "its files in the page cache.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured; the median counts")
    parser.add_argument("--print", action="store_true", help="print the results instead of writing RESULTS.md")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        print(json.dumps(asyncio.run(build(json.loads(arguments.build)))))
        return 0
    session = Session.join()
    session.isolate()
    try:
        text = report(*measure(session, arguments.rounds), arguments.rounds)
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
