"""Wheels that become layers in processes: the same bytes as in a thread, whatever becomes of the processes."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.build import converters as module
from prefect_environments.core.build import recipe
from prefect_environments.core.build.convert import convert_wheels
from prefect_environments.core.build.convert_worker import Done, Job
from prefect_environments.core.build.converters import WORTH_IT, Converters
from prefect_environments.core.errors import PackageError
from prefect_environments.core.lock.model import LockedPackage
from tests.core.build.parts import BASICS, TARGET, write_members
from tests.support.jobs import is_alive, until
from tests.support.wheels import make_wheel

Wheels = list[tuple[LockedPackage, Path]]


@pytest.fixture
def converters() -> Iterator[Converters]:
    """Two processes, whatever this machine has."""
    converters = Converters(2)
    converters.start(WORTH_IT)
    yield converters
    converters.close()


@pytest.fixture
def wheels(tmp_path: Path) -> Wheels:
    files = {f"demo/{number}.py": b"print()\n" * number for number in range(200)}
    return [_locked(make_wheel(tmp_path / "wheels", "demo", "1.0", files))]


def _locked(path: Path) -> tuple[LockedPackage, Path]:
    return LockedPackage("demo", "1.0", path.name, "0" * 64, path.stat().st_size, None), path


async def _convert(converters: Converters, wheels: Wheels, folder: Path) -> tuple[Done, bytes]:
    out = folder / "layer"
    with out.open("w+b") as file:
        done = await converters.convert(wheels, TARGET, file, folder)
        file.flush()
        return done, out.read_bytes()


def _in_thread(wheels: Wheels, folder: Path) -> tuple[Done, bytes]:
    out = io.BytesIO()
    return convert_wheels(wheels, TARGET, out, folder), out.getvalue()


def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only processes convert from here on."""

    def refuse(*_: object, **__: object) -> Done:
        raise AssertionError("a thread converts")

    monkeypatch.setattr(module, "convert_wheels", refuse)


