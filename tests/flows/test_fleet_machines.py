"""Many environments on several machines that share one Prefect server on PostgreSQL, and what machines do that die."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from aiohttp import web
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_environments import ContainerRegistry, EnvironmentDefinition, Workspace
from prefect_environments.core import loop
from prefect_environments.core.fleet.outcome import FleetOutcome
from prefect_environments.core.versions import VersionRecord
from prefect_environments.flows import build_environments
from prefect_environments.tasks import dispatch
from tests.faults.proxy import Fault, Proxy, Rule, proxy_to, reply
from tests.flows.parts import unique
from tests.support.base import BaseLayout
from tests.support.postgres import start_postgres
from tests.support.prefect import free_port, start_server_on
from tests.support.registry import Registry
from tests.support.session import Session, end
from tests.support.wheels import make_wheel

ROOT = Path(__file__).parents[2]
NAMES, HASHES = 20, 4
UPLOAD = r"^PUT /v2/environments/[^/]+/blobs/uploads/"  # not the lock that is kept for the run
WORKER = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_LOGGING_LEVEL": "INFO"}
CLIENT = "import sys; from tests.flows import test_fleet_machines as own; own.client(sys.argv[1])"


@dataclass
class Server:
    """A Prefect server on PostgreSQL that can be killed and started again."""

    session: Session
    database: str
    port: int
    pid: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        home = self.session.folder / f"server-{self.port}"
        home.mkdir(exist_ok=True)
        self.pid = start_server_on(self.session, self.database, self.port, home)

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def shared_server(test_session: Session) -> Iterator[Server]:
    """The server of this module, which all of it uses in place of the session's."""
    database, postgres = start_postgres(test_session, unique("postgres"))
    server = Server(test_session, database, free_port())
    try:
        server.start()
        with temporary_settings({PREFECT_API_URL: server.url}), pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", server.url)
            yield server
    finally:
        end(server.pid)
        end(postgres)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder of wheels: pip and six packages."""
    folder = tmp_path / "index"
    make_wheel(folder, "pip", "26.1")
    for number in range(HASHES):
        make_wheel(folder, f"part{number}", "1.0", {f"part{number}/data.bin": random.Random(number).randbytes(9_000)})
    return folder


@pytest.fixture
def base(fresh_registry: Registry, base_layout: BaseLayout) -> str:
    base_layout.push(fresh_registry.repository_url("base:1"))
    return "base:1"


def saved_workspace(address: str, base: str) -> str:
    """A workspace block that all machines load; gives its name."""
    registry = ContainerRegistry(address=address, plain_http=True)
    registry.save(unique("registry"))
    name = unique("workspace")
    Workspace(name=unique("Team"), registry=registry, default_base_image=f"{address}/{base}").save(name)
    return name


def environments(index: Path, names: int, hashes: int) -> list[EnvironmentDefinition]:
    """Environments of two packages each, some of them alike."""
    return [
        EnvironmentDefinition(
            name=f"env-{number}",
            requirements=(f"part{number % hashes}", f"part{(number + 1) % hashes}"),
            find_links=(str(index),),
            no_index=True,
        )
        for number in range(names)
    ]


def client(order: str) -> None:
    """What a process does that asks for environments."""
    told = json.loads(order)
    wanted = [EnvironmentDefinition(**one) for one in told["environments"]]
    workspace = Workspace.load(told["workspace"])
    assert isinstance(workspace, Workspace)
    found = build_environments(workspace, wanted, deployment=told["deployment"])
    assert isinstance(found, list)
    print(json.dumps([one.model_dump() for one in found]))


def asking(workspace: str, wanted: list[EnvironmentDefinition], deployment: str, home: Path) -> "subprocess.Popen[str]":
    """Start such a process, as if on a machine of its own."""
    order = {
        "workspace": workspace,
        "environments": [one.model_dump(mode="json") for one in wanted],
        "deployment": deployment,
    }
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, json.dumps(order)],
        cwd=ROOT,
        env=machine(home),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def machine(home: Path) -> dict[str, str]:
    """The environment of a machine with an empty disk."""
    home.mkdir(exist_ok=True)
    own = {"PREFECT_HOME": str(home / "prefect"), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **WORKER, **own}


def outcomes(process: "subprocess.Popen[str]") -> list[FleetOutcome]:
    """What such a process got."""
    text = process.communicate(timeout=240)[0]
    assert process.returncode == 0, text
    return [FleetOutcome(**one) for one in json.loads(text.splitlines()[-1])]


@contextmanager
def worker(session: Session, pool: str, home: Path) -> Iterator[int]:
    """A process worker on a machine of its own; gives its process."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    own = machine(home)  # runs begin with a copy of the worker's folder
    process = session.spawn("env", f"--chdir={home}", *command, log=f"{home.name}-{pool}.log", env=own)
    try:
        yield process.pid
    finally:
        end(process.pid)


def make_pool() -> str:
    pool = unique("pool")
    with get_client(sync_client=True) as api:
        api.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    return pool


def builds(workspace: Workspace) -> list[FlowRun]:
    """The runs that built something in a workspace."""
    with get_client(sync_client=True) as api:
        found = api.read_flow_runs(limit=200)
    return [run for run in found if f"-{workspace.name.lower()}-" in str(run.idempotency_key)]


def loaded(name: str) -> Workspace:
    workspace = Workspace.load(name)
    assert isinstance(workspace, Workspace)
    return workspace


def versions(workspace: Workspace) -> dict[str, list[VersionRecord]]:
    names = [record.name for record in loop.run(workspace.versions.names())]
    return {name: loop.run(workspace.versions.versions(name)) for name in names}


