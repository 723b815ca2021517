"""Running jobs in tests: a workspace with a built environment, source folders, and what a job left behind."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.jobs import run
from prefect_environments.core.jobs.config import ScriptRunConfig
from prefect_environments.core.jobs.launcher import JobResult
from prefect_environments.core.jobs.local_docker import LABEL, NETWORK_VARIABLE
from prefect_environments.core.site import open_site
from prefect_environments.core.workspace import Workspace
from tests.support.engine import DockerEngine


@dataclass
class JobBench:
    """Runs jobs in the newest version of `environment`. `lines` are what they printed, as the log has it."""

    workspace: Workspace
    environment: str
    folder: Path
    cache: Path
    target: str
    lines: list[str] = field(default_factory=list)

    def source(self, **files: str) -> Path:
        """A folder with these Python files, by their names without the suffix."""
        place = self.folder / "source"
        place.mkdir(exist_ok=True)
        for name, text in files.items():
            (place / f"{name}.py").write_text(text)
        return place

    @property
    def outputs(self) -> Path:
        return self.folder / "jobs"

    async def run(self, script: str = "", **fields: Any) -> JobResult:
        """Run a script, given as its text, or the command in `fields`."""
        source = self.source(**({"train": script} if script else {}))
        given: dict[str, Any] = {"source_directory": str(source), "environment": self.environment}
        given |= {"script": "train.py"} if script else {}
        config = ScriptRunConfig(**{**given, "compute_target": self.target, **fields})
        assert isinstance(config.environment, str)
        record = await run.find_environment(self.workspace, config.environment)
        async with open_site(self.workspace, cache=self.cache) as site:
            return await run.run_job(site, config, record, outputs=self.outputs, on_line=self.lines.append)

    async def until_said(self, text: str, work: "asyncio.Task[Any]") -> None:
        """Wait until a job printed a line; its failure is raised."""
        while text not in self.lines:
            assert not work.done(), work.exception()
            await asyncio.sleep(0.02)

    def left(self) -> list[str]:
        """Temporary files of jobs; there should be none."""
        return [str(path) for path in (self.cache / "scratch").rglob("*")]


def use_engine(engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs find the tests' engine, which has no bridge."""
    for name, value in engine.environment.items():
        if value:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv(NETWORK_VARIABLE, "host")


def containers(engine: DockerEngine) -> list[str]:
    """Names of the containers that run jobs or did."""
    return engine.docker("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").split()


def is_alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor a zombie that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def until(met: Callable[[], bool]) -> None:
    """Wait for a condition; the test's own time-out ends it."""
    while not met():  # noqa: ASYNC110 - processes of others don't tell
        await asyncio.sleep(0.02)


CALLER = os.getuid(), os.getgid()
