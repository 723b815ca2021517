"""How jobs in a docker work pool end that somebody cancels or kills, as their runs show it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import State

from prefect_environments.core.errors import JobCancelled
from prefect_environments.flows import run_training_job
from tests.flows.parts import Run
from tests.flows.test_job_ends import Started, cancel_in_ui, flow_runs
from tests.flows.test_work_pool import Bench, bench, kept, pool, running, team, version  # noqa: F401 - fixtures
from tests.support.engine import DockerEngine
from tests.support.jobs import until

pytestmark = pytest.mark.network

WAIT = """
import pathlib, sys, time
from prefect_environments import Run
Run.get_context().log("loss", 0.5)
pathlib.Path("/kept", sys.argv[1]).touch()
time.sleep(600)
"""


class Job:
    """A job in the pool that waits to be stopped, and the run of the flow that it is for."""

    def __init__(self, bench: Bench, kept: Path, mark: str) -> None:  # noqa: F811
        config = bench.config(WAIT, arguments=(mark,))
        self._call = Started(lambda: run_training_job(config, bench.team, return_state=True))
        self._call.until((kept / mark).exists)
        self.child = running(bench)
        (self.run,) = [
            one for one in flow_runs(f"train-{bench.version}-") if one.state is not None and one.state.is_running()
        ]

    def ended(self) -> State[Any]:
        state: State[Any] = self._call.ended()
        return state


async def test_a_run_that_is_cancelled_in_the_ui_stops_the_job_in_the_pool(
    bench: Bench,  # noqa: F811
    kept: Path,  # noqa: F811
    docker_engine: DockerEngine,
) -> None:
    """Its container's run is cancelled with it, and the container goes."""
    job = Job(bench, kept, "first")
    cancel_in_ui(job.run.id)
    state = job.ended()
    assert state.is_cancelled(), state
    child = Run(job.child.id).run.state
    assert child is not None and child.is_cancelled()
    await until(lambda: job.child.name not in docker_engine.docker("ps", "--all", "--format", "{{.Names}}"))


async def test_the_run_of_the_container_can_be_cancelled_in_the_ui_too(
    bench: Bench,  # noqa: F811
    kept: Path,  # noqa: F811
    docker_engine: DockerEngine,
) -> None:
    job = Job(bench, kept, "second")
    cancel_in_ui(job.child.id)
    state = job.ended()
    assert state.is_cancelled(), state
    with pytest.raises(JobCancelled, match=rf"was cancelled in the work pool {bench.pool} \(flow run {job.child.id}\)"):
        await state.aresult()
    await until(lambda: job.child.name not in docker_engine.docker("ps", "--all", "--format", "{{.Names}}"))


async def test_a_container_that_is_killed_fails_the_run_with_its_exit_status(
    bench: Bench,  # noqa: F811
    kept: Path,  # noqa: F811
    docker_engine: DockerEngine,
) -> None:
    job = Job(bench, kept, "third")
    docker_engine.docker("kill", job.child.name)
    state = job.ended()
    assert state.is_failed(), state
    assert "137" in str(state.message) and "killed" in str(state.message)


def test_a_container_that_needs_no_secret_does_not_load_our_blocks() -> None:
    """They would be a fifth of the time that its flow takes to load."""
    code = "import sys, prefect_environments.flows.job; print('prefect_environments.blocks' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False"), done.stdout
