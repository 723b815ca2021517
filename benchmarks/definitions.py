"""Build contexts and conda environments: hashing 20,000 files, and adding one conda package to 100; beside peers.

python -m benchmarks.definitions [--rounds 3] [--print]
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from benchmarks.cold import CLIENT, stored
from benchmarks.ours import BenchWorkspace
from prefect_environments.core import steps
from prefect_environments.core.build.docker.context import context_digest
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import FolderVersionStore
from tests.support.base import BaseLayout, base_image
from tests.support.channel import SUBDIR, Channel, standard_channel, synthetic
from tests.support.engine import DockerEngine, start_engine
from tests.support.registry import start_registry
from tests.support.session import Session

FILES = 20_000
FILE_SIZE = 2_000
PACKAGES = 100
PACKAGE_SIZE = 200_000
CASES = {"cold": 0, "one added": 1, "one added, empty worker": 2}
"""What is measured, with how many packages it has more than `PACKAGES`."""


@dataclass(frozen=True)
class Taken:
    """One way to have something done: seconds of wall time, bytes that went to the registry, layers that were new."""

    seconds: float
    sent: int = 0
    layers: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured; the median counts")
    parser.add_argument("--print", action="store_true", help="print the results instead of writing RESULTS.md")
    arguments = parser.parse_args()
    session = Session.join()
    session.isolate()
    try:
        sections = measure(session, arguments.rounds)
    finally:
        session.close()
    for section in sections:
        print(section) if arguments.print else results.write(section)
    return 0


def measure(session: Session, rounds: int) -> list[str]:
    """The sections of RESULTS.md. Whoever owns the session ends what was started."""
    engine, base = DockerEngine(**start_engine(session)), base_image()
    contexts = [measure_context(session.folder / f"context-{number}", engine) for number in range(rounds)]
    found = [measure_conda(session, f"conda-{number}", base) for number in range(rounds)]
    return [context_section(contexts), conda_section(found)]


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# ---- a build context


def measure_context(folder: Path, engine: DockerEngine) -> dict[str, float]:
    """Seconds to hash a context of many files by us, and what others need to read or to send it."""
    for number in range(FILES):
        path = folder / f"{number % 100:02}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{folder.name} {number} ".encode().ljust(FILE_SIZE, b"."))
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    (folder / "all.Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (folder / ".dockerignore").write_text("*.log\n")

    def docker(buildkit: str, file: str) -> None:
        command = [CLIENT, "build", "--quiet", "--no-cache", f"--file={folder / file}", str(folder)]
        env = {**os.environ, **engine.environment, "DOCKER_BUILDKIT": buildkit}
        subprocess.run(command, check=True, capture_output=True, env=env)

    def tar() -> None:
        packed = subprocess.Popen(["tar", "-C", str(folder), "-cf", "-", "."], stdout=subprocess.PIPE)
        subprocess.run(["sha256sum"], stdin=packed.stdout, check=True, capture_output=True)
        assert packed.wait() == 0

    return {
        "**prefect-environments**: the context's digest": timed(lambda: context_digest(folder)),
        "tar, into sha256sum": timed(tar),
        "docker build, classic builder: sent, one file of it copied": timed(lambda: docker("0", "Dockerfile")),
        "docker build, BuildKit: sent and all copied": timed(lambda: docker("1", "all.Dockerfile")),
    }


def context_section(rounds: list[dict[str, float]]) -> str:
    lines = [
        "## A build context of 20,000 files",
        "",
        f"`python -m benchmarks.definitions`, median of {len(rounds)} rounds. {results.machine()}",
        "",
        f"{FILES:,} files of {FILE_SIZE:,} bytes in 100 folders, just written. A context whose digest is",
        "known is not sent at all.",
        "",
        "| what | seconds |",
        "|---|--:|",
        *(f"| {name} | {statistics.median(found[name] for found in rounds):.2f} |" for name in rounds[0]),
    ]
    return "\n".join(lines) + "\n"


# ---- a conda environment


def measure_conda(session: Session, name: str, base: BaseLayout) -> dict[str, dict[str, Taken]]:
    """The cases of both tools, by case and tool."""
    channel = standard_channel(session.folder / name / "channel")
    channel.add(*synthetic(PACKAGES + max(CASES.values()), size=PACKAGE_SIZE))
    tools = (Ours(session, name, base, channel), Peer(session, name, base, channel))
    return {case: {tool.name: tool.run(case) for tool in tools} for case in CASES}


def specs(case: str) -> tuple[str, str]:
    """Each synthetic package needs the one before it, so that the last one stands for all."""
    return "python", f"synth-{PACKAGES - 1 + CASES[case]:03}"


class Ours:
    """prefect-environments' core, in this process."""

    name = "prefect-environments"

    def __init__(self, session: Session, name: str, base: BaseLayout, channel: Channel) -> None:
        self.registry = start_registry(session, f"{name}-ours")
        self.base = base.push(self.registry.repository_url("base/python:3"))
        self.worker, self.channel = session.folder / name / "worker", channel
        self.versions = FolderVersionStore(session.folder / name / "versions", "bench")

    def run(self, case: str) -> Taken:
        if case.endswith("empty worker"):
            shutil.rmtree(self.worker)
        before = stored(self.registry)
        started = time.perf_counter()
        layers = asyncio.run(self._build(case))
        return Taken(time.perf_counter() - started, stored(self.registry) - before, layers)

    async def _build(self, case: str) -> int:
        workspace = BenchWorkspace(RegistrySettings(self.registry.address), self.versions)
        definition = EnvironmentDefinition(
            name="bench",
            base_image=self.base,
            conda_channels=(self.channel.url,),
            conda_dependencies=specs(case),
        )
        async with open_site(workspace, cache=self.worker) as site:
            lock = await steps.resolve(site, definition)
            built = await steps.build(site, definition, lock)
            await steps.register(site, definition, built)
        return sum(not layer.reused for layer in built.layers)


