import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.lock.model import LockedBase
from prefect_environments.core.lock.resolver import ResolveRequest
from prefect_environments.core.lock.source_builds import FolderWheelStore
from prefect_environments.core.lock.target import Target
from prefect_environments.core.lock.uv import UvResolver
from tests.support.wheels import Index, make_wheel, serve_index

TARGET = Target("3.12.7", "/usr/local/bin/python3.12", "glibc", "2.36")
BASE = LockedBase("registry.example.com/python:3.12", "sha256:" + "a" * 64)

Request = Callable[..., ResolveRequest]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder of the index, with a pip in it."""
    folder = tmp_path / "files"
    make_wheel(folder, "pip", "26.1")
    return folder


@pytest.fixture
def index(files: Path) -> Iterator[Index]:
    with serve_index(files) as index:
        yield index


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file in which the sdists of these tests note that their build backend ran."""
    return tmp_path / "backend-ran"


@pytest.fixture
def environ(tmp_path: Path, ran: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"  # interpreters of users stay out
    return kept | {"UV_CACHE_DIR": str(tmp_path / "cache"), "BACKEND_RAN": str(ran)}


@pytest.fixture
def store(tmp_path: Path) -> FolderWheelStore:
    return FolderWheelStore(tmp_path / "store")


@pytest.fixture
def resolver(environ: dict[str, str], store: FolderWheelStore) -> UvResolver:
    return UvResolver(environ=environ, wheel_store=store)


@pytest.fixture
def request_for(index: Index) -> Request:
    """Makes requests to the served index."""

    def make(*packages: str, **options: Any) -> ResolveRequest:
        given: dict[str, Any] = {"target": TARGET, "base": BASE, "index_url": index.url} | options
        return ResolveRequest(packages, **given)

    return make
