"""What the tests of flows and tasks share: tiny wheels, definitions of them, and what a run left on the server."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.deployments import run_deployment
from prefect.logging.handlers import APILogWorker

from prefect_environments import EnvironmentDefinition
from tests.support.base import BaseLayout
from tests.support.wheels import make_wheel

DEPLOYMENT = "build-environment/build-environment"


def unique(prefix: str) -> str:
    """A name that no other test has."""
    return f"{prefix}-{uuid4().hex[:10]}"


def wheel_folder(folder: Path) -> Path:
    """A folder with wheels of pip, spam (which needs eggs), eggs and ham: enough for a small environment."""
    make_wheel(folder, "pip", "26.1")
    make_wheel(folder, "eggs", "2.0")
    make_wheel(folder, "spam", "1.0", requires=["eggs"], entry_points={"spam": "spam:main"})
    make_wheel(folder, "ham", "3.0")
    return folder


def define(base: BaseLayout, wheels: Path, *packages: str, **others: Any) -> EnvironmentDefinition:
    """A definition of packages from a folder of wheels, on a base image; no index is asked."""
    given: dict[str, Any] = {
        "name": unique("env"),
        "base_image": base.reference,
        "requirements": packages or ("spam",),
        "find_links": (str(wheels),),
        "no_index": True,
    }
    return EnvironmentDefinition(**(given | others))


class Run:
    """A finished flow run, as the server shows it."""

    def __init__(self, run_id: UUID | str | None) -> None:
        self.id = UUID(str(run_id))

    @property
    def run(self) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.id)

    def tasks(self) -> list[TaskRun]:
        """The task runs, in the order of their start."""
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[self.id])))
        return sorted(found, key=lambda task: str(task.start_time))

    def artifacts(self, kind: str) -> list[Artifact]:
        only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self.id]))
        with get_client(sync_client=True) as client:
            return [found for found in client.read_artifacts(artifact_filter=only) if found.type == kind]

    def messages(self, last: str) -> str:
        """What the run and its tasks logged, once `last` is part of it: log lines arrive later than the result."""
        only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.id]))
        APILogWorker.drain_all(timeout=30)
        for _ in range(300):
            with get_client(sync_client=True) as client:
                text = "\n".join(log.message for log in client.read_logs(log_filter=only, limit=200))
            if last in text:
                return text
            time.sleep(0.1)
        raise AssertionError(f"the log of flow run {self.id} has no {last!r}: {text}")


def prefect(*arguments: str, folder: Path, **variables: str) -> str:
    """Run Prefect's command line in a folder; gives all that it prints. Fails with that if the command does."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_by_worker(parameters: dict[str, Any], folder: Path) -> tuple[Run, str]:
    """Run the deployment with plain JSON by a process worker that ends after it; the run, and what that printed."""
    queue = unique("queue")  # the workers of other tests leave it alone
    created = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, work_queue_name=queue)
    assert isinstance(created, FlowRun)
    folder.mkdir()
    command = ["worker", "start", "--pool", "default", "--type", "process", "--run-once", "--work-queue", queue]
    printed = prefect(*command, folder=folder, PREFECT_LOGGING_LEVEL="INFO")
    assert str(created.id) in printed
    return Run(created.id), printed
