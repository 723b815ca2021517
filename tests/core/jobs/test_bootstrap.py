"""What runs on a node, with real processes: bootstrap scripts, the wait for the others, and how all end together."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefect_environments import MpiConfiguration, ScriptRunConfig
from prefect_environments.core.jobs.bootstrap import nodes_of, together, write_inside
from prefect_environments.core.jobs.channel import Channel
from prefect_environments.core.jobs.inside.starter import PLAN, TIMED_OUT
from prefect_environments.core.redact import redact
from tests.images.parts import Secrets
from tests.support.jobs import is_alive, until
from tests.support.session import need

START = (
    "import sys; sys.path.insert(0, sys.argv[1] + '/path/prefect_environments'); "
    "from inside.starter import main; sys.exit(main(sys.argv[1:]))"
)


class Nodes:
    """Starts nodes as a launcher does, without images: `run` gives their exit statuses and all that they printed."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder, self.python = folder / "inside", python
        self.work = folder / "work"
        self.work.mkdir()
        write_inside(self.folder)
        self.started: list[asyncio.subprocess.Process] = []

    async def run(self, command: Sequence[str], nodes: int = 1, **plan: Any) -> tuple[list[int], list[str]]:
        start = [self.python, "-I", "-S", "-B", "-c", START, str(self.folder)]
        given = {"kind": "pytorch", "backend": "", "nodes": nodes, "processes": 2, "master": ["127.0.0.1", 29500]}
        given |= {"bootstrap": "", "run_on": "node", "bootstrap_seconds": 60, "starter": start, "grouped": False}
        (self.folder / PLAN).write_text(json.dumps({**given, "command": command, **plan}))
        channel = Channel("job", Secrets(), {}, nodes, bootstrap_seconds=plan.get("bootstrap_seconds", 60))
        async with channel.serve(self.folder):
            for node in range(nodes):
                self.started.append(
                    await asyncio.create_subprocess_exec(
                        *start, str(node), cwd=self.work, stdout=-1, stderr=-2, start_new_session=True
                    )
                )
            done = await asyncio.gather(*(process.communicate() for process in self.started))
        codes = [process.returncode or 0 for process in self.started]
        self.started.clear()
        return codes, [line for out, _ in done for line in out.decode().splitlines()]

    def script(self, text: str) -> str:
        (self.work / "bootstrap.sh").write_text(text)
        return "bootstrap.sh"

    def file(self, name: str) -> str:
        return (self.work / name).read_text()


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


async def test_bootstrap_runs_once_a_node_before_all_commands(nodes: Nodes) -> None:
    """As the leading rank, with bash where there is one; no command starts before the slowest node is ready."""
    script = nodes.script("[[ -n $BASH ]]; sleep 0.$((NODE_RANK * 5)); echo boot $LOCAL_RANK; echo $RANK >> booted\n")
    codes, lines = await nodes.run(shell("echo run $RANK $(wc -l < booted)"), nodes=2, bootstrap=script)
    assert codes == [0, 0]
    assert sorted(lines) == [
        *("[0:0] boot 0", "[0:0] run 0 2", "[0:1] run 1 2"),
        *("[1:2] boot 0", "[1:2] run 2 2", "[1:3] run 3 2"),
    ]


async def test_bootstrap_before_each_process_where_it_is_asked_for(nodes: Nodes) -> None:
    script = nodes.script("echo $RANK >> booted; test -n $MASTER_ADDR\n")
    codes, lines = await nodes.run(shell("wc -l < booted"), nodes=2, bootstrap=script, run_on="process")
    assert codes == [0, 0]
    assert sorted(lines) == ["[0:0] 4", "[0:1] 4", "[1:2] 4", "[1:3] 4"]


async def test_a_bootstrap_that_fails_on_the_leading_rank_ends_all_nodes_at_once(nodes: Nodes) -> None:
    """With its log and its exit status. The other nodes are ready, and would else wait for it for a minute."""
    script = nodes.script("[ $NODE_RANK = 0 ] || exit 0; sleep 0.3; echo cannot install; exit 7\n")
    codes, lines = await nodes.run(shell("echo ran"), nodes=4, processes=1, bootstrap=script)
    assert codes == [7, 7, 7, 7]
    assert lines[:2] == ["[0:0] cannot install", "[0] the bootstrap script bootstrap.sh failed with exit status 7"]
    assert lines[2:] == [
        f"[{n}] is not started: the bootstrap failed on node 0 with exit status 7" for n in range(1, 4)
    ]


async def test_a_script_with_a_marker_file_runs_unchanged(nodes: Nodes) -> None:
    """The leading local rank does the work and touches a file; the others wait for it, as long as it takes."""
    script = nodes.script(
        'rank="${AZ_BATCHAI_TASK_INDEX:-${OMPI_COMM_WORLD_LOCAL_RANK:-${LOCAL_RANK:-0}}}"\n'
        'if [ "$rank" = 0 ]; then sleep 0.2; echo work; touch marker; exit 0; fi\n'
        "while [ ! -f marker ]; do sleep 0.05; done\necho waited\n"
    )
    codes, lines = await nodes.run(shell("echo go"), processes=3, bootstrap=script, run_on="process", kind="mpi")
    assert codes == [0]
    assert sorted(lines[:3]) == ["[0:0] work", "[0:1] waited", "[0:2] waited"]
    if not shutil.which("mpirun"):
        assert sorted(lines[3:]) == ["[0:0] go", "[0:1] go", "[0:2] go"]


