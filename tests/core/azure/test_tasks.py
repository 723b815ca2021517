"""ACR Tasks as core uses them: the real SDK client against a stand-in of Azure Resource Manager and its storage."""

import asyncio
import base64
import gzip
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.azure.clouds import PUBLIC
from prefect_environments.core.azure.registry import AzureRegistry
from prefect_environments.core.build.acr_tasks.builder import TasksBuilder
from prefect_environments.core.build.acr_tasks.log import AgentReader
from prefect_environments.core.build.acr_tasks.request import build_request, needs_buildkit
from prefect_environments.core.build.acr_tasks.settings import TasksSettings, tasks_settings
from prefect_environments.core.build.docker.client_config import Logins
from prefect_environments.core.build.docker.inputs import BuildInputs
from prefect_environments.core.build.docker.log import BuildLog
from prefect_environments.core.errors import (
    BuildError,
    DefinitionError,
    EngineUnavailable,
    NotFound,
    PrefectEnvironmentsError,
    RegistryAuthError,
    RegistryUnreachable,
    SpecificationError,
)
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.progress import Progress
from tests.support.azure.parts import Azure
from tests.support.azure.tasks import GROUP, REGISTRY, SUBSCRIPTION, Run, TasksServer, folder_of
from tests.support.base import BaseLayout

PASSWORD = "hub-password-77f1"


@dataclass
class Heard(Progress):
    """Progress that remembers when it heard what."""

    steps: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def step(self, name: str) -> None:
        self.steps.append(name)

    def printed(self, line: str) -> None:
        self.lines.append(line)


@dataclass
class Bench:
    """A stand-in and a builder in front of it, whose registry is a folder with a ready image."""

    server: TasksServer
    settings: TasksSettings
    layout: Path
    digest: str
    scratch: Path
    heard: Heard = field(default_factory=Heard)
    logins: Logins = field(default_factory=dict)

    async def build(self, dockerfile: str = "FROM scratch\n", **options: object) -> Descriptor:
        inputs = BuildInputs(dockerfile, **options)  # type: ignore[arg-type]

        async def logins() -> Logins:
            return self.logins

        async def unmoved() -> None:
            """Nothing of this moves."""

        repository = Layout(self.layout).repository("")
        builder = TasksBuilder(self.settings, repository, self.scratch, logins, self.heard)
        return await builder.build(inputs, "f" * 64, unmoved)

    async def succeeds(self, run: Run) -> None:
        """An agent whose image is in the registry already."""
        run.agent_says("Executing step ID: build. Timeout(sec): 28800, Working directory: '', Network: ''")
        run.say("Step 1/1 : FROM base", " ---> 0123456789ab", "hello from the step")
        run.images[run.image] = self.digest
        run.end("Succeeded")


@pytest.fixture
def bench(azure: Azure, base_layout: BaseLayout, tmp_path: Path) -> Iterator[Bench]:
    async def idle(run: Run) -> None:
        raise NotImplementedError

    with TasksServer(azure.entra, azure.authority.server_context(), idle) as server:
        server.grant(azure.app)
        cloud = replace(PUBLIC, authority_host=azure.entra.url, resource_manager=server.url)
        settings = TasksSettings(SUBSCRIPTION, GROUP, REGISTRY, azure.identity(cloud=cloud), poll=0.02)
        layout = tmp_path / "images"
        layout.mkdir()
        for path in base_layout.folder.rglob("*"):
            target = layout / path.relative_to(base_layout.folder)
            target.mkdir(exist_ok=True) if path.is_dir() else target.hardlink_to(path)
        (layout / "index.json").unlink()
        (layout / "index.json").write_bytes((base_layout.folder / "index.json").read_bytes())
        found = Bench(server, settings, layout, base_layout.digest, tmp_path / "scratch")
        server.agent = found.succeeds
        yield found


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what it waits for is in another thread's loop
        await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


