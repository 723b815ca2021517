"""What a job's nodes start: the command itself, or the starter of several processes; and the folder that all of them
see, with `Run`, the way to their launcher and the plan.
"""

import asyncio
import json
import shutil
import socket
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from prefect_environments.core.errors import NotSupportedYet
from prefect_environments.core.jobs.command import command_of, plain, words_of
from prefect_environments.core.jobs.config import ScriptRunConfig
from prefect_environments.core.jobs.distribution import PyTorchConfiguration
from prefect_environments.core.jobs.inside import starter, wire
from prefect_environments.core.jobs.launcher import JobRequest

INSIDE = "/run/prefect-environments"
"""Where containers see the folder."""

_PACKAGES = "path"
_START = (
    "import sys; sys.path.insert(0, sys.argv[1] + '/path/prefect_environments'); "
    "from inside.starter import main; sys.exit(main(sys.argv[1:]))"
)


class Work(Protocol):
    """What is to be run: a `JobRequest`, or a job that came to another machine. `variables` are resolved."""

    @property
    def config(self) -> ScriptRunConfig: ...

    @property
    def variables(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class JobNode:
    """What one node runs. `variables` are the job's with our own over them."""

    rank: int
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(repr=False)


def node_count(config: ScriptRunConfig) -> int:
    """Nodes of a job."""
    return config.distribution.node_count if config.distribution else 1


def check_distribution(config: ScriptRunConfig) -> None:
    """Raise `NotSupportedYet` where the nodes of a job cannot be had."""
    if not config.is_local and node_count(config) > 1:
        raise NotSupportedYet(
            f"the job has {node_count(config)} nodes, and a work pool runs a job in one container: choose node_count=1 "
            "with more processes, or the compute target local"
        )


def make_folder(request: JobRequest) -> Path:
    """The folder that the job sees, without the plan of a distribution."""
    folder = request.folder / "inside"
    write_inside(folder)
    return folder


def write_inside(folder: Path) -> None:
    """Write the package that a job finds `Run` in, for its PYTHONPATH: `folder/path`."""
    package = folder / _PACKAGES / "prefect_environments"
    (package / "inside").mkdir(parents=True)
    for file in resources.files("prefect_environments.core.jobs.inside").iterdir():
        if file.name.endswith(".py"):
            target = package / "__init__.py" if file.name == "package.py" else package / "inside" / file.name
            target.write_bytes(file.read_bytes())


def nodes_of(
    request: Work,
    *,
    python: str,
    folder: Path,
    seen: str,
    master: str = "127.0.0.1",
    grouped: bool = False,
    python_path: str = "",
) -> tuple[JobNode, ...]:
    """What each node of a job starts; the plan of a distribution is written into `folder`.

    `seen` is the folder as the job sees it, `master` the address of the first node, `python_path` what PYTHONPATH
    would be without us. The starter must lead a process group of its own; `grouped` says that whoever stops it signals
    all of the group, so that it need not hand the signal on.
    """
    config = request.config
    others = request.variables.get("PYTHONPATH", python_path)
    path = f"{seen}/{_PACKAGES}"
    variables = {
        **request.variables,
        wire.VARIABLE: seen,
        "PYTHONPATH": f"{path}:{others}" if others else path,
    }
    if config.distribution is None:
        return (JobNode(0, command_of(config, python), variables),)
    start = (python, "-I", "-S", "-B", "-c", _START, seen)
    plan = _plan(config, python, start, master, grouped=grouped)
    (folder / starter.PLAN).write_text(json.dumps(plan), "utf-8")
    return tuple(JobNode(rank, (*start, str(rank)), variables) for rank in range(node_count(config)))


def source_of(request: JobRequest, node: int) -> Path:
    """A node's own copy of the source: what one node changes, another does not see."""
    if node == 0:
        return request.source
    target = request.folder / f"source-{node}"
    shutil.copytree(request.source, target, symlinks=True)
    return target


async def together(nodes: Iterable[Coroutine[Any, Any, tuple[int, bool]]]) -> tuple[int, bool]:
    """Run the nodes of a job to their ends; the first that fails, or runs out of time, ends the others.

    Gives the exit status of that one, and whether the time limit ended it.
    """
    tasks = [asyncio.ensure_future(node) for node in nodes]
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for code, timed_out in [task.result() for task in tasks if task in done]:
                if code or timed_out:
                    return code, timed_out
        return 0, False
    finally:
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)


def _plan(
    config: ScriptRunConfig, python: str, start: tuple[str, ...], master: str, *, grouped: bool
) -> dict[str, object]:
    distribution = config.distribution
    assert distribution is not None  # noqa: S101
    backend = distribution.communication_backend.lower() if isinstance(distribution, PyTorchConfiguration) else ""
    return {
        "kind": distribution.kind,
        "backend": backend,
        "nodes": distribution.node_count,
        "processes": distribution.processes,
        "master": [master, _free_port()],
        "command": words_of(config, python),
        "bootstrap": plain(config.bootstrap),
        "run_on": config.run_on,
        "bootstrap_seconds": config.bootstrap_time_limit_seconds,
        "starter": start,
        "grouped": grouped,
    }


def _free_port() -> int:
    """A port that is free on this machine, which is the nodes' own where they use the host's network."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