@pytest.mark.slow
def test_two_machines_build_each_image_hash_once(
    shared_server: Server,
    test_session: Session,
    fresh_registry: Registry,
    base: str,
    index: Path,
    tmp_path: Path,
) -> None:
    """Both ask for the same twenty environments of four images at the same time, with a worker each: four runs,
    the image of each is put together once, and every name has version 1 and no other."""
    pool, wanted = make_pool(), environments(index, NAMES, HASHES)
    name = saved_workspace(fresh_registry.address, base)
    homes = [tmp_path / "one", tmp_path / "two"]
    with worker(test_session, pool, homes[0]), worker(test_session, pool, homes[1]):
        asked = [asking(name, wanted, pool, home) for home in homes]
        try:
            first, second = [outcomes(process) for process in asked]
        finally:
            for process in asked:
                end(process.pid)
    workspace = loaded(name)
    assert {one.status for one in (*first, *second)} <= {"built", "reused", "ready"}
    assert [(one.name, one.version, one.reference) for one in first] == [
        (one.name, one.version, one.reference) for one in second
    ]
    assert {name: [one.version for one in found] for name, found in versions(workspace).items()} == {
        one.name: [1] for one in wanted
    }
    runs = builds(workspace)
    keys = {f"build-{image_hash}-{workspace.name.lower()}-0" for image_hash in {one.image_hash for one in first}}
    assert Counter(run.idempotency_key for run in runs) == dict.fromkeys(keys, 1)
    assert len(keys) == HASHES
    assert all(run.state is not None and run.state.is_completed() for run in runs)
    assert {len({one.reference.rpartition("@")[2] for one in first if one.image_hash == key}) for key in keys} <= {0, 1}


def hold(released: asyncio.Event) -> Fault:
    """Keep a request until the event is set, and hand it on then."""

    async def fault(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        await released.wait()
        return reply(await proxy.forward(request))

    return fault


def kill_machine(pid: int) -> None:
    """Kill a process and all that it started, as a power cut does."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        fields = status.read_text().rpartition(")")[2].split()
        parents[int(status.parent.name)] = int(fields[1])
    doomed = [pid]
    for one in doomed:
        doomed += [child for child, parent in parents.items() if parent == one]
    for one in doomed:
        with suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(one, signal.SIGKILL)


def begin(work: Callable[[], Any]) -> "asyncio.Future[Any]":
    """Start something in a thread that no loop waits for at its end: it may wait for ever."""
    future, context = Future[Any](), copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(work))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(future)


def has_beaten(workspace: Workspace) -> bool:
    """Whether the API knows a heartbeat of the run that builds in a workspace."""
    with get_client(sync_client=True) as api:
        ids = [f"prefect.flow-run.{run.id}" for run in builds(workspace)]
        wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": ids}}
        return bool(api.request("POST", "/events/filter", json={"filter": wanted}).json()["events"])


@pytest.mark.slow
async def test_a_machine_that_dies_in_the_middle_of_a_build_is_replaced(
    shared_server: Server,
    test_session: Session,
    fresh_registry: Registry,
    base: str,
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who waits for its run sees that its heartbeats stop, has it built by another run, and gets the image."""
    monkeypatch.setattr(dispatch, "SILENCE", 25.0)
    monkeypatch.setattr(dispatch, "BEATS", 1.0)
    released = asyncio.Event()
    async with proxy_to(fresh_registry.address, Rule(UPLOAD, hold(released))) as proxy:
        name, pool = await asyncio.to_thread(lambda: (saved_workspace(proxy.address, base), make_pool()))
        workspace = await asyncio.to_thread(loaded, name)

        def ask() -> Any:
            return build_environments(workspace, environments(index, 1, 1), deployment=pool)

        with worker(test_session, pool, tmp_path / "first") as doomed:
            asked = begin(ask)
            async with asyncio.timeout(120):
                await proxy.reached.wait()
                while not await asyncio.to_thread(has_beaten, workspace):  # noqa: ASYNC110 - the API tells
                    await asyncio.sleep(0.2)
            kill_machine(doomed)
        with worker(test_session, pool, tmp_path / "second"):
            async with asyncio.timeout(200):
                (found,) = await asked
        released.set()
    assert (found.status, found.version) == ("built", 1)
    runs = await asyncio.to_thread(builds, workspace)
    assert sorted(run.state.type.value for run in runs if run.state) == ["COMPLETED", "CRASHED"]


@pytest.mark.slow
async def test_a_run_whose_server_dies_is_completed_by_the_next(
    shared_server: Server,
    fresh_registry: Registry,
    base: str,
    index: Path,
    tmp_path: Path,
) -> None:
    """The server is killed in the middle of a build and started again: what the first run did is found by the next,
    and there is one version of each environment."""
    released, wanted = asyncio.Event(), environments(index, 3, 3)
    async with proxy_to(fresh_registry.address, Rule(UPLOAD, hold(released))) as proxy:
        name = await asyncio.to_thread(saved_workspace, proxy.address, base)
        process = asking(name, wanted, "", tmp_path / "machine")
        try:
            async with asyncio.timeout(120):
                await proxy.reached.wait()
            shared_server.kill()
            await asyncio.to_thread(shared_server.start)
            released.set()
            await asyncio.to_thread(process.communicate, timeout=240)  # it may end well, or not
        finally:
            end(process.pid)
        workspace = await asyncio.to_thread(loaded, name)
        again = await asyncio.to_thread(build_environments, workspace, wanted)
    assert isinstance(again, list)
    assert {one.status for one in again} <= {"built", "reused", "ready"}
    kept = await asyncio.to_thread(versions, workspace)
    assert {name: [one.version for one in found] for name, found in kept.items()} == {one.name: [1] for one in wanted}
