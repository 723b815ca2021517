"""Jobs in a real Docker engine: what they see, what they leave, and how they are stopped."""

import asyncio
import fcntl
import hashlib
import re
import socket
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.build.docker.engine import Engine, find_engine
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import EngineUnavailable, JobError, JobFailed, RegistryError
from prefect_environments.core.jobs.local_docker import LABEL, DockerLauncher, remove_abandoned
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import FolderVersionStore
from tests.images.conftest import Define
from tests.images.parts import Secrets, Team, build
from tests.support.engine import DockerEngine
from tests.support.jobs import CALLER, JobBench, containers, use_engine
from tests.support.leaks import find_secret
from tests.support.registry import Registry
from tests.support.session import Session

LOOK = """
import json, os, pathlib, sys
import alpha
pathlib.Path("train.py").write_text("damaged")
pathlib.Path(os.environ["HOME"], "cache").write_text("writable")
pathlib.Path("outputs/deep").mkdir()
pathlib.Path("outputs/deep/model.bin").write_bytes(b"1234")
shm = os.statvfs("/dev/shm")
json.dump({"loss": 0.25, "shm": shm.f_blocks * shm.f_frsize}, open("outputs/metrics.json", "w"))
print("where", os.getcwd(), sys.executable, os.getuid(), os.getgid())
print("variables", os.environ.get("ENTRY"), os.environ["KEPT"], os.environ["GIVEN"], os.environ["OVER"])
print("arguments", *sys.argv[1:])
print("to stderr", file=sys.stderr)
"""


@pytest.fixture(scope="session")
def trained(test_session: Session, open_registry: Registry, wheels: Path, dressed: str) -> str:
    """The environment `job` with `alpha` in the shared registry, on a base with an entrypoint and a user of its own;
    gives the folder of its versions."""

    def make() -> dict[str, str]:
        folder = test_session.folder / "job-versions"
        team = Team.on(open_registry, folder, repository_prefix="images/jobs")
        wanted = EnvironmentDefinition(
            name="job",
            base_image=dressed,
            requirements=("alpha",),
            find_links=(str(wheels),),
            no_index=True,
            environment_variables={"GIVEN": "environment's", "OVER": "environment's"},
        )
        asyncio.run(build(team, wanted, test_session.folder / "job-cache"))
        return {"folder": str(folder)}

    return str(test_session.once("image-job", make)["folder"])