async def test_a_run_is_asked_for_on_the_platform_and_gives_the_image_by_digest(bench: Bench) -> None:
    built = await bench.build(arguments={"GREETING": "hello 'world' $HOME"}, target="")
    asked = bench.server.last.request
    assert built.digest == bench.digest
    assert asked["type"] == "DockerBuildRequest" and asked["isPushEnabled"] is True
    assert asked["platform"] == {"os": "Linux", "architecture": "amd64"} and asked["timeout"] == 3600
    assert asked["arguments"][0]["value"] == """'hello '"'"'world'"'"' $HOME'"""
    assert asked["credentials"] == {"sourceRegistry": {"loginMode": "Default"}}
    assert [line for line in bench.heard.lines if line] == ["hello from the step"]
    assert "[1/1] FROM base" in bench.heard.steps
    assert not list(bench.scratch.rglob("*"))


async def test_the_context_is_packed_by_its_ignore_file_and_the_same_bytes_each_time(
    bench: Bench, tmp_path: Path
) -> None:
    files = {"Dockerfile": "FROM scratch\n", "a/b.txt": "b", "noise.log": "x", ".dockerignore": "*.log\n"}
    for _ in range(2):
        await bench.build(context=folder_of(tmp_path / "context", files))
    first, second = bench.server.runs.values()
    assert sorted(first.files) == [".dockerignore", "Dockerfile", "a/b.txt"]
    assert first.context == second.context and gzip.decompress(first.context)


