"""A profile of the cold path that anybody can repeat: its stages beside the machine's own limits in the same run.

python -m benchmarks.profile [--rounds 3] [--print]
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from benchmarks import conversion, imports, limits, results
from benchmarks.cold import PACKAGES
from prefect_environments.core import attachments
from prefect_environments.core.distribution.registry import Registry as Client
from prefect_environments.core.versions import FolderVersionStore
from tests.support.base import BaseLayout, base_image
from tests.support.prefect import start_server
from tests.support.registry import start_registry
from tests.support.session import Session, end
from tests.support.wheels import make_wheel

CORES = os.cpu_count() or 1
LIMITS = (
    ("resolve", "`uv pip compile` alone"),
    ("download", "curl, the same wheels, 8 at once"),
    ("convert", f"inflate, CRC and sha256 of every member, {CORES} threads"),
    ("upload", "curl, the same blobs, 4 at once"),
)


@dataclass(frozen=True)
class Round:
    """One cold build, and the limits beside it; seconds."""

    told: dict[str, Any]
    limits: dict[str, float]
    more: dict[str, float]
    wheels: tuple[Path, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often the cold build is measured; the median counts")
    parser.add_argument("--print", action="store_true", help="print the results instead of writing RESULTS.md")
    arguments = parser.parse_args()
    session = Session.join()
    session.isolate()
    try:
        base = base_image()
        rounds = [cold(session, base, number) for number in range(arguments.rounds)]
        sections = [stages_section(rounds), conversion_section(list(rounds[-1].wheels)), imports_section(session)]
        sections.append(flow_section(session, base))
    finally:
        session.close()
    for section in sections:
        print(section) if arguments.print else results.write(section)
    return 0


def cold(session: Session, base: BaseLayout, number: int) -> Round:
    """A build with nothing cached, on a registry with nothing but the base; then what the machine can do."""
    registry, folder = start_registry(session, f"profile-{number}"), session.folder / f"profile-{number}-work"
    folder.mkdir()
    order: dict[str, Any] = {
        "registry": registry.address,
        "base": base.push(registry.repository_url("base/python:3")),
        "name": "bench",
    }
    order |= {"requirements": PACKAGES, "cache": str(folder / "cache"), "versions": str(folder / "versions")}
    environment = {**imports.environment(session.folder / "bytecode"), "UV_CACHE_DIR": str(folder / "uv")}
    subprocess.run([sys.executable, "-c", "import benchmarks.stages"], check=True, env=environment)
    command = [sys.executable, "-m", "benchmarks.stages", json.dumps(order)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    told = json.loads(done.stdout)
    urls, digest = asyncio.run(_built(Path(order["versions"]), registry.address))
    blobs = limits.blobs_of(registry, "environments/bench", digest)[1:]  # the base's own layer is mounted
    wheels = [path for path in (folder / "cache/wheels").iterdir() if path.is_file()]
    fresh = {**os.environ, "UV_CACHE_DIR": str(folder / "uv-alone")}
    found = {
        "resolve": limits.resolve(find_uv_bin(), PACKAGES, folder, "3.11", fresh),
        "download": limits.download(urls, folder / "downloaded-8", 8),
        "convert": limits.convert(wheels, CORES),
        "upload": limits.upload(blobs, registry, "limits/four", 4),
    }
    more = {
        "curl, the same wheels, one connection": limits.download(urls, folder / "downloaded-1", 1),
        "curl, the same blobs, one connection": limits.upload(blobs, registry, "limits/one", 1),
        "inflate, CRC and sha256 of every member, one thread": limits.convert(wheels, 1),
        "sha256 of the wheels, one thread": limits.sha256(wheels),
        "sha256 of the layers, one thread": limits.sha256(blobs),
    }
    end(registry.pid)
    return Round(told, found, more, tuple(wheels))


async def _built(versions: Path, address: str) -> tuple[list[str], str]:
    """The addresses of the wheels, and the image's digest, of what was just registered."""
    record = await FolderVersionStore(versions, "bench").newest("bench")
    assert record is not None
    async with Client(address) as client:
        lock = await attachments.read_lock(client.repository("environments/bench"), record.lock_digest)
    return [str(package.url) for package in lock.packages], record.digest


