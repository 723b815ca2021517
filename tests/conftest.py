"""Shared parts of the tests: real registries, a Docker engine, a Prefect server, a base image.

Each is started once a session, by the first worker that asks for it. Where a part is missing, the tests that need it
are skipped with the reason; with CI=true they fail.
"""

from tests.support.session import Session, end

SESSION = Session.join()
SESSION.isolate()  # before anything imports Prefect

import os  # noqa: E402
import signal  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from itertools import count  # noqa: E402

import pytest  # noqa: E402

from prefect_environments.core import redact  # noqa: E402
from tests.support.base import BaseLayout, base_image  # noqa: E402
from tests.support.engine import DockerEngine, start_engine  # noqa: E402
from tests.support.prefect import start_server  # noqa: E402
from tests.support.registry import Registry, start_registry  # noqa: E402

_numbers = count()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """After failures, show how the log of each shared process ends."""
    if exitstatus == pytest.ExitCode.TESTS_FAILED and SESSION.owner:
        for log in [SESSION.log("dockerd.log"), SESSION.log("prefect-server.log")]:
            if not log.exists():
                continue
            terminalreporter.section(f"the end of {log.name}")
            terminalreporter.write_line(log.read_text(errors="replace")[-1500:])


def pytest_configure() -> None:
    if SESSION.owner:  # a terminated run cleans up as an interrupted one does
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_unconfigure() -> None:
    if SESSION.owner:
        SESSION.close()


@pytest.fixture(autouse=True)
def _forgotten_secrets() -> Iterator[None]:
    """A value such as `password` that one test took for a secret is not masked in the texts of the next."""
    known = set(redact._values)
    yield
    redact._values.intersection_update(known)


@pytest.fixture(scope="session")
def test_session() -> Session:
    return SESSION


@pytest.fixture(scope="session")
def open_registry() -> Registry:
    """A registry that lets everybody in, shared by all tests: choose repositories of your own."""
    return Registry.from_json(SESSION.once("open", lambda: start_registry(SESSION, "registry-open").to_json()))


@pytest.fixture(scope="session")
def basic_registry() -> Registry:
    """A registry that wants a user name and a password, shared by all tests."""

    def start() -> dict[str, object]:
        return start_registry(SESSION, "registry-basic", username="ann", password="pass-word-8f21c").to_json()

    return Registry.from_json(SESSION.once("basic", start))


@pytest.fixture
def fresh_registry(worker_id: str) -> Iterator[Registry]:
    """An empty registry of the test's own."""
    registry = start_registry(SESSION, f"registry-{worker_id}-{os.getpid()}-{next(_numbers)}")
    yield registry
    end(registry.pid)


@pytest.fixture(scope="session")
def base_layout() -> BaseLayout:
    """A small Debian image with Python, in an OCI image layout that nobody may change."""
    return base_image()


@pytest.fixture(scope="session")
def base_layout_without_python() -> BaseLayout:
    """A tiny Debian image with a shell and no Python at all."""
    from examples.base.make_base import NO_PYTHON

    return base_image(NO_PYTHON)


@pytest.fixture(scope="session")
def docker_engine() -> DockerEngine:
    """A Docker engine; our own, with an empty image store, where we may start one."""
    return DockerEngine(**SESSION.once("docker", lambda: start_engine(SESSION)))


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The API address of a real Prefect server, which this process uses from here on."""
    url = SESSION.once("prefect", lambda: start_server(SESSION))["url"]
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # a flow without a heartbeat thread ends up to one second sooner
    with (
        pytest.MonkeyPatch.context() as patch,
        temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        patch.setenv("PREFECT_API_URL", url)  # for processes that tests start
        yield url