async def test_the_log_is_heard_while_the_run_goes_on_and_each_line_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent waits for each of its lines to be heard before it writes the next: a log that came late would hang."""
    heard_in_time: list[str] = []

    async def talks(run: Run) -> None:
        run.say("Step 1/2 : FROM base", "Step 2/2 : RUN count")
        for number in range(3):
            run.say(f"counting {number}, half of a character: ", end="")
            run.log += "é".encode()[:1]  # type: ignore[operator]
            await asyncio.sleep(0.05)
            run.log += "é".encode()[1:] + b"\n"
            await until(lambda: len(bench.heard.lines) > len(heard_in_time))
            heard_in_time.append(run.status)
        await bench.succeeds(run)

    bench.server.agent = talks
    await bench.build()
    expected = [f"counting {number}, half of a character: é" for number in range(3)]
    assert [line for line in bench.heard.lines if "counting" in line] == expected
    assert heard_in_time == ["Running"] * 3
    assert set(expected) <= {record.getMessage() for record in caplog.records}


async def test_a_log_of_many_megabytes_arrives_whole(bench: Bench) -> None:
    async def talks(run: Run) -> None:
        run.say("Step 1/1 : RUN yes", *(f"{number:06} {'y' * 1500}" for number in range(4000)))
        await bench.succeeds(run)

    bench.server.agent = talks
    await bench.build()
    numbers = [int(line[:6]) for line in bench.heard.lines if line[:6].isdecimal()]
    assert numbers == list(range(4000))


async def test_a_failure_names_the_step_and_its_last_lines(bench: Bench) -> None:
    async def fails(run: Run) -> None:
        run.agent_says("Executing step ID: build. Timeout(sec): 28800, Working directory: '', Network: ''")
        run.say("Step 1/3 : FROM base", " ---> 0123456789ab", "Step 2/3 : RUN make it", "compiling", "no such header")
        run.say("The command '/bin/sh -c make it' returned a non-zero code: 7")
        run.agent_says("Container failed during run: build. No retries remaining.")
        run.end("Failed", "failed during run, err: exit status 1")

    bench.server.agent = fails
    with pytest.raises(BuildError) as caught:
        await bench.build()
    text = str(caught.value)
    assert "at [2/3] RUN make it" in text and "code: 7" in text and "compiling\n    no such header" in text
    assert "run ca1" in text and "cancel" not in " ".join(bench.server.log)


async def test_a_failure_of_buildkit_names_the_step_and_its_last_lines(bench: Bench) -> None:
    async def fails(run: Run) -> None:
        run.agent_says("Executing step ID: build. Timeout(sec): 3600, Working directory: '', Network: ''")
        run.say("#1 [internal] load build definition from Dockerfile", "#1 DONE 0.0s", "#5 [2/3] RUN make it")
        run.say("#5 0.312 compiling", "#5 0.400 no such header", "#5 ERROR: process did not complete: exit code: 7")
        run.agent_says("Container failed during run: build. No retries remaining.")
        run.end("Failed", "failed during run, err: exit status 1")

    bench.server.agent = fails
    with pytest.raises(BuildError, match=r"(?s)at \[2/3\] RUN make it: .*code: 7.*compiling\n    no such header"):
        await bench.build("FROM base\nRUN --mount=type=cache,target=/c make it\n")
    assert "[2/3] RUN make it" in bench.heard.steps


async def test_a_run_that_fails_before_any_step_says_what_the_agent_said(bench: Bench) -> None:
    async def fails(run: Run) -> None:
        run.agent_says("failed to download context: 500")
        run.end("Failed", "failed during run, err: exit status 2")

    bench.server.agent = fails
    with pytest.raises(BuildError, match="exit status 2"):
        await bench.build()


async def hangs(run: Run) -> None:
    """An agent that never ends."""
    run.say("Step 1/1 : RUN sleep infinity")
    await asyncio.sleep(3600)


async def test_a_cancelled_build_cancels_the_run(bench: Bench) -> None:
    bench.server.agent = hangs
    work = asyncio.create_task(bench.build())
    await until(lambda: "[1/1] RUN sleep infinity" in bench.heard.steps)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert bench.server.last.status == "Canceled"
    assert not list(bench.scratch.rglob("*"))


async def test_a_build_that_is_cancelled_while_its_run_is_scheduled_cancels_that(bench: Bench) -> None:
    bench.server.agent = hangs
    work = asyncio.create_task(bench.build())
    await until(lambda: any("scheduleRun" in line for line in bench.server.log))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert bench.server.last.status == "Canceled"


async def test_a_run_that_hangs_is_cancelled_at_the_time_limit(bench: Bench) -> None:
    bench.server.agent = hangs
    bench.settings = replace(bench.settings, timeout=300, patience=-298.5)
    with pytest.raises(BuildError, match=r"(?s)sleep infinity.*did not end within its limit of 300 seconds.*more time"):
        await bench.build()
    assert bench.server.last.status == "Canceled"


@pytest.mark.parametrize(
    ("status", "words"), [("Timeout", "time"), ("Canceled", "cancelled in Azure"), ("Error", "agent is lost")]
)
async def test_every_end_that_is_no_success_is_an_error(bench: Bench, status: str, words: str) -> None:
    async def ends(run: Run) -> None:
        run.end(status, "agent is lost")

    bench.server.agent = ends
    with pytest.raises(BuildError, match=words):
        await bench.build()


async def test_a_log_that_is_never_completed_does_not_hold_the_build(bench: Bench) -> None:
    async def stops_short(run: Run) -> None:
        await bench.succeeds(run)
        run.whole = False

    bench.server.agent = stops_short
    assert (await bench.build()).digest == bench.digest


async def test_a_build_goes_on_where_its_log_cannot_be_read(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def closes(run: Run) -> None:
        bench.server.storage_is_closed = True
        await asyncio.sleep(0.2)
        await bench.succeeds(run)

    bench.server.agent = closes
    assert (await bench.build()).digest == bench.digest
    assert any("log of run ca1 cannot be shown" in record.getMessage() for record in caplog.records)


async def test_an_address_of_the_log_that_expires_is_asked_for_again(bench: Bench) -> None:
    async def outlives(run: Run) -> None:
        run.say("Step 1/1 : FROM base", "before")
        await until(lambda: "before" in bench.heard.lines)
        bench.server.signature = "another"
        run.say("after")
        await bench.succeeds(run)

    bench.server.agent = outlives
    await bench.build()
    assert [line for line in bench.heard.lines if line in ("before", "after")] == ["before", "after"]


async def test_throttling_is_waited_out(bench: Bench) -> None:
    """429 with `Retry-After` at each call of Azure Resource Manager and of the storage, once."""
    for pattern in (
        ".*listBuildSourceUploadUrl",
        ".*scheduleRun",
        "PUT /storage/.*",
        "HEAD /storage/.*",
        "GET .*/runs/.*",
    ):
        bench.server.throttle(pattern=pattern)
    began = time.monotonic()
    assert (await bench.build()).digest == bench.digest
    assert all(fault.times == 0 for fault in bench.server.faults)
    assert time.monotonic() - began >= 4 and len(bench.server.runs) == 1


async def test_throttling_that_does_not_end_is_told(bench: Bench) -> None:
    bench.server.throttle(times=100, retry_after=0, pattern=".*scheduleRun")
    with pytest.raises(RegistryUnreachable, match="throttled, also after 1 retries"):
        await bench.build()


async def test_who_may_not_run_tasks_is_named_with_the_role(bench: Bench, azure: Azure) -> None:
    bench.server.allowed.clear()
    with pytest.raises(RegistryAuthError) as caught:
        await bench.build()
    text = str(caught.value)
    assert azure.app.client_id in text and "Container Registry Tasks Contributor" in text and REGISTRY in text
    assert not bench.server.uploads


async def test_refusals_say_what_to_correct(bench: Bench, azure: Azure) -> None:
    settings, identity = bench.settings, bench.settings.identity
    bench.settings = replace(settings, resource_group="other")
    with pytest.raises(NotFound, match="resource group other"):
        await bench.build()
    bench.settings = replace(settings, identity=replace(identity, client_secret="wrong-secret-5512"))
    with pytest.raises(RegistryAuthError, match="client secret is wrong") as caught:
        await bench.build()
    assert "wrong-secret-5512" not in str(caught.value)
    bench.settings = replace(settings, identity=replace(identity, client_secret=azure.app.secret))
    bench.server.go_down()
    with pytest.raises(RegistryUnreachable, match="could not be reached"):
        await bench.build()


async def test_without_the_sdk_the_error_names_the_extra(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.mgmt.containerregistrytasks", None)
    with pytest.raises(EngineUnavailable, match=r"prefect-environments\[azure-tasks\]"):
        await bench.build()


async def test_an_image_that_is_not_in_the_registry_is_no_success(bench: Bench) -> None:
    async def pushes_elsewhere(run: Run) -> None:
        run.images[run.image] = f"sha256:{'0' * 64}"
        run.end("Succeeded")

    bench.server.agent = pushes_elsewhere
    with pytest.raises(BuildError, match="succeeded, but the registry has no"):
        await bench.build()


async def test_what_moved_meanwhile_gets_no_tag_of_its_hash(bench: Bench) -> None:
    async def logins() -> Logins:
        return {}

    async def moved() -> None:
        raise BuildError("moved")

    repository = Layout(bench.layout).repository("")
    with pytest.raises(BuildError, match="moved"):
        await TasksBuilder(bench.settings, repository, bench.scratch, logins).build(
            BuildInputs("FROM scratch\n"), "a" * 64, moved
        )
    assert await repository.find_manifest("a" * 64) is None


async def test_no_secret_and_no_signed_address_is_in_logs_or_errors(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Logins of base images go to Azure Resource Manager in the request, and nowhere else."""
    bench.logins = {"hub.example.com": ("ann", PASSWORD)}

    async def prints_them(run: Run) -> None:
        run.say("Step 1/1 : RUN env", f"password is {PASSWORD}, address ?sv=1&sig={bench.server.signature}%2B%3D")
        run.say(f"basic {base64.b64encode(f'ann:{PASSWORD}'.encode()).decode()}")
        run.end("Failed", f"docker login -p {PASSWORD}")

    bench.server.agent = prints_them
    with pytest.raises(BuildError) as caught:
        await bench.build()
    registries = bench.server.last.request["credentials"]["customRegistries"]
    assert registries["hub.example.com"]["password"] == {"type": "Opaque", "value": PASSWORD}
    bench.server.storage_is_closed = True
    with pytest.raises(PrefectEnvironmentsError) as refused:
        await bench.build()
    logged = "\n".join(record.getMessage() for record in caplog.records)
    shown = "\n".join([str(caught.value), str(refused.value), logged, *bench.heard.lines, *bench.heard.steps])
    signature = f"{bench.server.signature}%2B%3D"
    for secret in (PASSWORD, base64.b64encode(f"ann:{PASSWORD}".encode()).decode(), signature):
        assert secret not in shown
    assert "password is ***" in shown


