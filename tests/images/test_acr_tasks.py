"""Environments whose Dockerfile ACR Tasks build: a real builder behind the stand-in, and `Environment.build`."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from prefect_environments.blocks.azure import AzureCredentials
from prefect_environments.blocks.azure_registry import AzureContainerRegistry
from prefect_environments.blocks.registry import ContainerRegistry
from prefect_environments.blocks.workspace import Workspace
from prefect_environments.core.azure.clouds import PUBLIC
from prefect_environments.core.build.acr_tasks.settings import TasksSettings
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import BuildError, DefinitionError, SpecificationError
from prefect_environments.core.workspace import BuildsElsewhere
from tests.images.conftest import Define
from tests.images.parts import Team, build, conforms
from tests.support.azure.acr import TOKEN_USER, AzureContainerRegistryServer
from tests.support.azure.certificates import VAULT_DOMAIN
from tests.support.azure.parts import Azure, running_azure, vault_names_resolve
from tests.support.azure.tasks import (
    GROUP,
    REGISTRY,
    SUBSCRIPTION,
    Run,
    TasksServer,
    engine_agent,
    folder_of,
    pushing_agent,
)
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.registry import Registry
from tests.support.session import Session


@dataclass(frozen=True)
class TasksTeam(Team):
    """A workspace for core alone, whose Dockerfiles ACR Tasks build."""

    acr_tasks: TasksSettings | None = None


@pytest.fixture
def azure(test_session: Session) -> Iterator[Azure]:
    with running_azure(test_session) as running:
        yield running


@pytest.fixture
def tasks(azure: Azure) -> Iterator[TasksServer]:
    async def nobody(run: Run) -> None:
        run.end("Error", "the test has no agent")

    with TasksServer(azure.entra, azure.authority.server_context(), nobody) as server:
        server.grant(azure.app)
        yield server


@pytest.fixture
def tasks_team(
    team: Team, azure: Azure, tasks: TasksServer, docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> TasksTeam:
    """Behind the stand-in a Docker engine builds; the worker itself has none."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    tasks.agent = engine_agent(docker_engine, team.registry_settings.address)
    cloud = replace(PUBLIC, authority_host=azure.entra.url, resource_manager=tasks.url)
    settings = TasksSettings(SUBSCRIPTION, GROUP, REGISTRY, azure.identity(cloud=cloud), poll=0.1)
    return TasksTeam(
        team.registry_settings, team.versions, repository_prefix=team.repository_prefix, acr_tasks=settings
    )


@pytest.mark.parametrize("mount", ["", "--mount=type=tmpfs,target=/scratch "], ids=["classic", "buildkit"])
async def test_packages_lie_on_the_image_that_acr_tasks_built_where_no_engine_is(
    *,
    tasks_team: TasksTeam,
    tasks: TasksServer,
    define: Define,
    open_base: str,
    docker_engine: DockerEngine,
    tmp_path: Path,
    mount: str,
) -> None:
    """Context, ignore file, an argument with spaces and quotes, and the platform reach the builder; the second worker
    finds the image, and schedules nothing."""
    assert isinstance(tasks_team, BuildsElsewhere)
    greeting = 'it\'s "$HOME" & more'
    files = {
        "Dockerfile": f'FROM {open_base}\nARG GREETING\nCOPY . /srv\nRUN {mount}echo "$GREETING" > /greeting\n',
        "data/a.txt": "a",
        "noise.log": "x",
        ".dockerignore": "*.log\nDockerfile\n.dockerignore\n",
    }
    wanted = define(
        "alpha",
        base_image="",
        build_context=str(folder_of(tmp_path / "context", files)),
        build_arguments={"GREETING": greeting},
    )
    found = await build(tasks_team, wanted, tmp_path / "one")
    check = (
        "import os, alpha; assert sorted(os.listdir('/srv')) == ['data'], os.listdir('/srv');"
        f"assert open('/greeting').read() == {greeting!r} + chr(10), open('/greeting').read()"
    )
    await conforms(found.ready.reference, tmp_path / "conforms", engine=docker_engine, check=check)
    again = await build(tasks_team, define("gamma", name="other", **_base_of(wanted)), tmp_path / "two")
    assert len(tasks.runs) == 1 and found.lock and again.lock and again.lock.base == found.lock.base


