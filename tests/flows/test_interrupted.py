"""A run that is stopped in the middle of a download leaves nothing behind, and the next one goes on."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect import flow

from prefect_environments import Workspace
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.steps import BuiltImage
from prefect_environments.tasks import build_image, resolve_environment
from tests.flows.parts import define, unique
from tests.support.base import BaseLayout
from tests.support.wheels import make_wheel


class Stalled(BaseHTTPRequestHandler):
    """Sends the beginning of a file, and then nothing more until the test is over."""

    asked, over = threading.Event(), threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"PK")
        self.wfile.flush()
        self.asked.set()
        self.over.wait(120)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def stalled() -> Iterator[str]:
    """The address of an index whose downloads never end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stalled)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Stalled.over.set()
    server.shutdown()
    server.server_close()


def test_a_flow_that_times_out_leaves_no_temporary_files(
    base_layout: BaseLayout, local: Workspace, stalled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's time-out reaches the download, whose file is removed; the same build with a working index ends."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "pip", "26.1")
    make_wheel(wheels, "slow", "1.0", {"slow.py": unique("content").encode()})
    definition = define(base_layout, wheels, "slow")
    lock = resolve_environment(definition, local)
    packages = tuple(replace(p, url=f"{stalled}/{p.filename}") if p.name == "slow" else p for p in lock.packages)

    @flow(persist_result=False, timeout_seconds=4)
    def build(lock: Lock) -> BuiltImage:
        return build_image(definition, lock, local)

    state = build(replace(lock, packages=packages), return_state=True)
    assert (state.name, Stalled.asked.is_set()) == ("TimedOut", True)
    assert list((tmp_path / "cache").rglob("tmp-*")) == []
    assert list((tmp_path / "workspace").rglob("tmp-*")) == []
    assert not build(lock).reused