async def test_a_dockerfile_that_needs_buildkit_is_a_task_of_two_steps(bench: Bench) -> None:
    text = "FROM base AS one\nRUN --mount=type=cache,target=/root/.cache true\n"
    inputs = BuildInputs(text, arguments={"A": "x y"}, target="one")
    asked = build_request(inputs, "team-builds:abc", "source/x", replace(bench.settings, agent_pool="pool1"), {})
    task = json.loads(base64.b64decode(asked["encodedTaskContent"]))
    assert asked["type"] == "EncodedTaskRunRequest" and asked["agentPoolName"] == "pool1"
    name = "{{.Run.Registry}}/team-builds:abc"
    words = f"-t {name} -f Dockerfile --platform=linux/amd64 --build-arg 'A=x y' --target one ."
    assert task["steps"][0]["build"] == words and "DOCKER_BUILDKIT=1" in task["steps"][0]["env"]
    assert task["steps"][1]["push"] == [name] and task["steps"][1]["when"] == ["build"]


@pytest.mark.parametrize(
    ("line", "needs"),
    [
        ("RUN --mount=type=cache,target=/x true", True),
        ("RUN <<EOF\ntrue\nEOF", True),
        ("COPY --link a /b", True),
        ("COPY --from=base /a /b", False),
        ("COPY --chown=1:1 a /b", False),
        ("RUN echo --mount=type=cache", False),
        ("ADD a /b", False),
    ],
)
def test_what_the_classic_builder_refuses_needs_buildkit(line: str, needs: bool) -> None:
    assert needs_buildkit(f"FROM base\n{line}\n") is needs
    assert needs_buildkit(f"# syntax=docker/dockerfile:1\nFROM base\n{line}\n")


