"""Training jobs in a docker work pool, by a real worker that pulls from a real registry."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.filesystems import LocalFileSystem
from prefect.workers.process import ProcessWorker
from pydantic import SecretStr

from prefect_environments import ContainerRegistry, JobResult, ScriptRunConfig, Workspace
from prefect_environments.core import steps
from prefect_environments.core.errors import DefinitionError, JobError, JobFailed
from prefect_environments.core.jobs import run
from prefect_environments.core.redact import MASK, redact
from prefect_environments.core.site import open_site
from prefect_environments.flows import build_environment, run_training_job
from prefect_environments.tasks.pool import PoolLauncher
from tests.flows.parts import Run, define, unique, wheel_folder
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.jobs import until
from tests.support.leaks import find_secret
from tests.support.pool import docker_worker, make_docker_pool, runs_of_jobs
from tests.support.registry import Registry
from tests.support.session import Session

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

LOOK = """
import importlib.util, json, os, sys, time
import spam
from prefect_environments import Run
run = Run.get_context()
secret = os.environ["TOKEN"]
print("spam", spam.__version__, "in", sys.executable, os.getcwd(), "prefect:", importlib.util.find_spec("prefect"))
print("variables", os.environ["GIVEN"], len(secret), run.get_secret(name=sys.argv[1]) == secret)
print("of prefect:", [name for name in os.environ if name.startswith("PREFECT_API")])
print("planted", secret)
run.log("accuracy", 0.5)
run.log("accuracy", 0.97)
os.makedirs("outputs/deep")
open("outputs/deep/model.bin", "w").write("1234")
json.dump({"loss": 0.25}, open("outputs/metrics.json", "w"))
while not os.path.exists("/kept/go"):
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the pool's containers have as /kept."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def pool(test_session: Session, docker_engine: DockerEngine, kept: Path) -> Iterator[str]:
    """A docker pool with a worker."""
    name = unique("docker")
    make_docker_pool(name, volumes=[f"{kept}:/kept"], env={"OF_THE_POOL": "yes"})
    with docker_worker(test_session, name, docker_engine):
        yield name


@pytest.fixture(scope="module")
def team(open_registry: Registry) -> Workspace:
    """A workspace on the open registry, for all tests here: they share the runtime."""
    registry = ContainerRegistry(address=open_registry.address, plain_http=True)
    return Workspace(name=unique("Team"), registry=registry, repository_prefix="work-pools")


