"""How jobs end that somebody cancels or kills: in the UI, in a script, by a worker; and what is known of them then."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Cancelling
from prefect.workers.process import ProcessWorker

from prefect_environments import ReadyImage, ScriptRunConfig, Workspace
from prefect_environments.core.errors import JobCancelled, JobFailed
from prefect_environments.flows import build_environment, run_training_job
from tests.flows.parts import Run, define, unique
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.jobs import containers, is_alive, use_engine
from tests.support.pool import WORKER
from tests.support.session import Session, end

WAIT = """
import os, subprocess, time
from prefect_environments import Run
Run.get_context().log("loss", 0.5)
child = subprocess.Popen(["sleep", "600"])
open("outputs/half", "w").write("x")
open("outputs/tmp", "w").write(f"{os.getpid()} {child.pid}")
os.rename("outputs/tmp", "outputs/pids")
time.sleep(600)
"""
"""A script that waits to be stopped, and so does what it started."""


class Started:
    """A call in a thread, as a user's script makes it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        context = copy_context()  # the tests' settings, which users have in their environment

        def work() -> None:
            try:
                self.result = context.run(call)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def ended(self) -> Any:
        self.thread.join()
        if self.error is not None:
            raise self.error
        return self.result

    def until(self, found: Callable[[], Any]) -> Any:
        """The first true answer of `found` while the call goes on."""
        while not (answer := found()):
            assert self.thread.is_alive(), self.error or self.result
            time.sleep(0.05)
        return answer


class Ground:
    """A workspace with an environment of spam, and a job in it that waits."""

    def __init__(self, workspace: Workspace, ready: ReadyImage, folder: Path) -> None:
        self.workspace, self.ready, self.folder = workspace, ready, folder
        (folder / "source").mkdir()
        (folder / "source" / "train.py").write_text(WAIT)

    def config(self, target: str, **fields: Any) -> ScriptRunConfig:
        given = {"source_directory": str(self.folder / "source"), "script": "train.py", "environment": self.ready}
        return ScriptRunConfig(**{**given, "compute_target": target, **fields})

    def run(self, target: str, **fields: Any) -> State[Any]:
        outputs = str(self.folder / "jobs")
        return run_training_job(
            self.config(target, **fields), self.workspace, outputs_directory=outputs, return_state=True
        )

    def pids(self) -> list[int]:
        """The processes of the job that runs, as it sees them."""
        found = list(self.folder.glob("jobs/*/outputs/pids"))
        return [int(pid) for pid in found[0].read_text().split()] if found else []

    def training_run(self) -> FlowRun:
        (found,) = flow_runs(f"train-{self.ready.name}-")
        return found

    def left(self, engine: DockerEngine) -> list[str]:
        """What no job may leave: temporary folders here, containers of this ground's jobs."""
        places = [self.folder / "cache", self.folder / "workspace"]
        scratch = [str(path) for place in places for path in place.rglob("tmp-*")]
        return scratch + [name for name in containers(engine) if self.is_own(name)]

    def is_own(self, container: str) -> bool:
        return any(path.name in container for path in self.folder.glob("jobs/*"))


def flow_runs(like: str) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=like)))


def cancel_in_ui(run: UUID) -> None:
    """What the UI does when its user cancels a run."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling())


@pytest.fixture
def ground(
    *,
    base_layout: BaseLayout,
    wheels: Path,
    local: Workspace,
    tmp_path: Path,
    docker_engine: DockerEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> Ground:
    use_engine(docker_engine, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Ground(local, build_environment(define(base_layout, wheels, "spam"), local), tmp_path)


@pytest.mark.parametrize("target", ["local:process", "local:docker"])
def test_a_run_that_is_cancelled_in_the_ui_stops_its_job(
    target: str, ground: Ground, docker_engine: DockerEngine
) -> None:
    """Though it is a script's, which no worker looks after. The run is cancelled, not failed; nothing is left."""
    job = Started(lambda: ground.run(target))
    pids = job.until(ground.pids)
    run = ground.training_run()
    cancel_in_ui(run.id)
    state = job.ended()
    assert state.is_cancelled() and "the job was cancelled" in str(state.message)
    shown = Run(run.id).run.state
    assert shown is not None and shown.is_cancelled()
    assert target == "local:docker" or not any(map(is_alive, pids))
    assert ground.left(docker_engine) == []


