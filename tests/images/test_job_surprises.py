"""What jobs do that nobody asked them to: leave children, replace their outputs folder, change their environment."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.errors import DefinitionError, JobError, JobFailed
from prefect_environments.core.jobs import local_docker
from prefect_environments.core.jobs.local_process import GPUS
from tests.images.parts import Secrets, Team
from tests.images.test_job_docker import bench as docker_bench  # noqa: F401 - fixtures
from tests.images.test_job_docker import trained  # noqa: F401
from tests.images.test_job_process import bench as process_bench  # noqa: F401
from tests.images.test_job_process import needs_the_bases_python
from tests.support.engine import DockerEngine
from tests.support.jobs import JobBench, containers, is_alive, until

without_gpus = pytest.mark.skipif(any(Path(place).exists() for place in GPUS), reason="this machine has GPUs")

PEM = "-----BEGIN KEY-----\nplanted-line-one-5b21\nplanted-line-two-77ac\n-----END KEY-----\n"


@needs_the_bases_python
async def test_a_child_that_left_its_group_ends_with_the_job(process_bench: JobBench) -> None:  # noqa: F811
    """A daemon, such as a dashboard's server, with a session of its own."""
    command = (
        "setsid sh -c 'echo $$ > outputs/child; exec sleep 600' & while [ ! -s outputs/child ]; do sleep 0.05; done"
    )
    result = await process_bench.run(command=command)
    child = int(Path(result.outputs, "child").read_text())
    await until(lambda: not is_alive(child))


@needs_the_bases_python
async def test_outputs_of_a_job_that_made_its_folder_anew_are_kept(process_bench: JobBench) -> None:  # noqa: F811
    command = "rm -rf outputs; mkdir -p outputs/deep; echo 1 > outputs/deep/model; ln -s /etc outputs/link"
    result = await process_bench.run(command=command)
    assert [file.path for file in result.files] == ["deep/model"]
    assert Path(result.outputs, "deep", "model").read_text() == "1\n"


