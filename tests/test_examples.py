"""The examples and docs/environments.md run as they stand; base images, wheels and channels are this machine's."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.conftest import real_pip
from tests.support.base import BaseLayout
from tests.support.channel import CondaPackage, standard_channel
from tests.support.engine import DockerEngine
from tests.support.registry import Registry
from tests.support.wheels import make_wheel, serve_index

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "environments.md").read_text("utf-8")
V1_LINES = """\
conda = CondaDependencies()
conda.add_channel("pytorch")
conda.add_conda_package("python=3.11")
conda.add_pip_package("pyyaml")
env = Environment("pytorch")
env.python.conda_dependencies = conda
env.register(ws)
envs = ws.environments
env = Environment.get(ws, "my-env", version=6)
env.save_to_directory(path, overwrite=True)
registered.build_local(ws, useDocker=True, pushImageToWorkspaceAcr=True)
"""
BUILT = ["context", "frames", "from-v2", "greeting", "iris", "iris-extended", "locked", "project", "signed", "text"]
BUILT += ["tools", "train", "with-ours"]
"""The environments that the page registers."""


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    make_wheel(folder, "pyyaml", "6.0", {"yaml/__init__.py": b"__version__ = '6.0'\n"})
    for name in ("pandas", "scikit-learn", "humanize", "requests"):
        make_wheel(folder, name, "4.0")
    shutil.copy(real_pip(), folder)
    return folder


def run(script: Path, *arguments: object, cwd: Path, wheels: Path, **more: str) -> str:
    """What a script prints, in a process of its own whose package index is `wheels`; fails with all that it says."""
    command = [sys.executable, str(script), *map(str, arguments)]
    with serve_index(wheels) as index:
        env = {**os.environ, "UV_DEFAULT_INDEX": index.url, **more}
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_script_for_sdk_v1_runs_with_only_its_import_lines_changed(
    tmp_path: Path, base_layout: BaseLayout, wheels: Path
) -> None:
    """Twice, as scripts are: the second time nothing is built, and what equals its newest version stays it."""
    script = ROOT / "examples" / "azureml_v1.py"
    lines = [line.strip() for line in script.read_text("utf-8").splitlines()]
    assert [line for line in V1_LINES.splitlines() if not any(line in there for there in lines)] == []
    images = set()
    for newest in (6, 12):  # the six variants differ from the newest version in turn
        said = run(script, tmp_path / "v1", base_layout.reference, cwd=tmp_path, wheels=wheels).splitlines()
        assert {f"my-env {newest}", "pytorch 1", "saved azureml_environment.json conda_dependencies.yml"} <= set(said)
        assert said[-1].startswith(f"reused True oci:{tmp_path / 'v1' / 'images'}:environments/my-env@sha256:")
        images.add(said[-1])
    assert len(images) == 1
    saved = json.loads((tmp_path / "v1/my-env/azureml_environment.json").read_text())
    assert (saved["name"], saved["version"], saved["environmentVariables"]) == (
        "my-env",
        "6",
        {"OMP_NUM_THREADS": "6"},
    )
    assert "python=3.11" in (tmp_path / "v1/my-env/conda_dependencies.yml").read_text()


def test_every_way_to_define_an_environment_works_as_it_is_documented(
    *,
    tmp_path: Path,
    wheels: Path,
    base_layout: BaseLayout,
    base_layout_without_python: BaseLayout,
    open_registry: Registry,
    docker_engine: DockerEngine,
    prefect_server: str,
) -> None:
    """The page's files are written, its code runs from top to bottom, and each environment has an image."""
    base, bare = (open_registry.repository_url(f"documented/{name}:1") for name in ("python", "bare"))
    base_layout.push(base)
    base_layout_without_python.push(bare)
    channel = standard_channel(tmp_path / "channels" / "conda-forge")
    channel.add(CondaPackage("openmpi", "5.0.1", files={"bin/mpirun": b"#!/bin/sh\n"}))
    place = tmp_path / "page"
    _write_files(place, wheels, base, bare)
    code = "\n\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
    (place / "page.py").write_text(_here(code, base, bare), "utf-8")
    said = run(
        place / "page.py",
        cwd=place,
        wheels=wheels,
        PREFECT_API_URL=prefect_server,
        PREFECT_ENVIRONMENTS_BUILD_NETWORK="host",  # the engine of the tests has no bridge
        CONDA_CHANNEL_ALIAS=(tmp_path / "channels").as_uri(),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        **{name: value for name, value in docker_engine.environment.items() if value},
    )
    names = re.search(r"^\['AzureML.*\]$", said, re.MULTILINE)
    assert names and re.findall(r"'([a-z][\w-]*)'", names[0]) == BUILT
    assert "base_image and dockerfile are given, but an environment has one base" in said
    assert "Debian GNU/Linux" in said
    stored = "".join(path.read_text(errors="replace") for path in (place / "environments/versions").rglob("*.json"))
    assert "secret:feed-token" in stored
    assert "not in any layer" not in stored + said


def _here(text: str, base: str, bare: str) -> str:
    return text.replace("python:3.11-slim", base).replace("debian:12-slim", bare)


def _write_files(place: Path, wheels: Path, base: str, bare: str) -> None:
    """The files that the page shows, each named in its first line, and those that it only names."""
    place.mkdir()
    shown = re.findall(r"^```(?:text|yaml|toml|dockerfile)\n# (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in shown] == [
        "requirements.txt",
        "environment.yml",
        "Dockerfile",
        "azureml-v2.yml",
        "pyproject.toml",
    ]
    for name, text in shown:
        (place / name).write_text(_here(text, base, bare), "utf-8")
    (place / "context" / "docker").mkdir(parents=True)
    (place / "context" / "docker" / "Dockerfile").write_text(f"FROM {base}\nCOPY . /srv\n")
    make_wheel(place / "dist", "ours", "1.0")
    (wheel,) = wheels.glob("humanize-*.whl")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (place / "pylock.toml").write_text(
        'lock-version = "1.0"\ncreated-by = "tests"\n\n[[packages]]\nname = "humanize"\nversion = "4.0"\n'
        f'wheels = [{{url = "{wheel.as_uri()}", hashes = {{sha256 = "{sha256}"}}}}]\n'
    )
