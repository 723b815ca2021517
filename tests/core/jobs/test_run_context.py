"""`Run` in a job and the channel to its launcher, over real sockets."""

import asyncio
import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_environments import Run
from prefect_environments.core.errors import SecretError
from prefect_environments.core.jobs import channel as channels
from prefect_environments.core.jobs.bootstrap import INSIDE, write_inside
from prefect_environments.core.jobs.channel import Channel, Metrics, allowed_secrets
from prefect_environments.core.jobs.inside import wire
from prefect_environments.core.jobs.inside.run import RunError
from prefect_environments.core.redact import MASK, redact
from tests.images.parts import Secrets

_T = TypeVar("_T")
_KEYS = ["do", "points", "name", "node", "code"]
SECRET = f"planted-{uuid.uuid4().hex}"
INSIDE_FILES = sorted((Path(channels.__file__).parent / "inside").glob("*.py"))


@pytest.fixture
def channel() -> Channel:
    return Channel("job-1", Secrets({"token": SECRET}), allowed_secrets(("secret:token", "secret:gone")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Deeper than a socket's address may be long."""
    found = tmp_path / ("deep" * 20) / ("er" * 20)
    found.mkdir(parents=True)
    return found


async def inside(channel: Channel, folder: Path, work: Callable[[Run], _T], host: str = "") -> _T:
    """What a job does, in a thread, while its launcher listens."""
    async with channel.serve(folder, host):
        return await asyncio.to_thread(lambda: work(Run(str(folder))))


async def raw(folder: Path, data: bytes) -> dict[str, Any]:
    """What the launcher answers to these bytes; empty where it hangs up."""

    def work() -> bytes:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30)
            place = os.open(folder, os.O_RDONLY)
            line.connect(f"/proc/self/fd/{place}/{wire.SOCKET}")
            os.close(place)
            with suppress(OSError):  # it may hang up before all is sent
                line.sendall(data)
                line.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError), line.makefile("rb") as answer:
                return answer.read()
            return b""

    found = await asyncio.to_thread(work)
    return dict(json.loads(found)) if found else {}


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
async def test_what_a_script_logs_and_asks_for_goes_both_ways(channel: Channel, folder: Path, host: str) -> None:
    def work(run: Run) -> str:
        assert run.id == "job-1" and not run.is_offline
        for loss in (0.5, 0.25):
            run.log("loss", loss, step=1)
        run.log(name="done", value=True)
        run.log_list("seen", [1, 2, 3])
        run.log_row("epoch", number=1, speed="fast")
        run.log_table("table", {"x": [1, 2], "y": 7})
        return run.get_secret(name="token")

    assert await inside(channel, folder, work, host) == SECRET
    assert channel.metrics.last == {
        **{"loss": 0.25, "done": True, "seen": 3, "epoch.number": 1, "epoch.speed": "fast"},
        **{"table.x": 2, "table.y": 7},
    }
    assert channel.metrics.series == {"loss": (0.5, 0.25), "seen": (1, 2, 3), "table.x": (1, 2)}
    assert redact(f"it is {SECRET}") == f"it is {MASK}"
    assert not (folder / wire.SOCKET).exists()


async def test_a_secret_comes_only_where_the_config_names_it_and_is_there(channel: Channel, folder: Path) -> None:
    def work(run: Run) -> list[str]:
        told = []
        for name in ("other", "gone", "secret:other", ""):
            with pytest.raises(RunError) as caught:
                run.get_secret(name)
            told.append(str(caught.value))
        assert run.get_secrets(["token", "secret:token"]) == {"token": SECRET, "secret:token": SECRET}
        return told

    other, gone, *_ = await inside(channel, folder, work)
    assert "'other' is not for this job, which may have: gone, secret:gone, secret:token, token." in other
    assert "there is no secret secret:gone" in gone
    files = [path.read_text() for path in folder.iterdir() if path.is_file()]
    assert SECRET not in "".join(files) and SECRET not in repr(channel)


