"""The scenarios: cold, unchanged, one package added, one added from an empty worker; ours beside BuildKit + uv."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field

from uv import find_uv_bin

from benchmarks.imports import EVERYTHING, environment
from benchmarks.ours import peak_of
from tests.support.base import BaseLayout, base_image
from tests.support.engine import DockerEngine, start_engine
from tests.support.registry import Registry, start_registry
from tests.support.session import Session

PACKAGES = ["numpy", "pandas", "scikit-learn", "scipy", "matplotlib", "requests", "pydantic"]
ADDED = "humanize"
SCENARIOS = ("cold", "unchanged", "one added", "one added, empty worker")

CLIENT = shutil.which("docker", path="/usr/bin") or "docker"
"""Debian's client has BuildKit built in; newer ones need the buildx plugin beside them."""

DOCKERFILE = """\
FROM {base}
WORKDIR /tmp
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
RUN --mount=type=bind,source=uv,target=/usr/local/bin/uv uv venv --quiet --python /usr/bin/python3 /opt/env
COPY requirements.txt /tmp/requirements.txt
RUN --mount=type=bind,source=uv,target=/usr/local/bin/uv --mount=type=bind,source=ca.crt,target=/ca.crt \\
    --mount=type=cache,target=/root/.cache/uv \\
    SSL_CERT_FILE=/ca.crt VIRTUAL_ENV=/opt/env uv pip install --quiet --link-mode copy pip -r requirements.txt
ENV PATH=/opt/env/bin:$PATH
"""


@dataclass
class Measured:
    """One scenario of one tool. Seconds of wall time, process start included; bytes as stored by the registry."""

    seconds: float
    bytes_sent: int
    requests: int
    peak_mib: float
    stages: dict[str, float] = field(default_factory=dict)


class Ours:
    """prefect-environments, every run a process of its own."""

    name = "prefect-environments"

    def __init__(self, session: Session, base: BaseLayout) -> None:
        self.registry = start_registry(session, "bench-ours")
        self.base = base.push(self.registry.repository_url("base/python:3"))
        self.folder = session.folder / "ours"
        self.folder.mkdir()
        self.environment = environment(session.folder / "bytecode")
        # installers compile what they install; a checkout's own code is compiled at first use, which is not measured
        subprocess.run([sys.executable, "-c", f"import {EVERYTHING}"], check=True, env=self.environment)

    def prepare(self, scenario: str) -> None:
        if scenario in ("cold", "one added, empty worker"):
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
            shutil.rmtree(self.folder / "uv", ignore_errors=True)

    def run(self, scenario: str) -> Measured:
        packages = PACKAGES + [ADDED] * scenario.startswith("one added") + ["tabulate"] * scenario.endswith("worker")
        order = {
            "registry": self.registry.address,
            "base": self.base,
            "name": "bench",
            "requirements": packages,
            "cache": str(self.folder / "cache"),
            "versions": str(self.folder / "versions"),
        }
        before, requests = stored(self.registry), len(self.registry.requests())
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.ours", json.dumps(order)],
            check=True,
            capture_output=True,
            text=True,
            env={**self.environment, "UV_CACHE_DIR": str(self.folder / "uv")},
        )
        seconds = time.perf_counter() - started
        told = json.loads(done.stdout)
        sent, asked = stored(self.registry) - before, len(self.registry.requests()) - requests
        return Measured(seconds, sent, asked, told["peak_mib"], told["stages"])


class Theirs:
    """BuildKit with `uv pip install` and a cache mount, then `docker push`."""

    name = "BuildKit + uv + docker push"

    def __init__(self, session: Session, base: BaseLayout) -> None:
        self.registry = start_registry(session, "bench-theirs")
        base.push(self.registry.repository_url("base/python:3"))
        self.engine = DockerEngine(**start_engine(session))
        self.context = session.folder / "context"
        self.context.mkdir()
        shutil.copy(find_uv_bin(), self.context / "uv")
        shutil.copy(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"), self.context / "ca.crt")
        base_name = self.registry.repository_url("base/python:3")
        (self.context / "Dockerfile").write_text(DOCKERFILE.format(base=base_name))
        self.daemon = int((session.folder / "docker" / "pid").read_text())

    def prepare(self, scenario: str) -> None:
        if scenario in ("cold", "one added, empty worker"):
            self.engine.docker("builder", "prune", "--all", "--force")
            self.engine.docker("image", "prune", "--all", "--force")

    def run(self, scenario: str) -> Measured:
        packages = PACKAGES + [ADDED] * scenario.startswith("one added") + ["tabulate"] * scenario.endswith("worker")
        (self.context / "requirements.txt").write_text("\n".join(packages) + "\n")
        image = self.registry.repository_url("environments/bench:latest")
        before, requests = stored(self.registry), len(self.registry.requests())
        stages = {}
        for stage, command in {
            "build": ["build", "--quiet", "--network=host", "--tag", image, str(self.context)],
            "push": ["push", "--quiet", image],
        }.items():
            started = time.perf_counter()
            done = subprocess.run(
                [CLIENT, *command],
                check=False,
                capture_output=True,
                text=True,
                env={**os.environ, **self.engine.environment, "DOCKER_BUILDKIT": "1"},
            )
            if done.returncode:
                raise RuntimeError(f"docker {command[0]} failed: {done.stderr[-3000:]}")
            stages[stage] = time.perf_counter() - started
        sent, asked = stored(self.registry) - before, len(self.registry.requests()) - requests
        return Measured(sum(stages.values()), sent, asked, peak_of(self.daemon), stages)


def stored(registry: Registry) -> int:
    """Bytes of all blobs in a registry's folder."""
    return sum(path.stat().st_size for path in registry.folder.glob("docker/registry/v2/blobs/sha256/*/*/data"))


def measure(session: Session, rounds: int = 1) -> dict[str, dict[str, list[Measured]]]:
    """Every scenario of both tools, in turn, so that both see the same machine."""
    base = base_image()
    found: dict[str, dict[str, list[Measured]]] = {}
    for number in range(rounds):
        # fresh registries each round: `cold` means that nothing is there
        tools = (Ours(renamed(session, f"ours-{number}"), base), Theirs(renamed(session, f"theirs-{number}"), base))
        for scenario in SCENARIOS:
            for tool in tools:
                tool.prepare(scenario)
                found.setdefault(scenario, {}).setdefault(tool.name, []).append(tool.run(scenario))
    return found


def renamed(session: Session, name: str) -> Session:
    """A session in a folder of its own below another, whose owner ends both."""
    folder = session.folder / name
    (folder / "logs").mkdir(parents=True)
    return Session(folder, session.owner)