@needs_the_bases_python
async def test_outputs_may_be_named_from_here(
    process_bench: JobBench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A relative folder is this process's, not the job's."""
    monkeypatch.chdir(process_bench.folder)
    monkeypatch.setattr(JobBench, "outputs", Path("here"))
    result = await process_bench.run(command="echo 1 > outputs/model")
    assert Path(result.outputs).is_absolute()
    assert Path(process_bench.folder, "here", result.id, "outputs", "model").exists()


@needs_the_bases_python
async def test_what_a_job_installs_is_not_there_for_the_next_one(
    process_bench: JobBench,  # noqa: F811
    wheels: Path,
) -> None:
    """A bootstrap script may install packages; the next job has the lock's versions again."""
    install = f"python -m pip install --quiet --no-index --find-links {wheels} gamma && python -c 'import gamma'"
    await process_bench.run(command=install)
    await process_bench.run(command="python -m pip uninstall --quiet --yes beta")
    look = "import importlib.util, beta; print(importlib.util.find_spec('gamma'))"
    await process_bench.run(look)
    assert process_bench.lines[-1] == "None"


@needs_the_bases_python
async def test_a_status_that_is_no_signal_is_told_as_it_is(process_bench: JobBench) -> None:  # noqa: F811
    """`sys.exit(-1)` is status 255."""
    with pytest.raises(JobFailed, match="failed with exit status 255"):
        await process_bench.run("import sys; sys.exit(-1)")
    with pytest.raises(JobFailed, match="ended by signal 11"):
        await process_bench.run(command="kill -SEGV $$")


@needs_the_bases_python
async def test_each_line_of_a_secret_that_a_script_asked_for_is_masked(process_bench: JobBench) -> None:  # noqa: F811
    team = process_bench.workspace
    assert isinstance(team, Team)
    process_bench.workspace = replace(team, secrets=Secrets({"key": PEM, "token": "planted-token-90de\n"}))
    script = (
        "from prefect_environments import Run\n"
        "run = Run.get_context()\n"
        "print(run.get_secret('key'), flush=True)\n"
        "print('token', run.get_secret('token').strip())\n"
    )
    await process_bench.run(script, secrets=("secret:key", "secret:token"))
    assert "planted" not in "".join(process_bench.lines) and "token **********" in process_bench.lines


@without_gpus
@needs_the_bases_python
async def test_gpus_that_are_not_there_are_refused(process_bench: JobBench) -> None:  # noqa: F811
    with pytest.raises(JobError, match="no GPU"):
        await process_bench.run(command="true", gpus=1)


@needs_the_bases_python
async def test_outputs_behind_a_link_touch_nothing_of_this_machine(process_bench: JobBench) -> None:  # noqa: F811
    data = process_bench.folder / "data"
    (data / "outputs").mkdir(parents=True)
    (data / "outputs" / "precious").write_text("1")
    (process_bench.source() / "data").symlink_to(data)
    with pytest.raises(DefinitionError, match="link"):
        await process_bench.run(command="true", outputs="data/outputs")
    assert (data / "outputs" / "precious").exists()


async def test_an_engine_that_does_not_see_our_folders_is_told(
    docker_bench: JobBench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where this runs in a container that was given the socket of the machine's engine."""
    monkeypatch.setattr(local_docker, "source_of", lambda request, node: Path("/elsewhere"))
    with pytest.raises(JobError, match="does not see this machine's folders"):
        await docker_bench.run(command="true", outputs="")


@without_gpus
async def test_gpus_of_docker_that_are_not_there_are_refused(docker_bench: JobBench) -> None:  # noqa: F811
    with pytest.raises(JobError, match="Docker engine has none to give"):
        await docker_bench.run(command="true", gpus=1)


@needs_the_bases_python
async def test_a_job_goes_on_in_what_it_installed_while_the_next_one_starts(
    process_bench: JobBench,  # noqa: F811
    wheels: Path,
) -> None:
    """The second one gets an environment of its own; once both ended, the first place is made anew."""
    install = f"python -m pip install --quiet --no-index --find-links {wheels} gamma; echo installed"
    wait = "while [ ! -f outputs/go ]; do sleep 0.05; done; python -c 'import gamma, sys; print(sys.prefix)'"
    first = asyncio.create_task(process_bench.run(command=f"{install}; {wait}"))
    await process_bench.until_said("installed", first)
    look = "import importlib.util as u, sys; print(u.find_spec('gamma'), sys.prefix)"
    await process_bench.run(look)
    (outputs,) = process_bench.outputs.glob("*/outputs")
    (outputs / "go").touch()
    await first
    await process_bench.run(look)
    second, of_first, third = process_bench.lines[1:]
    assert second == f"None {of_first}-1" and third == f"None {of_first}"


ODD = r"""
import os, pathlib, subprocess, sys
out = pathlib.Path("outputs")
for number in range(10_000):
    (out / f"file-{number:05}").touch()
os.mkfifo(out / "pipe")
os.symlink("/etc/hostname", out / "metrics.json")
open(b"outputs/\xff", "w").close()
subprocess.Popen(["sleep", "600"], start_new_session=True)
raw = sys.stdout.buffer
raw.write(b"10%\r50%\r100%\r\n\xff\x00odd\n" + b"x" * 1_000_000 + b"\nno end")
raw.flush()
"""


async def check_odd_job(bench: JobBench) -> str:
    """Ten thousand files, a pipe, links out, a child that goes on, a line of a megabyte, bytes that are no text."""
    result = await bench.run(ODD)
    assert bench.lines[:2] == ["100%", "\N{REPLACEMENT CHARACTER}odd"] and bench.lines[3:] == ["no end"]
    assert len(bench.lines[2]) < 10_000
    assert len(result.files) == 1000 and result.metrics == {}
    assert len(list(Path(result.outputs).iterdir())) == 10_003
    assert bench.left() == []
    return result.id


@needs_the_bases_python
async def test_whatever_a_process_prints_and_leaves_is_bounded_and_told(process_bench: JobBench) -> None:  # noqa: F811
    await check_odd_job(process_bench)


async def test_whatever_a_container_prints_and_leaves_is_bounded_and_told(
    docker_bench: JobBench,  # noqa: F811
    docker_engine: DockerEngine,
) -> None:
    job = await check_odd_job(docker_bench)
    assert not [name for name in containers(docker_engine) if job in name]