def test_which_secrets_a_job_may_have() -> None:
    """Those of its variables it has anyway; of two with one name, the one that is named as such."""
    vault = "@Microsoft.KeyVault(VaultName=team;SecretName=token)"
    found = allowed_secrets(("secret:token",), {"A": vault, "B": "plain", "C": "secret:feed"})
    assert {name: str(reference) for name, reference in found.items()} == {
        "token": "secret:token",
        "secret:token": "secret:token",
        "feed": "secret:feed",
        "secret:feed": "secret:feed",
        vault: vault,
    }
    with pytest.raises(SecretError, match="two secrets are named token"):
        allowed_secrets(("secret:token", vault))


async def test_values_come_as_pythons_own_and_what_json_cannot_have_as_text(channel: Channel, folder: Path) -> None:
    class Scalar:
        def item(self) -> float:
            return 0.125

    def work(run: Run) -> None:
        run.log("numpy", Scalar())
        run.log("nan", math.nan)
        run.log("large", 10**30)
        run.log("none", None)
        run.log("told", f"a {'x' * 5000}")
        run.log(" odd\nname ", 1)
        run.log_list("many", range(20_000))  # more than one request takes
        run.log_list("wide", ["\N{GRINNING FACE}" * 500] * 20)

    await inside(channel, folder, work)
    last = channel.metrics.last
    assert (last["numpy"], last["nan"], last["large"], last["none"]) == (0.125, "nan", str(10**30), "None")
    assert len(str(last["told"])) == 1000 and last["odd name"] == 1 and last["many"] == 19_999
    assert len(str(last["wide"])) == 500


async def test_a_secret_that_is_logged_is_masked(channel: Channel, folder: Path) -> None:
    await inside(channel, folder, lambda run: run.log("token", run.get_secret("token")))
    assert channel.metrics.last == {"token": MASK}


async def test_processes_and_threads_of_a_job_do_not_get_in_each_others_way(channel: Channel, folder: Path) -> None:
    script = (
        "import multiprocessing, threading\n"
        "from prefect_environments import Run\n"
        "run = Run.get_context()\n"
        "run.log('own', 1)\n"
        "context = multiprocessing.get_context('fork')\n"
        "work = [context.Process(target=run.log_list, args=(f'process-{n}', [n] * 20)) for n in range(3)]\n"
        "work += [threading.Thread(target=run.log_list, args=(f'thread-{n}', [n] * 20)) for n in range(3)]\n"
        "[one.start() for one in work], [one.join() for one in work]\n"
    )
    write_inside(folder)
    async with channel.serve(folder):
        env = {"PYTHONPATH": f"{folder}/path", wire.VARIABLE: str(folder)}
        child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", script, env=env)
        assert await child.wait() == 0
    kinds = ("process", "thread")
    assert channel.metrics.last == {"own": 1} | {f"{kind}-{n}": n for kind in kinds for n in range(3)}