async def test_a_process_gives_what_a_thread_gives(
    converters: Converters, wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_threads(monkeypatch)
    for _ in range(3):
        assert await _convert(converters, wheels, tmp_path) == _in_thread(wheels, tmp_path)


async def test_many_at_once_take_turns(converters: Converters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_threads(monkeypatch)
    given = [[_locked(make_wheel(tmp_path / str(n), "demo", "1.0", {"demo/n": b"n" * n}))] for n in range(20)]
    monkeypatch.setattr(converters, "_turns", asyncio.Semaphore(2))  # one for each process, also where cores are more
    found = await asyncio.gather(*(_convert(converters, one, one[0][1].parent) for one in given))
    assert found == [_in_thread(one, tmp_path) for one in given]
    assert len(converters.pids) == 2


async def test_a_refused_wheel_is_the_same_error(
    converters: Converters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheels: Wheels
) -> None:
    bad = write_members(tmp_path / "bad", {**BASICS, "../outside": b"content"})
    with pytest.raises(PackageError) as expected:
        _in_thread([_locked(bad)], tmp_path)
    _no_threads(monkeypatch)
    with pytest.raises(PackageError) as caught:
        await _convert(converters, [_locked(bad)], tmp_path)
    assert str(caught.value) == str(expected.value)
    await _convert(converters, wheels, tmp_path)  # and goes on
    assert len(converters.pids) == 2


async def test_an_error_that_is_none_of_ours_is_the_threads(
    converters: Converters, wheels: Wheels, tmp_path: Path
) -> None:
    """The process ends of it: it may be of the process's own surroundings. If it is not, it comes as it was raised."""
    nothing: Any = None
    with (tmp_path / "layer").open("w+b") as file, pytest.raises(AttributeError) as caught:
        await converters.convert(wheels, nothing, file, tmp_path)
    assert "convert.py" in str(caught.getrepr())
    assert len(converters.pids) == 1


async def test_where_a_process_dies_a_thread_goes_on(converters: Converters, wheels: Wheels, tmp_path: Path) -> None:
    expected = _in_thread(wheels, tmp_path)
    for pid in converters.pids:
        os.kill(pid, signal.SIGKILL)
    assert [await _convert(converters, wheels, tmp_path) for _ in range(3)] == [expected] * 3
    assert converters.pids == []
    converters.start(WORTH_IT)
    assert converters.pids == []  # what dies once may die again


async def test_one_that_dies_in_the_middle_leaves_nothing_in_the_layer(
    converters: Converters, wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._Worker.do

    def dies(worker: module._Worker, job: Job) -> Done | Exception:
        job.out.write_bytes(b"half of a layer" * 100_000)
        worker._process.kill()
        return real(worker, job)

    monkeypatch.setattr(module._Worker, "do", dies)
    assert await _convert(converters, wheels, tmp_path) == _in_thread(wheels, tmp_path)


async def test_cancelling_ends_the_process_that_works_on_it(
    converters: Converters, wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for worker in converters._workers:
        os.kill(worker.pid, signal.SIGSTOP)  # so that it is at work for as long as we look
    before = set(converters.pids)
    task = asyncio.create_task(_convert(converters, wheels, tmp_path))
    await until(lambda: len(converters._idle) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (ended,) = before - set(converters.pids)
    await until(lambda: not Path(f"/proc/{ended}").exists())  # nor a zombie
    os.kill(converters.pids[0], signal.SIGCONT)
    _no_threads(monkeypatch)
    assert await _convert(converters, wheels, tmp_path) == _in_thread(wheels, tmp_path)
    converters.start(WORTH_IT)
    assert len(converters.pids) == 2  # another takes its place: one build's failure is not the next one's


async def test_closing_ends_all_and_threads_go_on(converters: Converters, wheels: Wheels, tmp_path: Path) -> None:
    pids = converters.pids
    converters.close()
    assert len(pids) == 2 and not any(is_alive(pid) for pid in pids)
    converters.start(WORTH_IT)
    assert converters.pids == []
    assert await _convert(converters, wheels, tmp_path) == _in_thread(wheels, tmp_path)


async def test_closing_while_they_work_ends_them(converters: Converters, wheels: Wheels, tmp_path: Path) -> None:
    for pid in converters.pids:
        os.kill(pid, signal.SIGSTOP)
    task = asyncio.create_task(_convert(converters, wheels, tmp_path))
    await until(lambda: len(converters._idle) == 1)
    converters.close()
    assert await task == _in_thread(wheels, tmp_path)  # whoever still waits gets it from a thread


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Killed, in the middle of a job: nothing is left to say so but the end of the pipe."""
    (tmp_path / "slow.py").write_text(
        "import sys, time\n"
        "from prefect_environments.core.build import convert_worker\n"
        "convert_worker.convert_wheels = lambda *_: time.sleep(600)\n"
        "convert_worker.serve(int(sys.argv[1]))\n"
    )
    script = (
        "import asyncio, pathlib, sys, threading\n"
        "from prefect_environments.core.build import converters as c\n"
        "from tests.core.build.parts import TARGET\n"
        "c.START = c.START.partition('from')[0] + f'sys.path.insert(0, {sys.argv[1]!r}); import slow'\n"
        "converters = c.Converters(2)\n"
        "converters.start(c.WORTH_IT)\n"
        "print(*converters.pids, flush=True)\n"
        "async def main():\n"
        "    with open(sys.argv[1] + '/layer', 'w+b') as out:\n"
        "        await asyncio.gather(*(converters.convert([], TARGET, out, pathlib.Path('.')) for _ in range(2)))\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(1)  # they are at work, or still start: both have to end
    assert all(is_alive(pid) for pid in pids)
    parent.kill()
    parent.communicate()
    asyncio.run(until(lambda: not any(is_alive(pid) for pid in pids)))


async def test_another_release_that_is_installed_meanwhile_converts_nothing(
    converters: Converters, wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that runs for weeks may start processes of a package that was upgraded under it: the layer's key says
    by which recipe it was made."""
    job = Job(wheels, TARGET, tmp_path / "layer", tmp_path, release=(recipe.VERSION + 1, recipe.__file__))
    (tmp_path / "layer").touch()
    worker = next(iter(converters._workers))
    with pytest.raises(module._WorkerGone):
        await asyncio.to_thread(worker.do, job)
    assert (tmp_path / "layer").read_bytes() == b""


async def test_where_no_process_can_start_threads_convert(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    converters = Converters(2)
    converters.start(WORTH_IT)
    assert converters.pids == []
    assert await _convert(converters, wheels, tmp_path) == _in_thread(wheels, tmp_path)


async def test_one_that_does_not_come_up_costs_nothing_but_itself(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START", "raise SystemExit('no')")
    converters = Converters(2)
    converters.start(WORTH_IT)
    try:
        assert await _convert(converters, wheels, tmp_path) == _in_thread(wheels, tmp_path)
    finally:
        converters.close()


NAMES = "csv", "email", "installer", "pickle", "queue", "select", "sitecustomize", "threading"


@pytest.mark.parametrize("first", [False, True])
async def test_modules_of_a_flows_folder_do_not_run(
    first: bool, wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be called as others are. Prefect puts a flow's folder first on the path, where this process, which has
    imported the others before, does not see it."""
    for name in (*NAMES, "prefect_environments"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*([str(tmp_path)] if first else []), *sys.path, tmp_path, object()])
    converters = Converters(1)
    converters.start(WORTH_IT)
    expected = _in_thread(wheels, tmp_path)
    _no_threads(monkeypatch)
    try:
        assert await _convert(converters, wheels, tmp_path) == expected
    finally:
        converters.close()
    assert not (tmp_path / "ran").exists()


async def test_what_is_printed_is_no_answer(wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracers that start with Python say so; read as a pickle, some of their words begin a text of a gigabyte."""
    expected = _in_thread(wheels, tmp_path)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nprint('Tracing enabled'), print('Traced', file=sys.stderr)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _no_threads(monkeypatch)
    converters = Converters(1)
    converters.start(WORTH_IT)
    try:
        assert await _convert(converters, wheels, tmp_path) == expected
    finally:
        converters.close()


async def test_paths_mean_what_they_mean_here(
    converters: Converters, wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache may be named relatively, and the current folder be another one since the processes were started."""
    expected = _in_thread(wheels, tmp_path)
    _no_threads(monkeypatch)
    monkeypatch.chdir(tmp_path)
    relative = [(package, path.relative_to(tmp_path)) for package, path in wheels]
    assert await _convert(converters, relative, Path()) == expected


@pytest.mark.parametrize(
    ("quota", "cores", "processes"),
    [("max 100000", 8, 4), ("200000 100000", 8, 2), ("150000 100000", 8, 2), ("100000 100000", 8, 0), ("", 3, 3)],
)
def test_as_many_as_the_container_has_cores(
    quota: str, cores: int, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a core counts as one; where there is one only, processes would take turns as threads do."""
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(module, "_QUOTA", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(module, "_Worker", type("NoProcess", (), {"pid": 0}))
    converters = Converters()
    converters.start(WORTH_IT)
    assert len(converters.pids) == processes


def test_little_work_starts_none() -> None:
    converters = Converters(2)
    converters.start(WORTH_IT - 1)
    assert converters.pids == []


@pytest.mark.parametrize(
    ("name", "value"), [("frozen", True), ("executable", "/usr/bin/uwsgi"), ("executable", ""), ("executable", None)]
)
def test_a_program_that_has_python_inside_is_not_started_again(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_cores", lambda: 2)
    monkeypatch.setattr(sys, name, value, raising=False)
    converters = Converters()
    converters.start(WORTH_IT)
    assert converters.pids == []