async def test_others_do_not_wait_for_the_marker_of_a_leader_that_failed(nodes: Nodes) -> None:
    script = nodes.script('[ "$LOCAL_RANK" != 0 ] || exit 3\nwhile [ ! -f marker ]; do sleep 0.05; done\n')
    codes, lines = await nodes.run(shell("echo ran"), processes=3, bootstrap=script, run_on="process")
    assert codes == [3]
    assert lines[-1] == "[0] the bootstrap script bootstrap.sh failed with exit status 3"
    assert "[0:0] ended with exit status 3; the other processes of the node are stopped" in lines


async def test_a_bootstrap_has_its_time(nodes: Nodes) -> None:
    """Past it, it is ended with what it started, and so is its job."""
    script = nodes.script("sleep 600 & echo $! > child; wait\n")
    codes, lines = await nodes.run(shell("echo ran"), bootstrap=script, bootstrap_seconds=0.3)
    assert codes == [TIMED_OUT]
    assert lines == ["[0] the bootstrap script bootstrap.sh was stopped after 0.3 seconds"]
    await until(lambda: not is_alive(int(nodes.file("child"))))


async def test_what_a_bootstrap_leaves_running_is_there_for_the_command(nodes: Nodes) -> None:
    script = nodes.script("(while [ ! -f stop ]; do sleep 0.05; done; echo stopped) &\n")
    codes, lines = await nodes.run(shell("touch stop; sleep 0.5"), processes=1, bootstrap=script)
    assert codes == [0]
    assert lines == ["[0:0] stopped"]


async def test_the_first_process_that_fails_ends_its_node(nodes: Nodes) -> None:
    command = "if [ $RANK = 1 ]; then while [ ! -f up ]; do sleep 0.05; done; exit 5; fi; sleep 600 & echo $! > child; touch up; wait"  # noqa: E501
    codes, lines = await nodes.run(shell(command))
    assert codes == [5]
    assert lines == ["[0:1] ended with exit status 5; the other processes of the node are stopped"]
    await until(lambda: not is_alive(int(nodes.file("child"))))


async def test_a_process_that_does_not_listen_is_ended_too(nodes: Nodes) -> None:
    command = "trap 'echo asked' TERM; [ $RANK = 0 ] && { sleep 0.2; kill -9 $$; }; while :; do sleep 0.1; done"
    codes, lines = await nodes.run(shell(command))
    assert codes == [128 + signal.SIGKILL]
    assert "[0:1] asked" in lines


async def test_a_command_that_is_not_there_is_told(nodes: Nodes) -> None:
    codes, lines = await nodes.run(["no-such-program"])
    assert codes == [127]
    assert lines == ["[0:0] no-such-program cannot be started: No such file or directory"]


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_node_that_is_asked_to_end_asks_its_processes_once(nodes: Nodes, grouped: bool) -> None:
    """Whether the signal comes to the starter alone, as in a container, or to all of its group."""
    command = "trap 'echo asked; exit 0' TERM; touch up$RANK; while :; do sleep 0.05; done"
    work = asyncio.create_task(nodes.run(shell(command), grouped=grouped))
    await until(lambda: (nodes.work / "up0").exists() and (nodes.work / "up1").exists())
    (process,) = nodes.started
    (os.killpg if grouped else os.kill)(process.pid, signal.SIGTERM)
    codes, lines = await work
    assert codes == [128 + signal.SIGTERM]
    # what shells tell of their children that were asked, too, does not count
    assert sorted(line for line in lines if "Terminated" not in line) == ["[0:0] asked", "[0:1] asked"]


async def test_a_node_that_waits_for_the_others_can_be_asked_to_end(nodes: Nodes) -> None:
    script = nodes.script("touch up$NODE_RANK; [ $NODE_RANK = 0 ] || exec sleep 600\n")
    work = asyncio.create_task(nodes.run(shell("echo ran"), nodes=2, bootstrap=script))
    await until(lambda: (nodes.work / "up0").exists() and (nodes.work / "up1").exists())
    for process in list(nodes.started):
        process.terminate()
    codes, lines = await work
    assert codes == [128 + signal.SIGTERM] * 2 and lines == []


async def test_a_job_that_is_gone_leaves_no_node_waiting(nodes: Nodes) -> None:
    """The launcher ends while one node waits for the other."""
    channel = Channel("job", Secrets(), {}, 2)
    async with channel.serve(nodes.folder):
        reader, writer = await asyncio.open_unix_connection(sock=_connected(nodes.folder))
        writer.write(b'{"do": "ready", "node": 0, "code": 0}\n')
        await until(lambda: bool(channel._ready))
    assert await reader.read() in (b"", b"{}\n")
    writer.close()