def stages_section(rounds: list[Round]) -> str:
    def median(of: Callable[[Round], float]) -> float:
        return statistics.median(map(of, rounds))

    last = rounds[-1].told
    lines = [
        "## The cold path, stage by stage",
        "",
        f"`python -m benchmarks.profile`, median of {len(rounds)} rounds; with the clocks that measure it. "
        f"{results.machine()}",
        "",
        "*Busy* is the wall time in which a stage was at work; downloads, conversions and uploads run side",
        "by side. *Limit* is what this machine does with the same bytes, in the same run.",
        "",
        "| stage | busy, s | calls | limit, s | limit is |",
        "|---|--:|--:|--:|---|",
    ]
    known = dict(LIMITS)
    for stage, span in last["spans"].items():
        busy = median(lambda found, stage=stage: found.told["spans"][stage]["busy"])  # type: ignore[misc]
        limit = f"{median(lambda found, stage=stage: found.limits[stage]):.2f}" if stage in known else ""  # type: ignore[misc]
        lines.append(f"| {stage} | {busy:.2f} | {span['calls']} | {limit} | {known.get(stage, '')} |")
    wall = median(lambda found: found.told["seconds"]["wall"])
    working = median(lambda found: found.told["seconds"]["wall"] - found.told["stages"]["import"])
    floor = median(lambda found: sum(found.limits.values()))
    cpu = median(lambda found: found.told["seconds"]["cpu"])
    lines += [
        "",
        f"Together {wall:.2f} s, {working:.2f} s without imports: **{working / floor:.2f}** times the limits' sum of "
        f"{floor:.2f} s. CPU time {cpu:.2f} s, uv included, {last['requests']} requests to the registry.",
        "",
        "More limits: "
        + "; ".join(f"{name} {median(lambda r, name=name: r.more[name]):.2f} s" for name in rounds[0].more)  # type: ignore[misc]
        + ".",
    ]
    return "\n".join(lines) + "\n"


def conversion_section(wheels: list[Path]) -> str:
    """The wheels of the cache are called by their hash; conversion wants their names, which their metadata has."""
    with tempfile.TemporaryDirectory() as name:
        named = [_named(path, Path(name)) for path in wheels]
        files, seconds, table = conversion.measure(sorted(named))
    lines = [
        "## Conversion of wheels to layers, function by function",
        "",
        f"{len(wheels)} wheels, {files} files, one thread: {seconds:.2f} s of CPU time without a profiler. Own time by",
        "cProfile, which makes short functions look longer than they are:",
        "",
        "| own, s | calls | function |",
        "|--:|--:|---|",
    ]
    return "\n".join([*lines, *(f"| {own:.2f} | {calls} | `{name}` |" for name, calls, own in table)]) + "\n"


def _named(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        tag = next(line[5:] for line in archive.read(info).decode().splitlines() if line.startswith("Tag: "))
    path = folder / f"{info.partition('.dist-info')[0]}-{tag}.whl"
    shutil.copy(wheel, path)
    return path


def imports_section(session: Session) -> str:
    lines = [
        "## Import times",
        "",
        f"Median of 5 fresh interpreters, bytecode in place. {results.machine()}",
        "",
        "| imported | wall, s | CPU, s |",
        "|---|--:|--:|",
    ]
    found = imports.measure(session.folder / "bytecode")
    return "\n".join([*lines, *(f"| {name} | {wall:.2f} | {cpu:.2f} |" for name, (wall, cpu) in found.items())]) + "\n"


def flow_section(session: Session, base: BaseLayout) -> str:
    wheels = session.folder / "flow-wheels"
    for name in ("pip", "alpha", "beta"):
        make_wheel(wheels, name, "1.0")
    folder = session.folder / "flow"
    folder.mkdir()
    order = {"api": start_server(session)["url"], "base": base.reference, "wheels": str(wheels), "folder": str(folder)}
    command = [sys.executable, "-m", "benchmarks.flow", json.dumps({**order, "requirements": ["alpha", "beta"]})]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    new, unchanged = found["flow, new"] - found["core, new"], found["flow, unchanged"] - found["core, unchanged"]
    lines = [
        "## The flow beside bare core",
        "",
        f"A small environment on a layout, a Prefect server on loopback, one process. {results.machine()}",
        "",
        "| what | seconds |",
        "|---|--:|",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in found.items()),
        "",
        f"The flow adds {new:.2f} s to a new image, {found['an empty flow of three tasks']:.2f} s of it Prefect's own, "
        f"and {unchanged:.2f} s to an unchanged one, {found['an empty flow without tasks']:.2f} s of it Prefect's own.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
