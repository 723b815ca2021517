"""Environments on a Dockerfile: built once for what went into it, found by its hash, packages on top of it."""

from pathlib import Path

import pytest

from prefect_environments.core import hashes
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BuildError, NotFound, SpecificationError
from tests.images.conftest import Define
from tests.images.parts import Team, build, conforms, requests_of, tool, uploads
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.registry import Registry


@pytest.fixture(autouse=True)
def _use_engine(build_engine: DockerEngine) -> None:
    """Dockerfiles are built with the tests' engine."""


def dockerfile(base: str, line: str = "RUN echo made > /made.txt") -> str:
    return f"FROM {base}\n{line}\nENV FROM_DOCKERFILE=yes PYTHONPATH=/srv\n"


async def test_packages_lie_on_the_image_that_the_dockerfile_makes(
    team: Team, define: Define, open_base: str, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    """What the Dockerfile wrote is there, its variables hold, and Python packages that it has are not visible."""
    site = "/usr/lib/python3/dist-packages"
    text = dockerfile(open_base, f"RUN mkdir -p /srv {site} && touch /made.txt /srv/hidden.py {site}/hidden_too.py")
    found = await build(team, define("alpha", base_image="", dockerfile=text), tmp_path / "cache")
    check = (
        "import os, alpha, importlib.util as u; assert os.path.exists('/made.txt');"
        "assert os.environ['FROM_DOCKERFILE'] == 'yes'; assert 'PYTHONPATH' not in os.environ;"
        "assert not u.find_spec('hidden') and not u.find_spec('hidden_too')"
    )
    await conforms(found.ready.reference, tmp_path / "conforms", engine=docker_engine, check=check)
    assert found.lock is not None and found.lock.base.name.startswith("dockerfile:")


async def test_the_same_dockerfile_is_built_once_for_all_environments_and_workers(
    team: Team, define: Define, open_base: str, open_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second worker without any Docker engine has what the first one built."""
    text = dockerfile(open_base)
    first = await build(team, define("alpha", base_image="", dockerfile=text), tmp_path / "one")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    again = await build(team, define("alpha", base_image="", dockerfile=text), tmp_path / "two")
    assert again.ready.reused and again.ready.digest == first.ready.digest
    with requests_of(open_registry) as seen:
        other = await build(team, define("gamma", base_image="", dockerfile=text, name="other"), tmp_path / "two")
    assert other.lock is not None and first.lock is not None and other.lock.base == first.lock.base
    assert uploads(seen, f"{team.repository_prefix}-builds") == 0


async def test_a_base_tag_that_moved_is_another_image_when_it_is_asked_for(
    *,
    team: Team,
    define: Define,
    open_registry: Registry,
    base_layout: BaseLayout,
    dressed: str,
    tmp_path: Path,
) -> None:
    target = open_registry.repository_url("images/moving-from:1")
    base_layout.push(target)
    wanted = define("alpha", base_image="", dockerfile=dockerfile(target, "RUN echo made > /tmp/made"))
    first = await build(team, wanted, tmp_path / "cache")
    tool("skopeo", "copy", "-q", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false",
         f"docker://{dressed}", f"docker://{target}")  # fmt: skip
    assert (await build(team, wanted, tmp_path / "cache")).ready.digest == first.ready.digest
    moved = await build(team, wanted, tmp_path / "cache", upgrade=True)
    assert moved.ready.version == 2 and moved.lock is not None and first.lock is not None
    assert moved.lock.base.name != first.lock.base.name


async def test_a_user_managed_context_is_the_image_itself_in_the_environments_repository(
    team: Team, open_base: str, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    (context / "docker").mkdir(parents=True)
    (context / "data.txt").write_text("data")
    (context / ".dockerignore").write_text("*.log\n")
    (context / "docker/Dockerfile").write_text(
        f"FROM {open_base}\nARG GREETING=none\nCOPY . /srv\nRUN echo $GREETING > /greeting\n"
    )
    wanted = EnvironmentDefinition(
        name="demo",
        build_context=str(context),
        dockerfile_path="docker/Dockerfile",
        build_arguments={"GREETING": "hello"},
        user_managed=True,
    )
    found = await build(team, wanted, tmp_path / "cache")
    assert found.ready.reference.startswith(f"{team.registry_settings.address}/{team.repository_prefix}/demo@")
    assert not found.ready.reused  # it was built just now, though its layers were in the registry when it was copied
    docker_engine.pull(found.ready.reference)
    told = docker_engine.run(found.ready.reference, "cat", "/srv/data.txt", "/greeting")
    assert told == "datahello\n"
    (context / "noise.log").write_text("x")
    assert (await build(team, wanted, tmp_path / "cache")).ready.reused
    context.rename(tmp_path / "moved")  # as on a machine that has not the folder
    assert (await build(team, wanted, tmp_path / "cache")).ready.reused
    with pytest.raises(SpecificationError, match="no folder"):
        await build(team, wanted, tmp_path / "cache", upgrade=True)
    (tmp_path / "moved").rename(context)
    (context / "data.txt").write_text("other")
    changed = await build(team, wanted, tmp_path / "cache")
    assert changed.ready.version == 2 and changed.ready.digest != found.ready.digest


def test_a_contexts_content_modes_and_names_are_in_the_definition_hash(tmp_path: Path) -> None:
    """Defect 6 of Azure ML: file names did not count, and `a/b` was taken for `ab`."""

    def of(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
        for path, content in files.items():
            place = folder / path.replace("__", "/")
            place.parent.mkdir(exist_ok=True)
            place.write_text(content)
        return hashes.definition_hash(EnvironmentDefinition(name="a", build_context=str(folder), user_managed=True))

    assert of(a="x") == of(a="x")
    assert len({of(a="x"), of(b="x"), of(a="y"), of(a__b="x"), of(ab="x"), of(a="x", b="")}) == 6


async def test_what_fails_registers_nothing_and_says_which_step(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    failing = define("alpha", base_image="", dockerfile=f"FROM {open_base}\nRUN echo told >&2; exit 7\n")
    with pytest.raises(BuildError, match=r"(?s)exit 7.*told"):
        await build(team, failing, tmp_path / "cache")
    missing = define("alpha", base_image="", dockerfile=f"FROM {open_base}none\n")
    with pytest.raises(NotFound, match="names the image"):
        await build(team, missing, tmp_path / "cache")
    with pytest.raises(SpecificationError):
        await build(team, define("alpha", base_image="", build_context=str(tmp_path / "none")), tmp_path / "cache")
    assert await team.versions.names() == []
