"""The parts that the other tests stand on do what they say."""

import base64
import gzip
import io
import os
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.leaks import find_secret
from tests.support.registry import Registry
from tests.support.session import Session


def test_requests_to_the_open_registry_can_be_counted(fresh_registry: Registry, base_layout: BaseLayout) -> None:
    """Each answered request is one line of the log, and the question itself is not among them."""
    assert fresh_registry.requests() == []
    pushed = base_layout.push(fresh_registry.repository_url("debian/base:1"))
    assert pushed == f"{fresh_registry.address}/debian/base@{base_layout.digest}"
    requests = fresh_registry.requests()
    assert "PUT /v2/debian/base/manifests/1" in requests
    assert fresh_registry.requests() == requests


def test_the_open_registry_is_one_for_all(open_registry: Registry, base_layout: BaseLayout) -> None:
    base_layout.push(open_registry.repository_url("support/base:1"))
    assert (open_registry.folder / "docker/registry/v2/repositories/support/base").is_dir()


def test_the_basic_registry_wants_its_password(basic_registry: Registry, base_layout: BaseLayout) -> None:
    target = basic_registry.repository_url("support/base:1")
    with pytest.raises(subprocess.CalledProcessError, match="exit status 1"):
        base_layout.push(target, username=basic_registry.username, password="wrong")
    assert base_layout.push(target, username=basic_registry.username, password=basic_registry.password)


def test_base_without_python_has_none(base_layout_without_python: BaseLayout, base_layout: BaseLayout) -> None:
    def names(layout: BaseLayout) -> str:
        blobs = sorted((layout.folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
        return subprocess.run(["tar", "-tzf", blobs[-1]], check=True, capture_output=True, text=True).stdout

    assert "usr/bin/python3\n" in names(base_layout)
    assert "python" not in names(base_layout_without_python)
    assert "usr/bin/sh\n" in names(base_layout_without_python)


def test_a_container_runs_the_base_images_python(
    docker_engine: DockerEngine, fresh_registry: Registry, base_layout: BaseLayout
) -> None:
    image = base_layout.push(fresh_registry.repository_url("base:1"))
    docker_engine.pull(image)
    assert docker_engine.run(image, "python3", "-c", "import ssl, sqlite3, ctypes; print(6 * 7)") == "42\n"
    assert docker_engine.run(image, "sh", "-c", "echo $((6 * 7))") == "42\n"


def test_a_flow_reports_to_the_shared_server(prefect_server: str) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    @flow
    def answer() -> int:
        return 42

    state = answer(return_state=True)
    assert PREFECT_API_URL.value() == prefect_server
    with get_client(sync_client=True) as client:
        assert state.state_details.flow_run_id
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.state is not None
    assert run.state.is_completed()


def test_nothing_of_the_users_settings_is_used(test_session: Session) -> None:
    """Prefect's home, Docker's logins and caches are inside the session's folder."""
    from prefect.settings import PREFECT_HOME

    for path in (PREFECT_HOME.value(), os.environ["DOCKER_CONFIG"], os.environ["XDG_CACHE_HOME"]):
        assert Path(path).is_relative_to(test_session.folder)
    assert not {name for name in os.environ if name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}


SECRET = "s3cr3t/value+%42"


@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
def test_a_secret_in_base64_is_found_at_every_offset(tmp_path: Path, before: str) -> None:
    (tmp_path / "auth").write_bytes(b"Basic " + base64.b64encode(f"{before}{SECRET}:tail".encode()))
    assert find_secret(SECRET, tmp_path)


def test_a_secret_is_found_in_layers_databases_names_and_addresses(tmp_path: Path) -> None:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w:gz") as tar:
        member = tarfile.TarInfo("etc/token")
        member.size = len(SECRET)
        tar.addfile(member, io.BytesIO(SECRET.encode()))
    (tmp_path / "layer").write_bytes(layer.getvalue())
    (tmp_path / "cut").write_bytes(gzip.compress(SECRET.encode())[:-6])
    (tmp_path / "address").write_text("http://user:s3cr3t%2Fvalue%2B%2542@registry.example.com/")
    with sqlite3.connect(tmp_path / "prefect.db") as database:
        database.execute("create table block (data text)")
        database.execute("insert into block values (?)", (SECRET,))
    database.close()
    (tmp_path / "name-abcdef123").touch()
    found = find_secret(SECRET, tmp_path)
    places = {line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in found}
    assert places == {"layer!gzip", "layer!gzip!etc/token", "cut!gzip", "address", "prefect.db"}
    assert find_secret("abcdef123", tmp_path) == [f"{tmp_path}/name-abcdef123: name"]
    assert find_secret("another-secret", tmp_path) == []


def test_a_search_that_proves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 6 bytes"):
        find_secret("abc", tmp_path)
    with pytest.raises(FileNotFoundError):
        find_secret(SECRET, tmp_path / "absent")