class Peer:
    """rattler installs the whole environment, umoci puts it into one layer of an image, skopeo pushes it."""

    name = "rattler + umoci + skopeo"

    def __init__(self, session: Session, name: str, base: BaseLayout, channel: Channel) -> None:
        self.registry = start_registry(session, f"{name}-theirs")
        base.push(self.registry.repository_url("environments/bench:base"))
        self.worker, self.base, self.channel = session.folder / name / "their-worker", base, channel

    def run(self, case: str) -> Taken:
        if case.endswith("empty worker"):
            shutil.rmtree(self.worker)
        before = stored(self.registry)
        seconds = timed(lambda: self._build(case))
        return Taken(seconds, stored(self.registry) - before, 1)

    def _build(self, case: str) -> None:
        prefix, layout = self.worker / "prefix", self.worker / "layout"
        for old in (prefix, layout):
            shutil.rmtree(old, ignore_errors=True)
        asyncio.run(self._install(case, prefix))
        target = f"docker://{self.registry.repository_url('environments/bench')}"
        for command in (
            ["skopeo", "copy", "--quiet", self.base.reference, f"oci:{layout}:image"],
            ["umoci", "insert", "--image", f"{layout}:image", str(prefix), "/opt/env"],
            ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:image", f"{target}:latest"],
        ):
            subprocess.run(command, check=True, capture_output=True)

    async def _install(self, case: str, prefix: Path) -> None:
        import rattler  # noqa: PLC0415 - as we import it: while the clock runs

        gateway = rattler.Gateway(cache_dir=self.worker / "repodata", show_progress=False)
        records = await rattler.solve(
            sources=[rattler.Channel(self.channel.url)],
            specs=[rattler.MatchSpec(spec) for spec in specs(case)],
            gateway=gateway,
            platforms=[rattler.Subdir(SUBDIR), rattler.Subdir("noarch")],
        )
        await rattler.install(
            records,
            prefix,
            cache_dir=self.worker / "packages",
            installed_packages=[],
            platform=rattler.Subdir(SUBDIR),
            execute_link_scripts=False,
            show_progress=False,
            alternative_target_prefix="/opt/env",
        )


def conda_section(rounds: list[dict[str, dict[str, Taken]]]) -> str:
    lines = [
        "## A conda environment of 100 packages, and one more",
        "",
        f"`python -m benchmarks.definitions`, median of {len(rounds)} rounds. {results.machine()}",
        "",
        f"Python, and {PACKAGES} synthetic packages of {PACKAGE_SIZE / 1e6:.1f} MB each that do not compress, from a",
        "channel in a folder; a docker-registry on loopback; no process start. *Empty worker*: the registry has the",
        "earlier image, the machine has nothing. The other tool's image is one layer, sent whole at each change.",
        "",
        "| case | tool | seconds | sent, MB | new layers | ratio |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for case in CASES:
        theirs = statistics.median(found[case][Peer.name].seconds for found in rounds)
        for name, last in rounds[-1][case].items():
            seconds = statistics.median(found[case][name].seconds for found in rounds)
            ratio = f"**{seconds / theirs:.2f}**" if name == Ours.name else "1"
            lines.append(f"| {case} | {name} | {seconds:.2f} | {last.sent / 1e6:.1f} | {last.layers} | {ratio} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
