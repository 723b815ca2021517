"""What somebody at a browser finds: deployments, a worker that runs them, and a saved workspace."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from prefect_environments import ContainerRegistry, Workspace
from tests.flows.parts import prefect, unique
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.session import Session, end, need


@pytest.fixture
def deployments(prefect_server: str, test_session: Session, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Two deployments of prefect.yaml under names of their own, as the page that lists all has flows by name, too; by
    their names in the file. A process worker looks for their runs every second."""
    need("chromium")
    content = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text("utf-8"))
    names = {name: unique(name) for name in ("build-environment", "run-training-job")}
    kept = [one | {"name": names[one["name"]]} for one in content["deployments"] if one["name"] in names]
    folder = tmp_path / "deploy"
    folder.mkdir()
    (folder / "prefect.yaml").write_text(yaml.safe_dump({**content, "deployments": kept}), "utf-8")
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="default", type="process"), overwrite=True)
    prefect("deploy", "--all", folder=folder)
    process = test_session.spawn(
        *(sys.executable, "-m", "prefect", "worker", "start", "--pool", "default", "--work-queue", "default"),
        log="worker-ui.log",
        env={"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_WORKER_QUERY_SECONDS": "1"},
    )
    yield names
    end(process.pid, patience=1)


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
