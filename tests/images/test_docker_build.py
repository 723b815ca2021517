"""Dockerfiles built by a real Docker engine, by both of its builders."""

import asyncio
import json
import os
import stat
import uuid
from pathlib import Path

import pytest

from prefect_environments.core.build.docker import build as builds
from prefect_environments.core.build.docker import engine as engines
from prefect_environments.core.build.docker.build import Builder
from prefect_environments.core.build.docker.buildkit import client_environment, find_command
from prefect_environments.core.build.docker.engine import find_engine
from prefect_environments.core.build.docker.inputs import BuildInputs
from prefect_environments.core.errors import BuildError, EngineUnavailable, SecretError
from prefect_environments.core.lock.target import Platform
from tests.images.docker_parts import BUILDERS, Bench, Seen, said, secrets_in_processes, until_said
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.leaks import find_secret
from tests.support.registry import Registry
from tests.support.session import missing

PLANTED = "planted-3f9a71c2d8"

both = pytest.mark.parametrize("builder", BUILDERS)


@pytest.fixture(autouse=True)
def _use_engine(docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in docker_engine.environment.items():
        if value:
            monkeypatch.setenv(name, value)
    caplog.set_level("DEBUG", logger="prefect_environments")


@pytest.fixture
def bench(docker_engine: DockerEngine, open_registry: Registry, tmp_path: Path) -> Bench:
    return Bench(docker_engine, open_registry, tmp_path / "scratch")


@both
async def test_a_build_runs_to_its_target_with_its_arguments_and_its_log(
    bench: Bench, open_base: str, builder: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stages, arguments, target, context and ignore file count; every step is progress, every line is logged."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "kept.txt").write_text("kept\n")
    (context / "ignored.txt").write_text("ignored\n")
    (context / ".dockerignore").write_text("ignored.txt\nDockerfile\n.dockerignore\n")
    dockerfile = (
        f"FROM {open_base} AS one\nARG WORD=none\nRUN echo $WORD > /word; echo a line; printf 'no end of line'\n"
        f"FROM {open_base} AS two\nCOPY --from=one /word /word\nCOPY . /context\nENV SET=yes\n"
        f"FROM {open_base} AS three\nRUN echo never && false\n"
    )
    (context / "Dockerfile").write_text(dockerfile)
    seen = Seen()
    async with bench.built(
        dockerfile, builder, context=context, arguments={"WORD": "given"}, target="two", progress=seen
    ) as image:
        command = ["/bin/sh", "-c", "cat /word; ls /context; echo $SET"]
        assert bench.engine.run(image.id, *command).split() == ["given", "kept.txt", "yes"]
    lines = said(caplog)
    assert {"a line", "no end of line"} <= set(lines)
    assert not {"never", ""} & set(lines)
    assert seen.steps[0] == "docker build"
    assert any("RUN echo" in step for step in seen.steps)


@both
async def test_a_built_image_is_removed_with_all_that_was_made_on_the_way(
    bench: Bench, open_base: str, builder: Builder
) -> None:
    """After a build and its removal the engine has the images that it had."""
    dockerfile = bench.marked(f"{open_base} AS one") + "RUN echo 1 > /a\n"
    dockerfile += bench.marked(open_base) + "COPY --from=one /a /b\nRUN echo 2 > /c\n"
    async with bench.built(dockerfile, builder) as image:
        assert image.id in bench.left()["images"]  # type: ignore[operator]
    assert bench.left() == {}


@both
async def test_a_failed_build_names_the_step_and_its_last_lines(bench: Bench, open_base: str, builder: Builder) -> None:
    """The error has the failing step, the last twenty of its lines, and nothing is left anywhere."""
    loop = (
        "for i in 1 2 3 4 5 6; do echo x$i.1; echo x$i.2; echo x$i.3; echo x$i.4; echo x$i.5; done; printf end; exit 3"
    )
    with pytest.raises(BuildError) as failure:
        await bench.build(f"{bench.marked(open_base)}RUN echo 1 > /fine\nRUN {loop}\nRUN echo later\n", builder)
    text = str(failure.value)
    assert "RUN for i in 1 2 3" in text.partition("last lines")[0]
    shown = [line.strip() for line in text.partition("last lines:\n")[2].splitlines()]
    assert len(shown) == 20
    assert (shown[0], shown[-1]) == ("x3.2", "end")
    assert "3" in text.partition("RUN echo later")[0]
    assert bench.left() == {}


@both
async def test_a_mistake_that_only_the_engine_finds_is_told_in_its_words(
    bench: Bench, open_base: str, builder: Builder
) -> None:
    """A file that is not in the context."""
    with pytest.raises(BuildError, match=r"COPY absent\.txt.*absent\.txt.*(not found|no such file|not exist)"):
        await bench.build(f"{bench.marked(open_base)}COPY absent.txt /\n", builder)
    assert bench.left() == {}


async def test_an_image_for_another_platform_is_refused(bench: Bench, open_base: str) -> None:
    """The base is for this machine's architecture only, and what was built on it is not what was asked for."""
    here = json.loads(bench.engine.docker("version", "--format", "{{json .Server.Arch}}"))
    other = Platform("arm64" if here == "amd64" else "amd64")
    with pytest.raises(BuildError, match=r"platform"):
        await bench.build(f"{bench.marked(open_base)}ENV A=1\n", "classic", platform=other)
    assert bench.left() == {}


@both
async def test_a_cancelled_build_leaves_nothing(
    bench: Bench, open_base: str, builder: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelled in the middle of a step: no container, image, process or temporary file stays."""
    dockerfile = f"{bench.marked(open_base)}RUN echo first > /first\nRUN echo begun; sleep 600\n"
    work = asyncio.create_task(bench.build(dockerfile, builder))
    await until_said(caplog, "begun", work)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert bench.left() == {}


async def test_a_build_secret_is_nowhere_but_in_its_step(
    bench: Bench, open_base: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Not in a command line or variable while it builds, on disk, in log, image or history; its folder is private."""
    dockerfile = (
        f"{bench.marked(open_base)}"
        "RUN --mount=type=secret,id=token test $(cat /run/secrets/token | wc -c) = 18 && cat /run/secrets/token "
        "&& echo && echo begun && sleep 2\n"
    )
    work = asyncio.create_task(bench.build(dockerfile, "auto", secrets={"token": PLANTED}))
    await until_said(caplog, "begun", work)
    assert secrets_in_processes(PLANTED) == []
    assert [stat.S_IMODE(path.stat().st_mode) for path in bench.scratch.iterdir() if path.is_dir()] == [0o700]
    files = [path for path in bench.scratch.rglob("*") if path.is_file() and not path.is_symlink()]
    assert find_secret(PLANTED, *files) == []
    image = await work
    saved = tmp_path / "saved.tar"
    bench.engine.docker("save", "--output", saved, image.id)
    assert find_secret(PLANTED, saved) == []
    assert PLANTED not in bench.engine.docker("history", "--no-trunc", image.id)
    await engines.remove_image(image)
    assert PLANTED not in caplog.text
    assert "**********" in said(caplog)
    assert bench.left() == {}


async def test_a_secret_that_a_failing_step_prints_is_masked_in_the_error(bench: Bench, open_base: str) -> None:
    """Whole, and line by line where it has several."""
    secret = f"first-{PLANTED}\nsecond-{PLANTED}\n"
    dockerfile = f"FROM {open_base}\nRUN --mount=type=secret,id=token cat /run/secrets/token; echo told; false\n"
    with pytest.raises(BuildError) as failure:
        await bench.build(dockerfile, "auto", secrets={"token": secret})
    assert "told" in str(failure.value)
    assert PLANTED not in str(failure.value)


async def test_secrets_without_buildkit_are_refused(
    bench: Bench, open_base: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The classic builder has none; with no docker command there is no BuildKit; a value is missing."""
    with pytest.raises(EngineUnavailable, match="BuildKit"):
        await bench.build(f"FROM {open_base}\n", "classic", secrets={"token": PLANTED})
    with pytest.raises(EngineUnavailable, match="install a docker command"):
        await bench.build(f"FROM {open_base}\nRUN --mount=type=secret,id=token true\n", "classic")
    with pytest.raises(SecretError, match="token"):
        inputs = BuildInputs(f"FROM {open_base}\n", secrets={"token": "secret:token"})
        await builds.build_image(inputs, secrets={}, logins={}, scratch=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable, match="build secrets need BuildKit"):
        await bench.build(f"FROM {open_base}\n", "auto", secrets={"token": PLANTED})


async def test_a_docker_command_that_cannot_build_is_passed_over(
    bench: Bench, open_base: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next command on PATH serves; where none does, the engine's classic builder."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "docker").write_text("#!/bin/sh\necho no plugin >&2\nexit 1\n")
    (broken / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken}:{os.environ['PATH']}")
    async with bench.built(f"FROM {open_base}\nENV A=1\n", "auto"):
        assert "building with BuildKit" in caplog.text
    caplog.clear()
    monkeypatch.setenv("PATH", f"{broken}:/nonexistent")
    async with bench.built(f"FROM {open_base}\nENV A=2\n", "auto"):
        assert "classic builder, because no docker command on PATH" in caplog.text


async def test_the_users_buildx_plugin_goes_before(
    bench: Bench, open_base: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A plugin in the user's configuration is found and used; this one hands on to a command with BuildKit in it."""
    found = await find_command(client_environment(find_engine(), tmp_path))
    if found is None or found.words[1:] != ("build",):
        missing("no docker command has BuildKit in itself")
    plugin = tmp_path / "config" / "cli-plugins" / "docker-buildx"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(
        '#!/bin/sh\nif [ "$1" = docker-cli-plugin-metadata ]; then\n'
        '  echo \'{"SchemaVersion": "0.1.0", "Vendor": "tests", "Version": "1"}\'; exit\nfi\n'
        'case "$2 $3" in "version ") echo 1 ;; "build --load") shift 3; '
        f'exec env DOCKER_BUILDKIT=1 {found.words[0]} build "$@" ;; *) exit 1 ;; esac\n'
    )
    plugin.chmod(0o755)
    monkeypatch.setenv("DOCKER_CONFIG", str(plugin.parent.parent))
    async with bench.built(f"FROM {open_base}\nRUN echo by plugin\n", "buildkit", pull=False) as image:
        assert image.id
    assert "docker buildx)" in caplog.text
    assert "[2/2] RUN echo by plugin" in said(caplog)


@both
async def test_steps_run_on_the_network_that_the_environment_names(
    bench: Bench, open_base: str, builder: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The variable is the default; host is the engine's own network."""
    if not bench.engine.host:
        missing("only an engine of the tests' own is known to share this network")
    monkeypatch.setenv(builds.NETWORK_VARIABLE, "host")
    step = f"RUN readlink /proc/self/ns/net # {bench.mark}"
    async with bench.built(f"FROM {open_base}\n{step}\n", builder, network=None):
        assert str(Path("/proc/self/ns/net").readlink()) in said(caplog)


@pytest.fixture
def private_base(basic_registry: Registry, base_layout_without_python: BaseLayout) -> str:
    """A base image behind a password, by a name of its own: BuildKit remembers for a while who it saw for a name."""
    target = basic_registry.repository_url(f"docker/{uuid.uuid4().hex}:1")
    return base_layout_without_python.push(target, username=basic_registry.username, password=basic_registry.password)


@both
async def test_a_private_base_image_needs_its_login(
    bench: Bench, private_base: str, basic_registry: Registry, builder: Builder
) -> None:
    """Refused without and with a wrong password, which is not shown; built with the right one."""
    host, dockerfile = basic_registry.address, f"FROM {private_base}\nENV BUILDER={builder}\n"
    for logins in ({}, {host: ("ann", f"wrong-{PLANTED}")}):
        with pytest.raises(BuildError) as failure:
            await bench.build(dockerfile, builder, logins=logins)
        assert PLANTED not in str(failure.value)
    async with bench.built(dockerfile, builder, logins={host: ("ann", basic_registry.password)}):
        pass


@both
async def test_the_users_credential_helper_goes_on_working(
    bench: Bench,
    private_base: str,
    basic_registry: Registry,
    builder: Builder,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A helper that the user's configuration names gives the login; a login of the definition goes before it."""
    answer = json.dumps({"Username": "ann", "Secret": basic_registry.password})
    helper = tmp_path / "bin" / "docker-credential-planted"
    helper.parent.mkdir()
    helper.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    helper.chmod(0o755)
    config = tmp_path / "config" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"credHelpers": {basic_registry.address: "planted"}}))
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONFIG", str(config.parent))
    dockerfile = f"FROM {private_base}\nENV HELPED={builder}\n"
    async with bench.built(dockerfile, builder):
        pass
    helper.write_text('#!/bin/sh\necho \'{"Username": "ann", "Secret": "stale"}\'\n')
    async with bench.built(dockerfile, builder, logins={basic_registry.address: ("ann", basic_registry.password)}):
        pass
    assert json.loads(config.read_text()) == {"credHelpers": {basic_registry.address: "planted"}}


async def test_what_killed_builds_left_is_removed_by_a_later_one(
    bench: Bench, open_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images with our label and an old time go; young ones and those of others stay."""
    with monkeypatch.context() as patch:
        patch.setattr(builds, "new_build_id", lambda: "1000000000-killed")
        old = await bench.build(f"{bench.marked(open_base)}ENV AGE=old\n", "auto")
    assert bench.left()["images"] == [old.id]
    async with bench.built(f"{bench.marked(open_base)}ENV AGE=young\n", "auto") as young:
        await bench.build(f"FROM {open_base}\nENV AGE=newest\n", "auto")
        assert bench.left()["images"] == [young.id]