def test_a_flow_of_ones_own_that_is_cancelled_stops_the_job_that_it_waits_for(
    ground: Ground, docker_engine: DockerEngine
) -> None:
    """It may know of that, and go on to clean up."""
    name = unique("own")

    @flow(flow_run_name=name, persist_result=False)
    def own() -> str:
        try:
            run_training_job(ground.config("local:process"), ground.workspace, outputs_directory=str(outputs))
        except JobCancelled:
            return "cleaned up"
        return "not cancelled"

    outputs = ground.folder / "jobs"
    job = Started(own)
    pids = job.until(ground.pids)
    (parent,) = flow_runs(name)
    cancel_in_ui(parent.id)
    assert job.ended() == "cleaned up"
    assert not any(map(is_alive, pids)) and ground.left(docker_engine) == []
    child = ground.training_run().state
    assert child is not None and child.is_cancelled()


@pytest.fixture
def deployment(prefect_server: str, test_session: Session, ground: Ground) -> Iterator[UUID]:
    """`run_training_job` deployed in a process pool with a worker."""
    pool = unique("processes")
    template = ProcessWorker.get_default_base_job_template()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
        flow_id = client.create_flow_from_name("run-training-job")
        entrypoint = "prefect_environments.flows.train.run_training_job"
        made = client.create_deployment(flow_id, pool, work_pool_name=pool, entrypoint=entrypoint, pull_steps=[])
    process = test_session.spawn(*command, log=f"worker-{pool}.log", env=WORKER)
    yield made
    end(process.pid, patience=1)


def test_a_run_that_a_worker_started_is_stopped_by_it_with_its_job(
    deployment: UUID, ground: Ground, docker_engine: DockerEngine
) -> None:
    """The worker ends the process of the flow, which takes the job along."""
    ground.workspace.save(unique("workspace"))
    parameters = {
        "config": ground.config("local:process").model_dump(mode="json"),
        "workspace": {"$ref": {"block_document_id": str(ground.workspace._block_document_id)}},
        "outputs_directory": str(ground.folder / "jobs"),
    }
    created = run_deployment(deployment, parameters=parameters, timeout=0)
    assert isinstance(created, FlowRun)
    run = Run(created.id)

    def state() -> State[Any]:
        shown = run.run.state
        assert shown is not None
        return shown

    while not (pids := ground.pids()):
        assert not state().is_final(), state()
        time.sleep(0.1)
    cancel_in_ui(run.id)
    while not state().is_final():
        time.sleep(0.1)
    assert state().is_cancelled(), state()
    while any(map(is_alive, pids)):
        time.sleep(0.05)
    assert ground.left(docker_engine) == []


def test_a_container_that_is_killed_fails_the_run_which_keeps_its_metrics_and_outputs(
    ground: Ground, docker_engine: DockerEngine
) -> None:
    job = Started(lambda: ground.run("local:docker"))
    job.until(ground.pids)
    (container,) = [name for name in containers(docker_engine) if ground.is_own(name)]
    docker_engine.docker("kill", container)
    state = job.ended()
    assert state.is_failed()
    assert "was killed (signal 9, exit status 137); look for a crash or a lack of memory" in str(state.message)
    with pytest.raises(JobFailed) as caught:
        state.result()
    assert caught.value.result is not None and caught.value.result.metrics == {"loss": 0.5}
    assert "half" in [file.path for file in caught.value.result.files]
    run = Run(state.state_details.flow_run_id)
    (table,) = run.artifacts("table")
    assert json.loads(str(table.data)) == [{"metric": "loss", "value": 0.5}]
    (page,) = run.artifacts("markdown")
    assert "| Ran in Docker | exit 137 |" in str(page.data) and "half" in str(page.data)
    assert ground.left(docker_engine) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"time_limit_seconds": 1}, "stopped after its time limit of 1 seconds"),
        ({"command": "cp -r . outputs/; exit 3", "script": ""}, "failed with exit status 3"),
    ],
)
def test_a_job_that_fails_is_reported_like_one_that_ends_well(
    fields: dict[str, Any], said: str, ground: Ground
) -> None:
    """Its outputs are on a page of the run, which fails with the reason."""
    state = ground.run("local:process", **fields)
    assert state.is_failed() and said in str(state.message)
    (page,) = Run(state.state_details.flow_run_id).artifacts("markdown")
    assert "Outputs in" in str(page.data)
