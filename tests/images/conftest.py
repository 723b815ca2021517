"""Wheels, base images and built images that several tests look at; made once a session."""

import asyncio
import ensurepip
import re
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.base import make_base as maker
from prefect_environments.core.definition import EnvironmentDefinition
from tests.images.parts import Team, build, derive, push_with_skopeo
from tests.support.base import BaseLayout, base_image
from tests.support.channel import standard_channel
from tests.support.engine import DockerEngine
from tests.support.registry import Registry
from tests.support.session import Session, missing
from tests.support.wheels import make_wheel

Define = Callable[..., EnvironmentDefinition]

SCRIPT = b"#!python\nimport sys\nprint('script of', sys.prefix)\n"


def real_pip() -> Path:
    """The wheel of pip that comes with Python, for the tests that run pip in a container."""
    places = [Path(ensurepip.__file__).parent / "_bundled", Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or "/none")]
    found = sorted(path for place in places for path in place.glob("pip-*.whl"))
    if not found:
        missing("this Python has no wheel of pip in it (ensurepip)")
    return found[-1]


@pytest.fixture(scope="session")
def wheels(test_session: Session) -> Path:
    """A folder of wheels: `alpha` needs `beta` and has scripts and data; `gamma` and `delta` are more; pip is real."""

    def make() -> dict[str, str]:
        folder = test_session.folder / "image-wheels"
        make_wheel(
            folder,
            "alpha",
            "1.0",
            {"alpha/__init__.py": b"import beta\n\ndef main():\n    print('alpha says', beta.__version__)\n"},
            requires=["beta>=1"],
            entry_points={"alpha-say": "alpha:main"},
            scripts={"alpha-script": SCRIPT},
            data={"data/share/alpha/notes.txt": b"notes\n"},
        )
        for name in ("beta", "gamma", "delta"):
            make_wheel(folder, name, "1.0")
        shutil.copy(real_pip(), folder)
        return {"folder": str(folder)}

    return Path(test_session.once("image-wheels", make)["folder"])


@pytest.fixture
def define(wheels: Path, base_layout: BaseLayout) -> Define:
    """Makes definitions over the folder of wheels and the small base; options replace fields."""

    def make(*requirements: str, name: str = "demo", **options: Any) -> EnvironmentDefinition:
        given: dict[str, Any] = {"base_image": base_layout.reference, "find_links": (str(wheels),), "no_index": True}
        return EnvironmentDefinition(name=name, requirements=requirements, **(given | options))

    return make


@pytest.fixture(scope="session")
def open_base(test_session: Session, open_registry: Registry, base_layout: BaseLayout) -> str:
    """The small base in the shared registry, by tag: layers of the images there are mounted from it."""
    target = open_registry.repository_url("images/base:1")
    test_session.once("image-open-base", lambda: {"digest": base_layout.push(target)})
    return target


@pytest.fixture(scope="session")
def dressed(test_session: Session, open_registry: Registry, base_layout: BaseLayout) -> str:
    """A base in the shared registry with a Python package of its own, and every setting that a config can have."""

    def make() -> dict[str, str]:
        derived = asyncio.run(
            derive(
                base_layout,
                test_session.folder / "dressed",
                {"usr/lib/python3/dist-packages/of_the_base.py": b"", "srv/pythonpath/from_pythonpath.py": b""},
                Env=["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONPATH=/srv/pythonpath", "PYTHONHOME=/usr", "KEPT=yes"],
                User="1234:1234",
                Labels={"kept": "label"},
                Entrypoint=["/usr/bin/env", "ENTRY=yes"],
                Cmd=["python", "-c", "import os; print('cmd', os.environ['ENTRY'])"],
                WorkingDir="/tmp",
            )
        )
        return {"reference": push_with_skopeo(derived, open_registry.repository_url("images/dressed:1"))}

    return str(test_session.once("image-dressed", make)["reference"])


@pytest.fixture(scope="session")
def pushed(test_session: Session, open_registry: Registry, wheels: Path, dressed: str) -> str:
    """A built image in the shared registry, by digest: `alpha`, `beta` and pip on the dressed base."""

    def make() -> dict[str, str]:
        team = Team.on(open_registry, test_session.folder / "pushed-versions", repository_prefix="images/pushed")
        wanted = EnvironmentDefinition(
            name="demo", base_image=dressed, requirements=("alpha",), find_links=(str(wheels),), no_index=True
        )
        found = asyncio.run(build(team, wanted, test_session.folder / "pushed-cache"))
        return {"reference": found.ready.reference}

    return str(test_session.once("image-pushed", make)["reference"])


@pytest.fixture(scope="session")
def conda_channel(test_session: Session) -> Path:
    """The folder of a conda channel with a real Python, and a package for each thing that packages do."""

    def make() -> dict[str, str]:
        return {"folder": str(standard_channel(test_session.folder / "conda-channel").folder)}

    return Path(test_session.once("image-conda-channel", make)["folder"])


@pytest.fixture(scope="session")
def bare() -> BaseLayout:
    """A base image with no Python in it, as nvidia/cuda has none."""
    return base_image(maker.NO_PYTHON)


@pytest.fixture
def build_engine(docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> DockerEngine:
    """The tests' engine as the one that Dockerfiles are built with."""
    monkeypatch.setenv("PREFECT_ENVIRONMENTS_BUILD_NETWORK", "host")  # the engine of the tests has no bridge
    for name, value in docker_engine.environment.items():
        if value:
            monkeypatch.setenv(name, value)
    return docker_engine


@pytest.fixture
def team(open_registry: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> Team:
    """A workspace on the shared registry with repositories of this test's own."""
    own = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return Team.on(open_registry, tmp_path / "versions", repository_prefix=f"images/{own}")
