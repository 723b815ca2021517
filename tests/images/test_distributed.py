"""Jobs of several nodes and processes, in a real Docker engine and as processes of this machine."""

import asyncio
import fcntl
import re
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_environments import MpiConfiguration, PyTorchConfiguration
from prefect_environments.core.build.docker.engine import find_engine
from prefect_environments.core.errors import JobFailed, NotSupportedYet
from prefect_environments.core.jobs.local_docker import LABEL, NETWORK_VARIABLE, remove_abandoned
from prefect_environments.tasks.jobs import metrics_table
from tests.images.test_job_docker import bench as docker_bench  # noqa: F401 - fixtures
from tests.images.test_job_docker import trained  # noqa: F401
from tests.images.test_job_process import bench as process_bench  # noqa: F401
from tests.images.test_job_process import needs_the_bases_python
from tests.support.engine import DockerEngine
from tests.support.jobs import CALLER, JobBench, containers, is_alive, until
from tests.support.session import missing

EXAMPLE = (Path(__file__).parents[2] / "examples" / "distributed" / "train.py").read_text()
TWO_BY_TWO = MpiConfiguration(process_count_per_node=2, node_count=2)
FOUR = PyTorchConfiguration(process_count=4, node_count=4, communication_backend="Gloo")
LOOK = """
import os, pathlib, sys
from prefect_environments import Run
run = Run.get_context()
rank = int(os.environ["RANK"])
print("who", rank, os.environ["WORLD_SIZE"], os.environ["NODE_RANK"], os.environ["LOCAL_RANK"], run.id[:2])
pathlib.Path(f"own-{rank}").touch()
print("files", *sorted(path.name for path in pathlib.Path().glob("own-*")))
pathlib.Path(f"outputs/rank-{rank}").write_text(run.id)
run.log(f"rank-{rank}", rank)
"""


@pytest.fixture
def networks(docker_engine: DockerEngine) -> Callable[[], list[str]]:
    """Names of the networks that jobs have in the engine."""
    return lambda: docker_engine.docker(
        "network", "ls", "--filter", f"label={LABEL}", "--format", "{{.Name}}"
    ).split()  # fmt: skip


def bootstrap(bench: JobBench, text: str) -> str:
    (bench.source() / "bootstrap.sh").write_text(text)
    return "bootstrap.sh"


def own_containers(engine: DockerEngine, bench: JobBench) -> list[str]:
    """Names of the containers of this test's jobs; other tests have theirs at the same time."""
    shown = f'{{{{.Names}}}} {{{{.Label "{LABEL}.marker"}}}}'
    rows = engine.docker("ps", "--all", "--filter", f"label={LABEL}", "--format", shown).splitlines()
    return [row.split()[0] for row in rows if f" {bench.cache}/" in row]


def mean(lines: list[str], prefixes: tuple[str, ...]) -> None:
    expected = [
        f"{prefix} process {rank} of 4 brought {rank + 1}; the mean of all is 2.5, by a ring of sockets"
        for rank, prefix in enumerate(prefixes)
    ]
    assert sorted(lines) == sorted(expected)


