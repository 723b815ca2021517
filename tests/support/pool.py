"""A real docker work pool with a real worker, and jobs in it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun

from tests.support.engine import DockerEngine
from tests.support.session import Session, end, missing

WORKER = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_LOGGING_LEVEL": "INFO"}


def make_docker_pool(name: str, **defaults: Any) -> None:
    """Create a docker work pool whose containers use the host's network; `defaults` are of its job template."""
    try:
        from prefect_docker.worker import DockerWorker  # type: ignore[import-untyped]
    except ImportError:
        missing("prefect-docker is not installed; it is in the dev extra")
    template = DockerWorker.get_default_base_job_template()
    for variable, value in {"network_mode": "host", **defaults}.items():
        template["variables"]["properties"][variable]["default"] = value
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="docker", base_job_template=template), overwrite=True)


@contextmanager
def docker_worker(session: Session, pool: str, engine: DockerEngine) -> Iterator[Path]:
    """A worker of a docker pool, until the end of the block; gives its log."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "docker"]
    log = f"worker-{pool}.log"
    process = session.spawn(*command, log=log, env={**WORKER, **engine.environment})
    try:
        yield session.log(log)
    finally:
        end(process.pid, patience=1)


def runs_of_jobs(like: str = "job-") -> list[FlowRun]:
    """The flow runs that jobs are in work pools, by a part of their name."""
    wanted = FlowRunFilter(name=FlowRunFilterName(like_=like), tags=FlowRunFilterTags(all_=["prefect-environments"]))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=wanted)