async def test_more_callers_than_a_launcher_takes_at_once_wait(
    channel: Channel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "CONNECTIONS", 1)
    async with channel.serve(folder):
        run = Run(str(folder))
        await asyncio.gather(*(asyncio.to_thread(run.log, f"n{n}", n) for n in range(30)))
    assert len(channel.metrics.last) == 30


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\n",
        b"[]\n",
        b"{}\n",
        b'{"do": "log", "points": {"a": 1}}\n',
        b'{"do": "log", "points": [["a", [1]]]}\n',
        b'{"do": "log", "points": [["a", 1, 2]]}\n',
        b'{"do": "log", "points": [["", 1]]}\n',
        b'{"do": "log", "points": [["good", 1], ["bad", null]]}\n',
        b'{"do": "secret", "name": ["token"]}\n',
        b'{"do": "ready", "node": 7, "code": 0}\n',
        b'{"do": "ready", "node": 0, "code": true}\n',
        b'{"do": "leave"}\n',
        b"[" * 60_000 + b"\n",
        b"1" * 60_000 + b"\n",
        b"x" * 1_000_000 + b"\n",
        b"\xff\xfe\n",
        b'{"do": "log"',
    ],
    ids=lambda data: data[:40].decode(errors="replace"),
)
async def test_nonsense_is_refused_and_the_next_request_served(channel: Channel, folder: Path, data: bytes) -> None:
    async with channel.serve(folder):
        answer = await raw(folder, data)
        assert set(answer) <= {"error"} and SECRET not in str(answer)
        assert await raw(folder, b'{"do": "log", "points": [["kept", 1]]}\n') == {}
    assert channel.metrics.last == {"kept": 1}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    request=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner),
        max_leaves=8,
    ),
    kind=st.sampled_from(["log", "secret", "ready", "", None]),
)  # fmt: skip
def test_whatever_json_comes_is_answered(channel: Channel, tmp_path: Path, request: Any, kind: str | None) -> None:
    if isinstance(request, dict) and kind is not None:
        request["do"] = kind

    async def work() -> None:
        async with channel.serve(tmp_path):
            answer = await raw(tmp_path, json.dumps(request).encode() + b"\n")
            assert set(answer) <= {"error", "failed"}

    asyncio.run(work())
    assert len(channel.metrics.last) < channels.NAMES


async def test_a_port_is_for_those_who_know_the_token(channel: Channel, folder: Path) -> None:
    async with channel.serve(folder, "127.0.0.1"):
        described = json.loads((folder / wire.DESCRIPTION).read_text())
        for token in ({}, {"token": "guessed"}, {"token": None}):
            reader, writer = await asyncio.open_connection("127.0.0.1", described["port"])
            writer.write(json.dumps({"do": "secret", "name": "token", **token}).encode() + b"\n")
            assert json.loads(await reader.readline()) == {"error": "the token is missing or wrong"}
            writer.close()
    assert (folder / wire.DESCRIPTION).stat().st_mode & 0o077 == 0
    assert described["token"] not in repr(channel)


async def test_a_flood_is_slowed_down_and_the_loop_stays_free(
    channel: Channel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten callers send as fast as they can; in between, the launcher's own work gets its turns."""
    monkeypatch.setattr(channels, "RATE", 200)
    turns = 0

    async def own_work() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.005)
            turns += 1

    watch = asyncio.create_task(own_work())
    async with channel.serve(folder):
        loop, run = asyncio.get_running_loop(), Run(str(folder))
        started = loop.time()
        for_each = [n for _ in range(10) for n in range(40)]
        with ThreadPoolExecutor(10) as threads:
            await asyncio.gather(*(loop.run_in_executor(threads, run.log, "x", n) for n in for_each))
        took = loop.time() - started
    watch.cancel()
    assert took >= 0.9, "400 requests, 200 of them at once and 200 a second after that"
    assert turns >= 20