def _base_of(definition: EnvironmentDefinition) -> dict[str, object]:
    return {name: getattr(definition, name) for name in ("base_image", "build_context", "build_arguments")}


async def test_a_step_that_fails_registers_nothing_and_is_named(
    tasks_team: TasksTeam, tasks: TasksServer, define: Define, open_base: str, tmp_path: Path
) -> None:
    failing = define("alpha", base_image="", dockerfile=f"FROM {open_base}\nRUN echo told >&2; exit 7\n")
    with pytest.raises(BuildError, match=r"(?s)at \[2/2\] RUN echo told.*code: 7.*\n    told"):
        await build(tasks_team, failing, tmp_path / "cache")
    assert tasks.last.status == "Failed" and await tasks_team.versions.names() == []


async def test_build_secrets_are_refused_before_anything_is_sent(
    tasks_team: TasksTeam, tasks: TasksServer, define: Define, open_base: str, tmp_path: Path
) -> None:
    text = f"FROM {open_base}\nRUN --mount=type=secret,id=token true\n"
    asks = define("alpha", base_image="", dockerfile=text, build_secrets={"token": "secret:token"})
    with pytest.raises(SpecificationError, match="builder='docker'"):
        await build(tasks_team, asks, tmp_path / "cache")
    assert not tasks.log


async def test_a_base_that_moves_while_the_run_goes_on_is_an_error(
    *,
    tasks_team: TasksTeam,
    tasks: TasksServer,
    define: Define,
    open_registry: Registry,
    base_layout: BaseLayout,
    base_layout_without_python: BaseLayout,
    tmp_path: Path,
) -> None:
    target = open_registry.repository_url(f"images/moves-in-acr-{os.getpid()}:1")
    base_layout.push(target)
    builds = tasks.agent

    async def moves(run: Run) -> None:
        await asyncio.to_thread(base_layout_without_python.push, target)
        await builds(run)

    tasks.agent = moves
    wanted = define("alpha", base_image="", dockerfile=f"FROM {target}\nENV A=b\n")
    with pytest.raises(BuildError, match="changed while its Dockerfile was built"):
        await build(tasks_team, wanted, tmp_path / "cache")
    tasks.agent = builds
    with pytest.raises(Exception, match="no Python"):
        await build(tasks_team, wanted, tmp_path / "cache")  # what is there now is built, not what was mislabelled
    assert len(tasks.runs) == 2


# ---- the v1 surface, on a workspace of blocks


