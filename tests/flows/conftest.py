"""Workspaces and wheels for the tests of flows and tasks."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.logging.handlers import APILogWorker

from prefect_environments import ContainerRegistry, Workspace
from tests.flows.parts import prefect, unique, wheel_folder
from tests.support.base import BaseLayout
from tests.support.registry import Registry


@pytest.fixture(scope="session", autouse=True)
def server(prefect_server: str) -> Iterator[None]:
    """The server of all runs; it gets their last log lines before it ends, else each process waits for it in vain."""
    yield
    APILogWorker.drain_all(timeout=30)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with the wheels of a small environment."""
    return wheel_folder(tmp_path / "wheels")


@pytest.fixture
def local(tmp_path: Path) -> Workspace:
    """A workspace in a folder: images and versions."""
    return Workspace.local(tmp_path / "workspace")


@pytest.fixture
def remote(prefect_server: str, open_registry: Registry) -> Workspace:
    """An unsaved workspace in the open registry; its versions are on the Prefect API."""
    registry = ContainerRegistry(address=open_registry.address, plain_http=True)
    return Workspace(name=unique("Team"), registry=registry, repository_prefix=unique("environments"))


@pytest.fixture
def saved(remote: Workspace, base_layout: BaseLayout) -> Workspace:
    """The workspace as a block, which other machines load."""
    remote.registry.save(unique("registry"))
    remote.save(unique("workspace"))
    return remote


@pytest.fixture
def run_logs() -> Iterator[None]:
    """Runs log as they do for users: the session's tests are quieter."""
    loggers = [logging.getLogger("prefect.flow_runs"), logging.getLogger("prefect.task_runs")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def deployed(server: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The work pool `default`, and in it what prefect.yaml deploys, from a folder that holds nothing else."""
    folder = tmp_path_factory.mktemp("deploy")
    shutil.copy(Path(__file__).parents[2] / "prefect.yaml", folder)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="default", type="process"), overwrite=True)
    return prefect("deploy", "--all", folder=folder)