def test_metrics_stay_bounded_and_series_keep_their_shape(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    with caplog.at_level(logging.WARNING):
        for n in range(25_000):
            metrics.add("long", n)
            metrics.add(f"name-{n}", n)
    assert len(metrics.last) == channels.NAMES and metrics.last["long"] == 24_999
    series = metrics.series["long"]
    steps = {after - before for before, after in pairwise(series)}  # type: ignore[operator]
    assert channels.SERIES // 2 - 1 <= len(series) <= channels.SERIES and len(steps) == 1
    assert len({record.message for record in caplog.records if "more than 1000 metrics" in record.message}) == 1
    for name in list(metrics.last):
        for n in range(2000):
            metrics.add(name, n)
    assert sum(map(len, metrics.series.values())) <= channels.POINTS


async def test_a_script_goes_on_when_its_launcher_is_gone(
    channel: Channel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = await inside(channel, folder, lambda run: run)
    run.log("loss", 0.5)
    assert "loss is not logged: the launcher of this job gives no answer" in capsys.readouterr().err
    with pytest.raises(RunError, match="gives no answer"):
        run.get_secret("token")


def test_without_a_launcher_a_run_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(wire.VARIABLE, raising=False)
    run = Run.get_context()
    run.log("loss", 0.5)
    run.log_row("epoch", number=1)
    assert run.is_offline and run.id.startswith("offline-")
    assert capsys.readouterr().out == "loss: 0.5\nepoch.number: 1\n"
    with pytest.raises(RunError, match="this run is offline"):
        run.get_secret("token")
    with pytest.raises(RunError, match="allow_offline is false"):
        Run.get_context(allow_offline=False)
    monkeypatch.setenv(wire.VARIABLE, "/nowhere")
    with pytest.raises(RunError, match="/nowhere"):
        Run.get_context()


def pythons() -> list[str]:
    """An interpreter of each minor version that there is on this machine and that starts."""
    found = []
    for minor in range(8, 16):
        path = shutil.which(f"python3.{minor}")
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            found.append(path)
    return found or [sys.executable]


@pytest.mark.parametrize("python", pythons(), ids=lambda path: Path(path).name)
async def test_run_needs_nothing_but_a_python(channel: Channel, tmp_path: Path, python: str) -> None:
    """`from prefect_environments import Run` works in an interpreter without a single package."""
    place = tmp_path / "inside"
    write_inside(place)
    script = (
        "import sys; from prefect_environments import Run\n"
        "run = Run.get_context(); run.log('minor', sys.version_info[1])\n"
        "print(run.id, Run.__module__, sorted(n for n in sys.modules if n in ('pydantic', 'asyncio', 'prefect')))\n"
        "import prefect_environments.inside.starter\n"
    )
    env = {"PYTHONPATH": f"{place}/path", wire.VARIABLE: str(place), "PATH": os.environ["PATH"]}
    async with channel.serve(place):
        command = [python, "-S", "-c", script]
        done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "job-1 prefect_environments.inside.run []\n"
    minor = Path(python).name.removeprefix("python3.")
    assert str(channel.metrics.last["minor"]) == (minor if minor.isdigit() else str(sys.version_info[1]))


def test_where_the_package_is_installed_all_but_run_is_its_own(tmp_path: Path) -> None:
    """Also in its submodules, and where it has a `Run` of another release."""
    write_inside(tmp_path / "inside")
    installed = tmp_path / "site" / "prefect_environments"
    (installed / "core").mkdir(parents=True)
    (installed / "core" / "__init__.py").write_text("name = __name__\n")
    (installed / "__init__.py").write_text(
        "Run = 'theirs'\nEnvironment = 'theirs'\ndef __getattr__(name): return 'lazy ' + name\n"
    )
    code = (
        "import prefect_environments as ours, prefect_environments.core as core, importlib\n"
        "print(ours.Run.__module__, ours.Environment, ours.Workspace, core.name, ours.__spec__.name)\n"
        "from prefect_environments.inside import wire; print(wire.VARIABLE, ours.__file__)\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}/inside/path:{tmp_path}/site"}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "prefect_environments.inside.run theirs lazy Workspace prefect_environments.core prefect_environments",
        f"{wire.VARIABLE} {installed}/__init__.py",
    ]


def test_the_real_package_behind_the_jobs_own_works(tmp_path: Path) -> None:
    write_inside(tmp_path / "inside")
    code = "from prefect_environments import EnvironmentDefinition, Run; print(EnvironmentDefinition(name='x').name, Run.__module__)"  # noqa: E501
    env = {"PYTHONPATH": f"{tmp_path}/inside/path"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("x prefect_environments.inside.run\n", "")


def test_the_place_in_containers_leaves_an_address_its_room() -> None:
    assert len(f"{INSIDE}/{wire.SOCKET}") < 100
    assert any(file.name == "package.py" for file in INSIDE_FILES)
