"""Many environments: cold, warm, and the status of what is registered, with growth; beside a loop of skopeo.

python -m benchmarks.fleet [--rounds 3] [--sizes 10,50,200,1000] [--print]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.fleet_run import DISTINCT, PACKAGES
from benchmarks.plot import Line, plot
from tests.support.base import base_image
from tests.support.prefect import start_server
from tests.support.registry import Registry, start_registry
from tests.support.session import Session
from tests.support.wheels import make_wheel

PLOT = Path(__file__).parents[1] / "docs" / "images" / "fleet.svg"
SIZES = (10, 50, 200, 1000)
PEER = "skopeo inspect, one after the other"
PEER_MANY = "skopeo inspect, 8 at once"


@dataclass(frozen=True)
class Took:
    """What one run took. Requests are the registry's; seconds are without imports."""

    work: str
    count: int
    seconds: float
    requests: int
    peak_mib: float


@dataclass
class Ground:
    """What all runs share."""

    registry: Registry
    folder: Path
    base: str
    wheels: Path

    @classmethod
    def prepare(cls, session: Session) -> "Ground":
        registry, folder = start_registry(session, "bench-fleet"), session.folder / "fleet"
        make_wheel(folder / "wheels", "pip", "26.1")
        for number in range(PACKAGES):
            content = random.Random(number).randbytes(5_000 + 1_000 * number)
            make_wheel(folder / "wheels", f"part{number}", "1.0", {f"part{number}/data.bin": content})
        base = base_image().push(registry.repository_url("base/python:3"))
        return cls(registry, folder, base, folder / "wheels")

    def run(self, work: str, name: str, count: int) -> Took:
        """`build` or `status` in a process of its own, in the workspace for a size."""
        order = {
            "work": "status" if work == "status" else "build",
            "count": count,
            "workspace": name,
            "registry": self.registry.address,
            "prefix": name,
            "base": self.base,
            "wheels": str(self.wheels),
            "cache": str(self.folder / f"cache-{name}"),
        }
        before = len(self.registry.requests())
        command = [sys.executable, "-m", "benchmarks.fleet_run", json.dumps(order)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        unexpected = told["states"].keys() - {"cold": {"built", "reused"}, "warm": {"ready"}, "status": {"there"}}[work]
        assert not unexpected and sum(told["states"].values()) == count, told
        asked = len(self.registry.requests()) - before
        return Took(work, count, told["seconds"], asked, told["peak_mib"])

    def peer(self, name: str, count: int) -> dict[str, float]:
        """Seconds that skopeo takes to ask for the manifests of as many environments."""
        images = [f"docker://{self.registry.repository_url(f'{name}/env-{number}')}" for number in range(count)]
        found = {}
        for what, at_once in ((PEER, 1), (PEER_MANY, 8)):
            inspect = ["xargs", "-n1", f"-P{at_once}", "skopeo", "inspect", "--raw", "--tls-verify=false"]
            tagged = "\n".join(f"{image}:{self.tag(name, number)}" for number, image in enumerate(images))
            started = time.perf_counter()
            subprocess.run(inspect, input=tagged, text=True, check=True, stdout=subprocess.DEVNULL)
            found[what] = time.perf_counter() - started
        return found

    def tag(self, name: str, number: int) -> str:
        """The tag of an environment's image; an image's tag is its hash."""
        tags = self.registry.folder / f"docker/registry/v2/repositories/{name}/env-{number}/_manifests/tags"
        return min(path.name for path in tags.iterdir() if len(path.name) == 64)


def measure(session: Session, sizes: list[int], rounds: int) -> tuple[list[Took], dict[str, float]]:
    """Each size in a workspace of its own, built once; the peer's seconds are for the largest that differ all."""
    ground, found = Ground.prepare(session), list[Took]()
    peer: dict[str, float] = {}
    for count in sizes:
        name = f"fleet{count}"
        for work in ("cold", "warm", "status"):
            several = [ground.run(work, name, count) for _ in range(1 if work == "cold" else rounds)]
            found.append(sorted(several, key=lambda took: took.seconds)[len(several) // 2])
            print(found[-1], file=sys.stderr)
        if count == max(size for size in sizes if size <= DISTINCT):
            peer = ground.peer(name, count)
    return found, peer


def report(found: list[Took], peer: dict[str, float], rounds: int) -> str:
    lines = [
        "## Many environments at once",
        "",
        f"`python -m benchmarks.fleet`, warm and status the median of {rounds} rounds, cold one.",
        results.conditions(),
        "",
        f"Environments of random subsets of {PACKAGES} small packages, {DISTINCT} of them different, the others equal",
        "to one of these; a docker-registry and a Prefect server on loopback, which share the machine. *Cold*: nothing",
        "is there. *Warm*: all is built, from one process that starts. *Status*: is each registered image still there?",
        "Seconds without imports, requests to the registry.",
        "",
        "| what | environments | seconds | requests | requests each | peak, MiB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for work in ("cold", "warm", "status"):
        for one in (took for took in found if took.work == work):
            each = one.requests / one.count
            lines.append(
                f"| {work} | {one.count:,} | {one.seconds:.2f} | {one.requests:,} | {each:.1f} | {one.peak_mib:.0f} |"
            )
    compared = max(one.count for one in found if one.count <= DISTINCT)
    ours = next(one.seconds for one in found if (one.work, one.count) == ("status", compared))
    lines += ["", f"The status of {compared} environments beside other ways to ask the registry, in the same run:", ""]
    lines += ["| way | seconds | ratio |", "|---|--:|--:|", f"| prefect-environments | {ours:.2f} | 1 |"]
    lines += [f"| {what} | {seconds:.2f} | **{seconds / ours:.1f}** |" for what, seconds in peer.items()]
    return "\n".join(lines) + "\n"


def draw(found: list[Took]) -> str:
    """The growth as an SVG: seconds over the number of environments, both logarithmic."""
    lines = [
        Line(work, [(one.count, one.seconds) for one in found if one.work == work])
        for work in ("cold", "warm", "status")
    ]
    return plot(lines, across="environments", up="seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often warm and status are measured")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of environments")
    parser.add_argument("--print", action="store_true", help="print the results instead of writing them")
    arguments = parser.parse_args()
    session = Session.join()
    session.isolate()
    try:
        os.environ["PREFECT_API_URL"] = start_server(session)["url"]
        found, peer = measure(session, sorted(map(int, arguments.sizes.split(","))), arguments.rounds)
    finally:
        session.close()
    if arguments.print:
        print(report(found, peer, arguments.rounds))
    else:
        results.write(report(found, peer, arguments.rounds))
        PLOT.write_text(draw(found))
        print(f"written to {results.RESULTS} and {PLOT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
