"""Images with bytecode: imported without compiling, managed by pip, reproducible, refused where no Python compiles."""

import asyncio
import re
import sys
import time
from pathlib import Path

import pytest

from prefect_environments.core import steps
from prefect_environments.core.build import bytecode
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BuildError
from prefect_environments.core.site import open_site
from tests.images.conftest import Define
from tests.images.parts import Outcome, Team, build, conforms, requests_of, uploads
from tests.support.engine import DockerEngine
from tests.support.registry import Registry
from tests.support.session import missing

LISTED = """python -c "import pathlib; print('left:', [str(p) for p in pathlib.Path('/opt/env').rglob('*') if any(
name in str(p) for name in ('alpha', 'beta'))])" """.replace("\n", "")
SITE = "/opt/env/lib/python{minor}/site-packages"


def asked(wheels: Path, base: str) -> EnvironmentDefinition:
    return EnvironmentDefinition(
        name="demo",
        base_image=base,
        requirements=("alpha",),
        find_links=(str(wheels),),
        no_index=True,
        compile_bytecode=True,
    )


@pytest.fixture(scope="module")
def made(open_registry: Registry, wheels: Path, open_base: str, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """`alpha`, `beta` and pip with bytecode."""
    folder = tmp_path_factory.mktemp("bytecode")
    team = Team.on(open_registry, folder / "versions", repository_prefix=f"images/bytecode-{time.time_ns()}")

    async def make() -> Outcome:
        wanted = asked(wheels, open_base)
        async with open_site(team, cache=folder / "cache") as site:
            plain = await steps.resolve(site, wanted.model_copy(update={"compile_bytecode": False}))
        try:
            bytecode.find_interpreter(plain.target.python)
        except BuildError as error:
            missing(str(error))
        return await build(team, wanted, folder / "cache")

    return asyncio.run(make())


@pytest.fixture(scope="module")
def image(made: Outcome, docker_engine: DockerEngine) -> str:
    docker_engine.pull(made.ready.reference)
    return made.ready.reference


def site_of(made: Outcome) -> str:
    assert made.lock is not None
    return SITE.format(minor=made.lock.target.python_minor)


async def test_the_first_import_reads_bytecode(made: Outcome, image: str, docker_engine: DockerEngine) -> None:
    """Python says of every module that its bytecode matches, and compiles and writes none."""
    told = docker_engine.run(image, "sh", "-c", 'python -v -c "import alpha, pip._internal.cli.main" 2>&1')
    site = re.escape(site_of(made))
    assert re.search(rf"# {site}/alpha/__pycache__/__init__\.cpython-\d+\.pyc matches {site}/alpha/__init__\.py", told)
    read = set(re.findall(rf"# code object from '({site}/[^']+)'", told))
    assert len(read) > 20
    assert {path for path in read if not path.endswith(".pyc")} == set()
    assert not re.search(rf"# (wrote|could not create) '{site}", told)


async def test_pip_is_content_and_uninstalls_bytecode_too(
    made: Outcome, image: str, docker_engine: DockerEngine
) -> None:
    def pip(*words: str) -> str:
        return f"pip {' '.join(words)} --disable-pip-version-check"

    script = "; ".join(
        [pip("check"), pip("show", "-f", "alpha"), LISTED, pip("uninstall", "-y", "-q", "alpha", "beta"), LISTED]
    )
    told = docker_engine.run(image, "sh", "-c", script)
    assert told.startswith("No broken requirements found.\n")
    assert re.search(r"\n +alpha/__pycache__/__init__\.cpython-\d+\.pyc\n", told)
    before, after = re.findall(r"^left: (.*)$", told, re.MULTILINE)
    assert "alpha/__pycache__/__init__.cpython-" in before
    assert after == "[]"


async def test_an_edited_module_is_compiled_again(made: Outcome, image: str, docker_engine: DockerEngine) -> None:
    """Somebody who patches a file in a container, or in a Dockerfile on top of the image, is not ignored."""
    edit = f"echo 'def main(): print(\"patched\")' > {site_of(made)}/alpha/__init__.py"
    assert docker_engine.run(image, "sh", "-c", f"{edit}; alpha-say") == "patched\n"


async def test_every_reader_takes_an_image_with_bytecode(
    image: str, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    await conforms(image, tmp_path, engine=docker_engine, check="import alpha")


async def test_the_lock_decides_about_bytecode_and_its_image_is_the_same_anywhere(
    made: Outcome, wheels: Path, open_base: str, tmp_path: Path
) -> None:
    """Built again from the stored lock, by a worker with an empty disk, for a repository that has no layer yet."""
    assert made.lock is not None
    assert made.lock.bytecode == made.lock.target.python
    wanted = asked(wheels, open_base)
    again = await build(Team.on(tmp_path / "layout", tmp_path / "versions"), wanted, tmp_path / "cache")
    assert again.ready.digest == made.ready.digest
    assert not any(reused for _, reused in again.layers)
    plain = wanted.model_copy(update={"compile_bytecode": False})
    without = await build(Team.on(tmp_path / "plain", tmp_path / "others"), plain, tmp_path / "cache")
    assert without.ready.digest != made.ready.digest
    assert without.ready.size < made.ready.size


async def test_without_that_python_it_is_an_error_before_anything_is_done(
    define: Define, team: Team, open_registry: Registry, open_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When resolving; and for a lock that came from elsewhere, before a wheel is fetched or a layer is sent."""
    wanted = define("alpha", base_image=open_base)
    async with open_site(team, cache=tmp_path / "cache") as site:
        lock = await steps.resolve(site, wanted)
        monkeypatch.setattr(sys, "executable", "")
        monkeypatch.setattr(bytecode, "_known", {})
        for name in ("PATH", "HOME", "XDG_DATA_HOME", "UV_PYTHON_INSTALL_DIR"):
            monkeypatch.setenv(name, str(tmp_path / "nothing"))
        compiled = wanted.model_copy(update={"compile_bytecode": True})
        with pytest.raises(BuildError, match=rf"needs Python {lock.target.python}.*here is none"):
            await steps.resolve(site, compiled)
        locked = type(lock).from_pylock(
            lock.to_pylock().replace("[tool.prefect-environments]", BYTECODE.format(lock.target.python))
        )
        assert locked.bytecode == lock.target.python
        with requests_of(open_registry) as seen, pytest.raises(BuildError, match="here is none"):
            await steps.build(site, compiled, locked)
    assert uploads(seen, f"{team.repository_prefix}/demo") == 0
    assert not list((tmp_path / "cache").rglob("*.whl"))


BYTECODE = '[tool.prefect-environments]\nbytecode = "{}"'