def _connected(folder: Path) -> Any:
    import socket

    line = socket.socket(socket.AF_UNIX)
    place = os.open(folder, os.O_RDONLY)
    line.connect(f"/proc/self/fd/{place}/socket")
    os.close(place)
    return line


@dataclass
class Job:
    config: ScriptRunConfig
    variables: dict[str, str]


def test_the_way_to_run_comes_first_and_the_jobs_own_paths_stay(tmp_path: Path) -> None:
    """Those of its variables, else those of its image. One process without a distribution needs no starter."""
    given = {"folder": tmp_path, "seen": "/seen", "python": "python", "python_path": "/image"}
    for variables, expected in (({}, "/seen/path:/image"), ({"PYTHONPATH": "/own"}, "/seen/path:/own")):
        (node,) = nodes_of(Job(ScriptRunConfig(script="a.py"), variables), **given)  # type: ignore[arg-type]
        assert node.variables["PYTHONPATH"] == expected
        assert (node.command, node.variables["PREFECT_ENVIRONMENTS_JOB"]) == (("python", "a.py"), "/seen")
    assert not list(tmp_path.iterdir())


def test_the_plan_of_a_job_holds_no_value_of_its_variables(tmp_path: Path) -> None:
    config = ScriptRunConfig(script="a.py", distribution=MpiConfiguration(process_count_per_node=2, node_count=3))
    nodes = nodes_of(Job(config, {"TOKEN": "planted-51c0"}), python="python", folder=tmp_path, seen="/seen")
    assert [node.command[-2:] for node in nodes] == [("/seen", str(rank)) for rank in range(3)]
    plan = (tmp_path / PLAN).read_text()
    assert "planted-51c0" not in plan + repr(nodes) and json.loads(plan)["command"] == ["python", "a.py"]


async def test_the_first_node_that_fails_ends_the_others() -> None:
    """What is given is how that one ended; a cancellation ends all."""
    ended = []

    async def node(number: int, seconds: float, code: int) -> tuple[int, bool]:
        try:
            await asyncio.sleep(seconds)
        finally:
            ended.append(number)
        return code, False

    assert await together([node(0, 600, 0), node(1, 0.01, 9), node(2, 600, 0)]) == (9, False)
    assert sorted(ended) == [0, 1, 2]
    assert await together([node(0, 0, 0), node(1, 0.01, 0)]) == (0, False)
    ended.clear()
    work = asyncio.create_task(together([node(0, 600, 0), node(1, 600, 0)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work
    assert sorted(ended) == [0, 1]


async def test_open_mpi_starts_the_processes_of_one_node_where_it_is(nodes: Nodes) -> None:
    """Each finds out who it is, by its variables and by MPI itself; the first that fails ends all."""
    need("mpirun")
    script = (
        "import ctypes, os\n"
        "mpi = ctypes.CDLL('libmpi.so.40', mode=ctypes.RTLD_GLOBAL)\n"
        "world = ctypes.byref(ctypes.c_char.in_dll(mpi, 'ompi_mpi_comm_world'))\n"
        "rank, size = ctypes.c_int(), ctypes.c_int()\n"
        "mpi.MPI_Init(None, None), mpi.MPI_Comm_rank(world, ctypes.byref(rank))\n"
        "mpi.MPI_Comm_size(world, ctypes.byref(size))\n"
        "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'OMPI_COMM_WORLD_RANK')\n"
        "print(rank.value, size.value, *(os.environ[name] for name in names), flush=True)\n"
        "mpi.MPI_Finalize()\n"
    )
    codes, lines = await nodes.run([sys.executable, "-c", script], kind="mpi", processes=4)
    assert codes == [0], lines
    told = [line for line in lines if line.startswith("[0:")]
    assert sorted(told) == [f"[0:{rank}] {rank} 4 {rank} {rank} 4 {rank}" for rank in range(4)]
    assert lines[0].startswith("[0] ") and lines[0].endswith("mpirun starts the processes")
    command = "if [ $RANK = 1 ]; then sleep 0.3; exit 5; fi; echo $$ > child; exec sleep 600"
    codes, lines = await nodes.run(shell(command), kind="mpi")
    assert codes == [5], lines
    await until(lambda: not is_alive(int(nodes.file("child"))))


async def test_what_open_mpi_started_ends_when_it_is_killed(nodes: Nodes) -> None:
    need("mpirun")
    command = "echo $$ > child$RANK; exec sleep 600"
    work = asyncio.create_task(nodes.run(shell(command), kind="mpi"))
    places = [nodes.work / f"child{rank}" for rank in range(2)]
    await until(lambda: all(place.exists() and place.read_text().strip() for place in places))
    os.killpg(nodes.started[0].pid, signal.SIGKILL)
    await until(lambda: not any(is_alive(int(place.read_text())) for place in places))
    codes, lines = await work
    assert codes == [-signal.SIGKILL], redact("\n".join(lines))