@pytest.fixture
def bench(
    *,
    trained: str,
    open_registry: Registry,
    docker_engine: DockerEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> JobBench:
    use_engine(docker_engine, monkeypatch)
    secrets = Secrets({"token": f"planted-{uuid.uuid4().hex}"})
    team = Team.on(open_registry, Path(trained), repository_prefix="images/jobs", secrets=secrets)
    return JobBench(team, "job", tmp_path, tmp_path / "cache", "local:docker")


async def test_a_script_runs_in_the_image_and_its_outputs_are_the_callers(
    bench: JobBench, docker_engine: DockerEngine
) -> None:
    """Neither the image's entrypoint nor its user nor its working directory counts; the source is a copy."""
    result = await bench.run(
        LOOK, arguments=("--lr", "0.1 0.2"), shm_size="96m", environment_variables={"OVER": "job's"}
    )
    assert f"where /job /opt/env/bin/python {CALLER[0]} {CALLER[1]}" in bench.lines
    assert "variables None yes environment's job's" in bench.lines
    assert {"arguments --lr 0.1 0.2", "to stderr"} <= set(bench.lines)
    assert (result.target, result.exit_code, result.name, result.version) == ("docker", 0, "job", 1)
    assert "@sha256:" in result.reference
    assert result.metrics == {"loss": 0.25, "shm": 96 * 1024**2}
    assert [file.path for file in result.files] == ["metrics.json", "deep/model.bin"]
    assert {"image", "run", "prepare"} <= result.seconds.keys()
    made = Path(result.outputs, "deep", "model.bin").stat()
    assert (made.st_uid, made.st_gid) == CALLER
    assert (bench.folder / "source" / "train.py").read_text() == LOOK
    assert bench.left() == []
    assert not [name for name in containers(docker_engine) if result.id in name]


async def test_an_image_of_a_layout_is_loaded_once(
    define: Define, tmp_path: Path, docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config's digest is the engine's own name for it; `local` finds the engine by itself."""
    use_engine(docker_engine, monkeypatch)
    team = Team.on(tmp_path / "images", tmp_path / "versions")
    await build(team, define("alpha"), tmp_path / "cache")
    bench = JobBench(team, "demo:1", tmp_path, tmp_path / "cache", "local")
    script = "import alpha; alpha.main()"
    first = await bench.run(script, outputs="")
    assert (first.target, first.outputs, first.files) == ("docker", "", ())
    assert bench.lines == ["alpha says 1.0"]
    digest = first.reference.rpartition(":")[2]
    loaded = docker_engine.docker("image", "inspect", "--format", "{{.Id}}", f"prefect-environments/loaded:{digest}")
    layout = tmp_path / "images" / "blobs" / "sha256"
    assert (layout / loaded.strip().removeprefix("sha256:")).is_file()
    for layer in layout.iterdir():
        if layer.stat().st_size > 1_000_000:
            layer.unlink()  # so that only the engine has it now
    await bench.run(script)


async def test_a_private_registry_is_asked_with_the_workspaces_credentials(
    define: Define,
    basic_registry: Registry,
    tmp_path: Path,
    docker_engine: DockerEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The password is a secret reference; a wrong one is refused, and not shown."""
    use_engine(docker_engine, monkeypatch)
    settings = RegistrySettings(basic_registry.address, basic_registry.username, "secret:registry")
    versions, good = FolderVersionStore(tmp_path / "versions", "team"), Secrets({"registry": basic_registry.password})
    team = Team(settings, versions, repository_prefix=f"jobs-{uuid.uuid4().hex[:8]}", secrets=good)
    await build(team, define("alpha"), tmp_path / "cache")
    bench = JobBench(team, "demo", tmp_path, tmp_path / "cache", "local:docker")
    bench.workspace = replace(team, secrets=Secrets({"registry": "wrong-8f21"}))
    with pytest.raises((RegistryError, JobError)) as caught:
        await bench.run(command="true")
    assert "wrong-8f21" not in str(caught.value)
    bench.workspace = team
    await bench.run(command=["alpha-say"])
    assert bench.lines == ["alpha says 1.0"]


async def test_a_secret_is_seen_by_the_script_and_nowhere_else(
    bench: JobBench, docker_engine: DockerEngine, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Not in lines, metrics, images, labels, or files of the engine and of ours, while it runs and after it."""
    caplog.set_level(0)
    script = (
        "import hashlib, json, os, sys, time\n"
        "token = os.environ['TOKEN']\n"
        "print('the token is', token, hashlib.sha256(token.encode()).hexdigest(), flush=True)\n"
        "json.dump({'token': token}, open('outputs/metrics.json', 'w'))\n"
        "os.remove('outputs/metrics.json') if len(sys.argv) > 1 else sys.exit(token)\n"
    )
    secret: str = bench.workspace.secrets.values["token"]  # type: ignore[attr-defined]
    variables = {"TOKEN": "secret:token"}
    result = await bench.run(script, arguments=("ok",), environment_variables=variables)
    with pytest.raises(JobFailed) as caught:
        await bench.run(script, environment_variables=variables)
    assert f"the token is ********** {hashlib.sha256(secret.encode()).hexdigest()}" in bench.lines
    images = docker_engine.docker("image", "inspect", *docker_engine.docker("images", "--quiet").split())
    (tmp_path / "told").write_text("\n".join([*bench.lines, caplog.text, str(caught.value), str(result), images]))
    assert find_secret(secret, tmp_path / "told", tmp_path / "source", tmp_path / "cache") == []


async def test_a_failing_script_is_an_error_with_its_last_lines(bench: JobBench) -> None:
    """Its outputs are kept; a command that is not in the image is told, too."""
    script = "open('outputs/half.txt', 'w').write('x')\nfor n in range(100): print('line', n)\nraise SystemExit(3)\n"
    with pytest.raises(JobFailed, match=r"failed with exit status 3;[\s\S]*line 99") as caught:
        await bench.run(script)
    assert caught.value.exit_code == 3
    assert "line 50\n" not in str(caught.value)
    found = re.search(r"is in (\S+)\.", str(caught.value))
    assert found and Path(found[1], "half.txt").read_text() == "x"
    with pytest.raises(JobError, match="no-such-program"):
        await bench.run(command=["no-such-program"])
    with pytest.raises(JobFailed, match="signal 11"):
        await bench.run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert bench.left() == []


async def test_too_little_memory_is_told(bench: JobBench) -> None:
    with pytest.raises(JobFailed, match=r"ran out of memory \(limit 48m\)"):
        await bench.run("x = b'x' * 500_000_000", memory="48m", cpus=1.5)


async def test_the_time_limit_ends_a_job_that_does_not_listen(bench: JobBench, docker_engine: DockerEngine) -> None:
    script = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked'))\n"
        "print('started')\n"
        "for _ in range(600): time.sleep(1)\n"
    )
    with pytest.raises(JobFailed, match="time limit of 2 seconds"):
        await bench.run(script, time_limit_seconds=2)
    assert bench.lines == ["started", "asked"]
    assert bench.left() == []


async def test_a_cancelled_job_leaves_nothing(bench: JobBench, docker_engine: DockerEngine) -> None:
    name = f"cancelled-{uuid.uuid4().hex}"
    command = f"echo {name}; sleep 600 & sleep 600"
    work = asyncio.create_task(bench.run(command=command))
    await bench.until_said(name, work)
    running = set(containers(docker_engine))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert bench.left() == []
    assert not list(bench.outputs.glob("*"))
    assert running - set(containers(docker_engine))
    assert name not in docker_engine.docker("ps", "--all", "--no-trunc")


async def test_containers_of_dead_processes_are_removed_and_those_of_living_ones_stay(
    bench: JobBench, docker_engine: DockerEngine, tmp_path: Path, trained: str
) -> None:
    await bench.run(command="true")  # so that the image is there
    listed = docker_engine.docker("images", "--quiet", "--filter", "reference=*/images/jobs/job")
    (image,) = set(listed.split())
    names = [f"job-test-{uuid.uuid4().hex}" for _ in range(3)]
    markers = [tmp_path / "gone", tmp_path / "free", tmp_path / "held"]
    for marker in markers[1:]:
        marker.touch()
    for name, marker in zip(names, markers, strict=True):
        labels = {LABEL: name, f"{LABEL}.host": socket.gethostname(), f"{LABEL}.marker": str(marker)}
        given = [word for label in labels.items() for word in ("--label", "=".join(label))]
        options = ["--detach", "--network=host", "--name", name, "--entrypoint=sleep"]
        docker_engine.docker("run", *options, *given, image, "600")
    with markers[2].open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remove_abandoned(find_engine())
        assert [name for name in containers(docker_engine) if name in names] == names[2:]
    remove_abandoned(find_engine())
    assert not set(names) & set(containers(docker_engine))


async def test_an_engine_elsewhere_is_refused_by_what_it_cannot_do(bench: JobBench, tmp_path: Path) -> None:
    record = await bench.workspace.versions.newest("job")
    assert record is not None
    async with open_site(bench.workspace, cache=tmp_path / "cache") as site:
        launcher = DockerLauncher(site, Engine("tcp://docker.example.com:2376"))
        with pytest.raises(JobError, match="on this machine"):
            await launcher.run(None, None)  # type: ignore[arg-type]


async def test_docker_that_was_asked_for_and_is_not_there_is_an_error(
    bench: JobBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(EngineUnavailable, match=r"nobody\.sock"):
        await bench.run(command="true")
