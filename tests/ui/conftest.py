"""What somebody at a browser finds: deployments, a worker that runs them, and a saved workspace."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from prefect_environments import ContainerRegistry, Workspace
from tests.flows.parts import prefect, unique
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.session import Session, end, need


@pytest.fixture
def worker(prefect_server: str, test_session: Session, tmp_path: Path) -> Iterator[None]:
    """Deployments of prefect.yaml, and a process worker for their runs that looks for them every second."""
    need("chromium")
    folder = tmp_path / "deploy"
    folder.mkdir()
    shutil.copy(Path(__file__).parents[2] / "prefect.yaml", folder)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="default", type="process"), overwrite=True)
    prefect("deploy", "--name", "build-environment", "--name", "run-training-job", folder=folder)
    process = test_session.spawn(
        *(sys.executable, "-m", "prefect", "worker", "start", "--pool", "default", "--work-queue", "default"),
        log="worker-ui.log",
        env={"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_WORKER_QUERY_SECONDS": "1"},
    )
    yield
    end(process.pid)


@pytest.fixture
def workspace(prefect_server: str, open_registry: Registry, base_layout: BaseLayout) -> Workspace:
    """A workspace saved under its name, in a registry that has the base image."""
    name = unique("team")
    registry = ContainerRegistry(address=open_registry.address, plain_http=True)
    registry.save(name)
    base = open_registry.repository_url(f"{name}/python:3.11-slim")
    base_layout.push(base)
    workspace = Workspace(name=name, registry=registry, repository_prefix=name, default_base_image=base)
    workspace.save(name)
    return workspace