@pytest.fixture(scope="module")
def version(team: Workspace, base_layout: BaseLayout, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an environment with spam."""
    wheels = wheel_folder(tmp_path_factory.mktemp("wheels"))
    definition = define(base_layout, wheels, "spam", environment_variables={"GIVEN": "environment's"})
    return build_environment(definition, team).name


class Bench:
    """Runs jobs in `version` on `pool`."""

    def __init__(self, team: Workspace, version: str, pool: str, folder: Path) -> None:
        self.team, self.version, self.pool, self.folder = team, version, pool, folder
        self.lines: list[str] = []

    def config(self, script: str, **fields: Any) -> ScriptRunConfig:
        (self.folder / "train.py").write_text(script)
        given = {"source_directory": str(self.folder), "script": "train.py", "environment": self.version, "outputs": ""}
        return ScriptRunConfig(**{**given, "compute_target": self.pool, **fields})

    async def run(self, config: ScriptRunConfig, storage: str = "") -> JobResult:
        record = await run.find_environment(self.team, self.version)
        async with open_site(self.team) as site:
            launcher = PoolLauncher(site, storage)
            return await run.run_job(site, config, record, launcher=launcher, on_line=self.lines.append)

    async def until_said(self, text: str, work: "asyncio.Task[Any]") -> None:
        while text not in self.lines:
            assert not work.done(), work.exception()
            await asyncio.sleep(0.05)


@pytest.fixture
def bench(team: Workspace, version: str, pool: str, tmp_path: Path) -> Bench:
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(team, version, pool, folder)


def flow_run_of(job: str) -> FlowRun:
    (found,) = runs_of_jobs(f"job-{job}")
    return found


def small_blobs(registry: Registry, image: str) -> list[Path]:
    """The files of an image's manifest, config and small layers, such as the source's."""

    def stored(digest: str) -> Path:
        value = digest.removeprefix("sha256:")
        return registry.folder / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"

    manifest = stored(image.rpartition("@")[2])
    data = json.loads(manifest.read_text())
    return [manifest, *(stored(one["digest"]) for one in (data["config"], *data["layers"]) if one["size"] < 1_000_000)]


def running(bench: Bench) -> FlowRun:
    """The job's run in the pool; its container has the same name."""
    found = [one for one in runs_of_jobs() if one.work_pool_name == bench.pool and one.state and one.state.is_running()]
    assert len(found) == 1
    return found[0]


async def test_a_job_sees_its_environment_and_its_secret_which_is_nowhere_else(
    bench: Bench, kept: Path, docker_engine: DockerEngine, test_session: Session, open_registry: Registry
) -> None:
    """Its own packages and no Prefect; metrics, outputs in a storage block, lines as they come."""
    secret, name = f"planted-{uuid.uuid4().hex}", unique("token")
    await Secret(value=SecretStr(secret)).save(name)
    await LocalFileSystem(basepath="/kept").save(block := unique("outputs"))
    config = bench.config(
        LOOK, arguments=(name,), environment_variables={"TOKEN": f"secret:{name}"}, outputs="outputs", memory="2g"
    )
    work = asyncio.ensure_future(bench.run(config, f"local-file-system/{block}"))
    await bench.until_said(f"planted {MASK}", work)
    seen = docker_engine.docker("inspect", running(bench).name)
    (described,) = json.loads(seen)
    image = docker_engine.docker("image", "inspect", described["Image"])
    history = docker_engine.docker("history", "--no-trunc", described["Image"])
    assert f"secret:{name}" not in seen  # not even its reference: it is a parameter of the run
    assert "OF_THE_POOL=yes" in described["Config"]["Env"]
    (kept / "go").touch()
    result = await work
    (kept / "go").unlink()
    assert "spam 1.0 in /opt/env/bin/python /job prefect: None" in bench.lines
    assert f"variables environment's {len(secret)} True" in bench.lines
    assert "of prefect: []" in bench.lines
    assert (result.exit_code, result.target, result.name) == (0, "work pool", bench.version)
    assert result.metrics == {"loss": 0.25, "accuracy": 0.97}
    assert result.series == {"accuracy": (0.5, 0.97)}
    assert [file.path for file in result.files] == ["metrics.json", "deep/model.bin"]
    assert result.outputs == f"local-file-system/{block}/{result.id}"
    assert (kept / result.id / "deep" / "model.bin").read_text() == "1234"
    child = flow_run_of(result.id)
    assert child.state and child.state.is_completed()
    assert child.job_variables and "@sha256:" in child.job_variables["image"]
    told = await asyncio.to_thread(Run(child.id).messages, "planted")
    everything = [seen, image, history, told, str(child.model_dump()), *bench.lines]
    assert not [text for text in everything if secret in text]
    assert (
        find_secret(secret, *small_blobs(open_registry, child.job_variables["image"]), test_session.folder / "logs")
        == []
    )
    assert redact(secret) == secret  # this process never had it


async def test_a_failing_script_fails_with_its_last_lines(bench: Bench) -> None:
    config = bench.config("print('about to fail')\nraise SystemExit(3)\n")
    with pytest.raises(JobFailed, match=r"failed with exit status 3(?s:.*)about to fail") as caught:
        await bench.run(config)
    assert caught.value.exit_code == 3


async def test_a_cancelled_job_is_stopped_and_leaves_no_container(bench: Bench, docker_engine: DockerEngine) -> None:
    """The run of its container ends as cancelled; the script is asked to end first."""
    script = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(print('asked to end')))\n"
    config = bench.config(script + "print('started')\ntime.sleep(600)\n")
    work = asyncio.ensure_future(bench.run(config))
    await bench.until_said("started", work)
    child = running(bench)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert "asked to end" in await asyncio.to_thread(Run(child.id).messages, "asked to end")
    state = Run(child.id).run.state
    assert state is not None and state.is_cancelled()
    await until(lambda: child.name not in docker_engine.docker("ps", "--all", "--format", "{{.Names}}"))


async def test_a_time_limit_ends_the_job(bench: Bench) -> None:
    config = bench.config("print('started', flush=True)\nimport time\ntime.sleep(600)\n", time_limit_seconds=1)
    with pytest.raises(JobFailed, match="stopped after its time limit of 1 seconds"):
        await bench.run(config)


async def test_a_container_that_is_killed_is_told_with_the_run_that_it_was(
    bench: Bench, docker_engine: DockerEngine
) -> None:
    work = asyncio.ensure_future(
        bench.run(bench.config("print('started', flush=True)\nimport time\ntime.sleep(600)\n"))
    )
    await bench.until_said("started", work)
    child = running(bench)
    docker_engine.docker("kill", child.name)
    with pytest.raises(
        JobError, match=rf"did not come to its end in the work pool {bench.pool}; its flow run {child.id}"
    ):
        await work


async def test_a_job_that_needs_too_much_memory_fails_and_says_so(bench: Bench) -> None:
    config = bench.config("x = b'x' * 2_000_000_000", memory="700m")
    with pytest.raises(JobFailed, match=r"ran out of memory \(limit 700m\)"):
        await bench.run(config)


