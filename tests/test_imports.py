"""What is loaded when: a fresh interpreter loads no more than its task needs, because loading takes longer than a
warm build's work."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.images.conftest import real_pip
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.wheels import make_wheel

ROOT = Path(__file__).parents[1]

BUILDERS = {
    "deflate",
    "docker",
    "installer",
    "platformdirs",
    "prefect",
    "rattler",
    "rich",
    "tarfile",
    "tomli_w",
    "uv",
    "yaml",
}
"""What resolving, assembling and showing need, and finding a registered image does not."""

RUN = """
import asyncio, json, sys
from benchmarks.ours import build
stages = asyncio.run(build(json.loads(sys.argv[1])))["stages"]
print(json.dumps([list(stages), sorted(sys.modules)]))
"""


def loaded(code: str, *arguments: str) -> Any:
    """What a program in an interpreter of its own prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def top_level(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("place", ["layout", "registry"])
def test_finding_a_registered_image_loads_nothing_that_builds(
    place: str, base_layout: BaseLayout, open_registry: Registry, tmp_path: Path
) -> None:
    """The second run of a build, which has nothing to do; on a layout it does without the HTTP client, too."""
    wheels = make_wheel(tmp_path / "wheels", "alpha", "1.0").parent
    shutil.copy(real_pip(), wheels)
    order = json.dumps(
        {
            "registry": f"oci:{tmp_path / 'images'}" if place == "layout" else open_registry.address,
            "base": base_layout.reference,
            "name": f"imports-{tmp_path.name.lower()}",
            "requirements": ["alpha", "--no-index", f"--find-links {wheels}"],
            "cache": str(tmp_path / "cache"),
            "versions": str(tmp_path / "versions"),
        }
    )
    stages, modules = loaded(RUN, order)
    assert "register" in stages
    assert top_level(modules) >= {"installer", "uv"}, "a build loads what this test looks for"
    stages, modules = loaded(RUN, order)
    assert stages == ["import", "find"]
    unwanted = BUILDERS | ({"aiohttp"} if place == "layout" else set())
    assert top_level(modules) & unwanted == set()
    ours = {name.removeprefix("prefect_environments.core.") for name in modules}
    assert ours & {"build.assemble", "build.layer", "build.wheel", "build.inspect", "lock.uv", "build.fetch"} == set()


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("prefect_environments", BUILDERS | {"aiohttp", "pydantic"}),
        ("prefect_environments.core.definition", BUILDERS | {"aiohttp"}),
        ("prefect_environments.core.steps", BUILDERS | {"aiohttp"}),
        ("prefect_environments.core.distribution.registry", BUILDERS | {"pydantic"}),
    ],
)
def test_a_module_loads_only_what_it_needs(module: str, unwanted: set[str]) -> None:
    modules = loaded("import importlib, json, sys; importlib.import_module(sys.argv[1]);"
                     "print(json.dumps(sorted(sys.modules)))", module)  # fmt: skip
    assert module in modules
    assert top_level(modules) & unwanted == set()