@pytest.fixture
def workspace(
    azure: Azure, tasks: TasksServer, base_layout: BaseLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workspace]:
    """A registry on Azure, by name and with TLS, whose agents push what is ready: the small base image."""
    vault_names_resolve(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with AzureContainerRegistryServer(azure.entra, tmp_path / "acr", azure.authority.server_context()) as acr:
        acr.grant(azure.app, "AcrPush")
        tasks.agent = pushing_agent(_pusher(acr, azure, base_layout))
        fields = {**azure.fields, "registry_suffix": VAULT_DOMAIN, "resource_manager": tasks.url}
        credentials = AzureCredentials(**fields)
        yield Workspace(
            name="team",
            registry=AzureContainerRegistry(
                login_server=f"{REGISTRY}.{VAULT_DOMAIN}:{acr.port}",
                credentials=credentials,
                subscription_id=SUBSCRIPTION,
                resource_group=GROUP,
                ca_file=str(azure.authority.ca_file),
            ),
            builder="acr-tasks",
            local_folder=str(tmp_path / "local"),
        )


def _pusher(acr: AzureContainerRegistryServer, azure: Azure, image: BaseLayout) -> Callable[[str], str]:
    def push(name: str) -> str:
        target = f"{acr.address}/{name}"
        return image.push(target, username=TOKEN_USER, password=acr.refresh_token(azure.app)).rpartition("@")[2]

    return push


@pytest.fixture
def environment(open_base: str) -> Environment:
    """User-managed: the image that its Dockerfile describes."""
    return Environment.from_dockerfile("train", f"FROM {open_base}\nRUN echo made\n")


def test_build_returns_at_once_and_waiting_shows_the_log_live(
    workspace: Workspace, tasks: TasksServer, environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent goes on when the test has seen that the build is on its way."""
    seen, pushes = threading.Event(), tasks.agent

    async def waits(run: Run) -> None:
        await asyncio.to_thread(seen.wait, 60)
        await pushes(run)

    tasks.agent = waits
    details = environment.build(workspace)
    assert details.status == "Running"
    seen.set()
    ready = details.wait_for_completion(show_output=True)
    shown = capsys.readouterr().out
    assert "== [2/2] RUN echo made\nmade\n" in shown
    assert str(details.status) == "Succeeded" and (ready.name, ready.version) == ("train", 1)
    assert workspace.environments["train"].digest == ready.digest
    assert environment.build(workspace).wait_for_completion(show_output=False).version == 1
    assert len(tasks.runs) == 1 and capsys.readouterr().out == ""


def test_a_build_that_ended_before_anybody_waited_shows_its_whole_log(
    workspace: Workspace, environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defect 9 of Azure ML: a quick one printed nothing."""
    details = environment.build(workspace)
    while details.status == "Running":
        threading.Event().wait(0.05)
    details.wait_for_completion()
    assert "== [1/2] FROM base\n== [2/2] RUN echo made\nmade\n" in capsys.readouterr().out


def test_a_build_that_fails_raises_and_shows_its_log(
    workspace: Workspace, tasks: TasksServer, environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defect 9 of Azure ML: waiting for a failed build raised nothing."""

    async def fails(run: Run) -> None:
        run.say("Step 1/1 : RUN make it", "no such header")
        run.say("The command '/bin/sh -c make it' returned a non-zero code: 7")
        run.end("Failed", "failed during run, err: exit status 1")

    tasks.agent = fails
    details = environment.build(workspace)
    for _ in range(2):
        with pytest.raises(BuildError, match=r"(?s)RUN make it.*code: 7.*no such header"):
            details.wait_for_completion(show_output=True)
        assert "no such header\n" in capsys.readouterr().out
    assert details.status == "Failed" and "no such header" in details.log
    assert dict(workspace.environments.items()).keys() & {"train"} == set()


def test_cancelling_a_build_and_ctrl_c_while_waiting_cancel_the_run(
    workspace: Workspace, tasks: TasksServer, environment: Environment
) -> None:
    begun = threading.Semaphore(0)

    async def hangs(run: Run) -> None:
        begun.release()
        await asyncio.sleep(3600)

    tasks.agent = hangs
    details = environment.build(workspace)
    assert begun.acquire(timeout=60)
    details.cancel()
    assert details.status == "Canceled" and tasks.last.status == "Canceled"
    with pytest.raises(BuildError, match="was cancelled"):
        details.wait_for_completion()
    details = environment.build(workspace)
    assert begun.acquire(timeout=60)
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        details.wait_for_completion(show_output=False)
    assert details.status == "Canceled" and tasks.last.status == "Canceled" and len(tasks.runs) == 2


def test_what_is_wrong_with_a_definition_is_raised_before_anything_begins(
    workspace: Workspace, tasks: TasksServer
) -> None:
    wrong = Environment.from_docker_image("train", "base.example.com/python:3")
    wrong.docker.base_image_registry.address = "base.example.com"
    wrong.docker.base_image_registry.username = "ann"
    wrong.docker.base_image_registry.password = "literal-password-11"
    with pytest.raises(DefinitionError):
        wrong.build(workspace)
    assert not tasks.log


def test_a_workspace_that_cannot_build_with_acr_tasks_says_so_when_it_is_made(workspace: Workspace) -> None:
    registry = workspace.registry
    assert isinstance(registry, AzureContainerRegistry)
    assert workspace.acr_tasks is not None and workspace.acr_tasks.registry == REGISTRY
    plain = ContainerRegistry(address="registry.example.com")
    for wrong in (plain, registry.model_copy(update={"resource_group": None})):
        with pytest.raises(DefinitionError, match="builder='acr-tasks'"):
            Workspace(name="team", registry=wrong, builder="acr-tasks")
    assert Workspace(name="team", registry=plain).acr_tasks is None