async def test_nodes_are_containers_that_find_each_other_on_a_network_of_their_own(
    docker_bench: JobBench,  # noqa: F811
    docker_engine: DockerEngine,
    networks: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The example agrees on its mean; network and containers are gone afterwards."""
    name = f"probe-{uuid.uuid4().hex[:8]}"
    try:
        docker_engine.docker("network", "create", name)
        docker_engine.docker("network", "rm", name)
    except AssertionError as error:
        missing(f"this engine makes no networks: {error}")
    monkeypatch.delenv(NETWORK_VARIABLE)
    result = await docker_bench.run(EXAMPLE, distribution=TWO_BY_TWO)
    mean(docker_bench.lines, ("[0:0]", "[0:1]", "[1:2]", "[1:3]"))
    assert result.metrics == {"mean": 2.5}
    assert not [name for name in [*containers(docker_engine), *networks()] if result.id in name]


async def test_each_node_has_its_own_copy_of_the_source_and_all_share_the_outputs(
    docker_bench: JobBench,  # noqa: F811
) -> None:
    result = await docker_bench.run(LOOK, distribution=TWO_BY_TWO)
    said = set(docker_bench.lines)
    assert {f"[{r // 2}:{r}] who {r} 4 {r // 2} {r % 2} 20" for r in range(4)} <= said
    files = [set(line.split()[2:]) for line in said if " files " in line]
    assert all(found <= {"own-0", "own-1"} or found <= {"own-2", "own-3"} for found in files)
    assert result.metrics == {f"rank-{rank}": rank for rank in range(4)}
    assert [file.path for file in result.files] == [f"rank-{rank}" for rank in range(4)]
    assert {path.read_text() for path in Path(result.outputs).iterdir()} == {result.id}
    assert {path.stat().st_uid for path in Path(result.outputs).iterdir()} == {CALLER[0]}
    assert docker_bench.left() == []


async def test_a_bootstrap_that_fails_on_rank_0_of_4_fails_all_with_its_log(
    docker_bench: JobBench,  # noqa: F811
    docker_engine: DockerEngine,
) -> None:
    """One of the others is ready and waits, two are still at it for ten minutes: none of them is waited for."""
    script = bootstrap(
        docker_bench,
        'if [ "$RANK" = 0 ]; then sleep 0.5; echo "no package index"; exit 7; fi\n[ "$RANK" = 1 ] || sleep 600\n',
    )
    with pytest.raises(JobFailed) as caught:
        await docker_bench.run("print('trained')", distribution=FOUR, bootstrap=script)
    assert caught.value.exit_code == 7
    assert "[0:0] no package index" in str(caught.value)
    assert "[0] the bootstrap script bootstrap.sh failed with exit status 7" in str(caught.value)
    assert not [line for line in docker_bench.lines if "trained" in line]
    found = re.search(r"the job (\S+) failed", str(caught.value))
    assert found and not [name for name in containers(docker_engine) if found[1] in name]


async def test_a_bootstrap_with_a_marker_file_runs_unchanged_in_each_container(
    docker_bench: JobBench,  # noqa: F811
) -> None:
    """The leading rank of each node does the work, the others wait for its marker in the container's own /tmp."""
    script = bootstrap(
        docker_bench,
        'rank="${AZ_BATCHAI_TASK_INDEX:-${OMPI_COMM_WORLD_LOCAL_RANK:-${LOCAL_RANK:-0}}}"\n'
        'if [ "$rank" = 0 ]; then sleep 0.3; echo work; touch /tmp/bootstrapped\n'
        "else while [ ! -f /tmp/bootstrapped ]; do sleep 0.05; done; echo waited; fi\n",
    )
    await docker_bench.run("print('go')", distribution=TWO_BY_TWO, bootstrap=script, run_on="process")
    works = [line for line in docker_bench.lines if not line.endswith(" go")]
    assert sorted(works) == ["[0:0] work", "[0:1] waited", "[1:2] work", "[1:3] waited"]
    assert len(docker_bench.lines) == 8
    docker_bench.lines.clear()
    words = ["sh", "bootstrap.sh", "&&", "echo", "go"]  # as the command itself, which a shell runs in each process
    await docker_bench.run(command=words, distribution=TWO_BY_TWO)
    assert len(docker_bench.lines) == 8 and "[1:3] waited" in docker_bench.lines


async def test_a_node_that_fails_stops_the_others(
    docker_bench: JobBench,  # noqa: F811
    docker_engine: DockerEngine,
    networks: Callable[[], list[str]],
) -> None:
    script = (
        "import os, time\nif os.environ['RANK'] == '3': raise SystemExit(5)\nprint('up', flush=True)\ntime.sleep(600)\n"
    )
    with pytest.raises(JobFailed, match="exit status 5") as caught:
        await docker_bench.run(script, distribution=FOUR)
    found = re.search(r"the job (\S+) failed", str(caught.value))
    assert found and not [name for name in [*containers(docker_engine), *networks()] if found[1] in name]
    assert docker_bench.left() == []


async def test_a_cancelled_job_of_several_nodes_leaves_nothing(
    docker_bench: JobBench,  # noqa: F811
    docker_engine: DockerEngine,
) -> None:
    """More nodes than the event loop has threads of its own."""
    command = "echo up; sleep 600"
    work = asyncio.create_task(
        docker_bench.run(command=command, distribution=MpiConfiguration(node_count=8, process_count_per_node=1))
    )
    for rank in range(8):
        await docker_bench.until_said(f"[{rank}:{rank}] up", work)
    assert len(own_containers(docker_engine, docker_bench)) == 8
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert own_containers(docker_engine, docker_bench) == []
    assert docker_bench.left() == []


async def test_networks_of_dead_processes_are_removed_and_those_of_living_ones_stay(
    docker_bench: JobBench,  # noqa: F811
    docker_engine: DockerEngine,
    networks: Callable[[], list[str]],
    tmp_path: Path,
) -> None:
    names, held = [f"job-test-{uuid.uuid4().hex[:8]}" for _ in range(2)], tmp_path / "held"
    held.touch()
    for name, marker in zip(names, (tmp_path / "gone", held), strict=True):
        labels = {LABEL: name, f"{LABEL}.host": socket.gethostname(), f"{LABEL}.marker": str(marker)}
        given = [word for label in labels.items() for word in ("--label", "=".join(label))]
        try:
            docker_engine.docker("network", "create", *given, name)
        except AssertionError as error:
            missing(f"this engine makes no networks: {error}")
    with held.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_abandoned(find_engine())
        assert [name for name in networks() if name in names] == names[1:]
    remove_abandoned(find_engine())
    assert not set(names) & set(networks())


async def test_a_script_in_docker_asks_for_a_secret_that_nothing_else_shows(
    docker_bench: JobBench,  # noqa: F811
    docker_engine: DockerEngine,
) -> None:
    secret: str = docker_bench.workspace.secrets.values["token"]  # type: ignore[attr-defined]
    script = (
        "import hashlib, os, pathlib, sys\n"
        "from prefect_environments import Run\n"
        "token = Run.get_context().get_secret(name='token')\n"
        "print('got', hashlib.sha256(token.encode()).hexdigest()[:8], token)\n"
        "held = [path.read_text() for path in pathlib.Path(os.environ['PREFECT_ENVIRONMENTS_JOB']).rglob('*.json')]\n"
        "print('elsewhere', token in ''.join(held), token in str(os.environ), flush=True)\n"
        "import time; time.sleep(0 if sys.argv[1:] else 600)\n"
    )
    work = asyncio.create_task(docker_bench.run(script, secrets=("secret:token",)))
    await docker_bench.until_said("elsewhere False False", work)
    (name,) = own_containers(docker_engine, docker_bench)
    shown = docker_engine.docker("inspect", name)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert secret not in shown
    assert next(line for line in docker_bench.lines if line.startswith("got ")).endswith(" **********")
    with pytest.raises(JobFailed, match="is not for this job, which may have: none"):
        await docker_bench.run(script, arguments=("now",))


@needs_the_bases_python
async def test_processes_of_this_machine_are_started_the_same_way(process_bench: JobBench) -> None:  # noqa: F811
    four = PyTorchConfiguration(process_count=4, communication_backend="Gloo")
    result = await process_bench.run(EXAMPLE, distribution=four)
    mean(process_bench.lines, ("[0:0]", "[0:1]", "[0:2]", "[0:3]"))
    assert result.metrics == {"mean": 2.5} and result.series == {}
    process_bench.lines.clear()
    result = await process_bench.run(LOOK, distribution=TWO_BY_TWO)
    assert {f"[{r // 2}:{r}] who {r} 4 {r // 2} {r % 2} 20" for r in range(4)} <= set(process_bench.lines)
    assert [file.path for file in result.files] == [f"rank-{rank}" for rank in range(4)]
    assert process_bench.left() == []


@needs_the_bases_python
async def test_the_time_limit_ends_all_processes_of_all_nodes(process_bench: JobBench) -> None:  # noqa: F811
    command = "sleep 600 & echo $! > outputs/child-$RANK; wait"
    with pytest.raises(JobFailed, match="time limit of 1 seconds"):
        await process_bench.run(
            command=command, distribution=PyTorchConfiguration(process_count=4, node_count=2), time_limit_seconds=1
        )
    children = [int(path.read_text()) for path in process_bench.outputs.glob("*/outputs/child-*")]
    assert len(children) == 4
    await until(lambda: not any(map(is_alive, children)))


@needs_the_bases_python
async def test_a_script_logs_series_and_more_than_its_metrics_file(process_bench: JobBench) -> None:  # noqa: F811
    """What is logged counts more than the file."""
    script = (
        "import json\nfrom prefect_environments import Run\nrun = Run.get_context()\n"
        "json.dump({'loss': 9, 'file': 1}, open('outputs/metrics.json', 'w'))\n"
        "for n in range(3): run.log('loss', n / 4)\nprint(run.id)\n"
    )
    result = await process_bench.run(script)
    assert result.metrics == {"loss": 0.5, "file": 1}
    assert result.series == {"loss": (0.0, 0.25, 0.5)}
    assert metrics_table(result) == [
        {"metric": "loss", "value": 0.5, "values": 3, "least": 0.0, "most": 0.5},
        {"metric": "file", "value": 1, "values": 1, "least": 1, "most": 1},
    ]
    assert process_bench.lines == [result.id]


@needs_the_bases_python
async def test_several_nodes_on_a_work_pool_are_refused_before_anything_runs(
    process_bench: JobBench,  # noqa: F811
) -> None:
    with pytest.raises(NotSupportedYet, match="2 nodes, and a work pool"):
        await process_bench.run("pass", distribution=TWO_BY_TWO, compute_target="pool")