@pytest.mark.usefixtures("run_logs")
def test_the_flow_runs_a_job_in_the_pool_that_its_config_names(bench: Bench, tmp_path: Path) -> None:
    """Processes of one node, after a bootstrap script; the run of the container is linked to the flow's."""
    (bench.folder / "bootstrap.sh").write_text("echo bootstrapped\n")
    script = "import os\nprint('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])\n"
    config = bench.config(
        script, bootstrap="bootstrap.sh", distribution={"kind": "pytorch", "process_count": 2, "node_count": 1}
    )
    state = run_training_job(config, bench.team, return_state=True)
    result = state.result()
    assert isinstance(result, JobResult) and result.exit_code == 0
    parent = Run(state.state_details.flow_run_id)
    told = parent.messages("ended well")
    assert "bootstrapped" in told and "rank 0 of 2" in told and "rank 1 of 2" in told
    child = flow_run_of(result.id)
    assert child.parent_task_run_id is not None


async def test_a_worker_without_credentials_is_told_of_and_one_with_them_runs_the_job(
    bench: Bench, basic_registry: Registry, base_layout: BaseLayout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The registry's password is in a block that the pool's template refers to, and in no run."""
    secret = unique("password")
    await Secret(value=SecretStr(basic_registry.password)).save(secret)
    registry = ContainerRegistry(
        address=basic_registry.address,
        plain_http=True,
        username=basic_registry.username,
        password=SecretStr(f"secret:{secret}"),
    )
    bench.team = Workspace(name=unique("Team"), registry=registry, repository_prefix="work-pools")
    wanted = define(base_layout, wheel_folder(tmp_path / "wheels"), "spam")
    async with open_site(bench.team) as site:
        built = await steps.build(site, wanted, await steps.resolve(site, wanted))
        bench.version = (await steps.register(site, wanted, built)).name
    with pytest.raises(JobError, match="The registry wants credentials: save them in a registry credentials block"):
        await bench.run(bench.config("print('never')"))
    assert "registry_credentials in the base job template" in caplog.text
    from prefect_docker.credentials import DockerRegistryCredentials  # type: ignore[import-untyped]

    credentials = DockerRegistryCredentials(
        username=basic_registry.username, password=SecretStr(basic_registry.password), registry_url=basic_registry.url
    )
    reference = {"$ref": {"block_document_id": str(await credentials.save(unique("registry")))}}
    async with get_client() as client:
        template = (await client.read_work_pool(bench.pool)).base_job_template
        template["variables"]["properties"]["registry_credentials"]["default"] = reference
        await client.update_work_pool(bench.pool, WorkPoolUpdate(base_job_template=template))
    result = await bench.run(bench.config("print('pulled')"))
    assert "pulled" in bench.lines
    assert basic_registry.password not in str(flow_run_of(result.id).model_dump())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"compute_target": "process-pool"},
            "of type process takes no image.*jobs are processes, which run in no image",
        ),
        ({"compute_target": "nowhere"}, "there is no work pool 'nowhere': there are .*process-pool"),
        ({"compute_target": "paused-pool"}, "the work pool 'paused-pool' is paused; resume it"),
        ({"outputs": "outputs"}, "outputs folder 'outputs' of a job in a work pool goes with its container"),
        ({"outputs": "outputs", "storage": "secret/no-storage"}, "keeps no folders"),
        ({"outputs": "outputs", "storage": "local-file-system/none-there"}, "cannot be loaded"),
        ({"distribution": {"kind": "mpi", "node_count": 2}}, "a work pool runs a job in one container"),
    ],
)
def test_what_a_pool_cannot_run_is_refused_before_anything_is_built(
    fields: dict[str, Any],
    said: str,
    prefect_server: str,
    open_registry: Registry,
    docker_pool_alone: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "train.py").write_text("")
    storage = fields.get("storage", "")
    given = {"compute_target": docker_pool_alone, "outputs": "", **fields}
    given.pop("storage", None)
    workspace = Workspace(
        name=unique("Team"),
        registry=ContainerRegistry(address=open_registry.address, plain_http=True),
        repository_prefix=unique("refused"),
    )
    definition = {"name": "never-built", "base_image": "registry.example.com/none:1"}
    config = ScriptRunConfig(source_directory=str(tmp_path), script="train.py", environment=definition, **given)
    with pytest.raises(DefinitionError, match=said):
        run_training_job(config, workspace, outputs_directory=storage)


@pytest.fixture(scope="module")
def docker_pool_alone(prefect_server: str) -> str:
    """A docker pool without a worker, and pools that cannot run jobs."""
    make_docker_pool(name := unique("docker"))
    Secret(value=SecretStr("no storage")).save("no-storage", overwrite=True)
    with get_client(sync_client=True) as client:
        process = WorkPoolCreate(
            name="process-pool", type="process", base_job_template=ProcessWorker.get_default_base_job_template()
        )
        client.create_work_pool(process, overwrite=True)
        make_docker_pool("paused-pool")
        client.update_work_pool("paused-pool", WorkPoolUpdate(is_paused=True))
    return name