async def test_what_tasks_cannot_build_is_refused_before_any_request(bench: Bench, tmp_path: Path) -> None:
    """A secret argument would stay in the image's history; a template and a path with a space fail in the agent."""
    before = len(bench.server.log)
    with pytest.raises(SpecificationError, match=r"build secrets token.*builder='docker'"):
        await bench.build("FROM base\nRUN --mount=type=secret,id=token true\n", secrets={"token": "secret:token"})
    with pytest.raises(SpecificationError, match=r"build argument A has \{\{"):
        await bench.build(arguments={"A": "{{.Run.ID}}"})
    with pytest.raises(SpecificationError, match="rename it"):
        await bench.build(
            context=folder_of(tmp_path / "c", {"my files/Dockerfile": "FROM scratch\n"}),
            dockerfile_path="my files/Dockerfile",
        )
    assert len(bench.server.log) == before


def test_settings_say_what_the_workspaces_registry_lacks(bench: Bench) -> None:
    identity = bench.settings.identity
    whole = AzureRegistry("teamregistry.azurecr.example", identity, SUBSCRIPTION, GROUP)
    found = tasks_settings(whole, timeout=600, agent_pool="pool1", as_caller=True)
    assert (found.registry, found.timeout, found.agent_pool, found.as_caller) == (REGISTRY, 600, "pool1", True)
    request = build_request(BuildInputs("FROM base\n"), "a:b", "s", found, {})
    assert request["credentials"] == {"sourceRegistry": {"identity": "[caller]"}}
    with pytest.raises(DefinitionError, match="AzureContainerRegistry with credentials"):
        tasks_settings(None, timeout=600)
    with pytest.raises(DefinitionError, match="AzureContainerRegistry with credentials"):
        tasks_settings(replace(whole, identity=None), timeout=600)
    with pytest.raises(DefinitionError, match="subscription_id and resource_group"):
        tasks_settings(replace(whole, resource_group=None), timeout=600)
    for wrong in ({"subscription_id": "mine"}, {"resource_group": "a/b"}, {"registry": "a.b"}, {"timeout": 10}):
        with pytest.raises(DefinitionError):
            replace(found, **wrong)
    labelled = replace(whole, login_server="team5-a1b2c3d4.azurecr.example")
    assert tasks_settings(labelled, timeout=600).registry == "team5"


@given(st.lists(st.text(st.characters(exclude_characters="\r\n"), max_size=40), max_size=20))
def test_no_line_of_a_log_breaks_its_reader(lines: list[str]) -> None:
    for buildkit in (False, True):
        reader = AgentReader(BuildLog(), buildkit=buildkit)
        reader.read("2026/11/23 03:00:00 Executing step ID: build. Timeout(sec): 28800")
        for line in lines:
            reader.read(line)
