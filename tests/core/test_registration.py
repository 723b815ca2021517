"""`Environment` with a real workspace in a folder: register, get, list, build_local, private wheels."""

import asyncio
import shutil
from pathlib import Path

import pytest

from prefect_environments import CondaDependencies, Environment, Workspace
from prefect_environments.core.errors import (
    AlreadyExists,
    DefinitionError,
    NotFound,
    PackageError,
    RequirementsError,
    VersionNotFound,
)
from prefect_environments.tasks import set_label
from tests.support.base import BaseLayout
from tests.support.wheels import make_wheel


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Workspace.local(tmp_path / "workspace")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    make_wheel(folder, "pip", "26.1")
    make_wheel(folder, "spam", "1.0")
    return folder


def environment(base: BaseLayout, wheels: Path, *packages: str, name: str = "train") -> Environment:
    found = Environment(name)
    found.docker.base_image = base.reference
    conda = CondaDependencies()
    for line in ("--no-index", f"--find-links {wheels}", *packages):
        conda.add_pip_package(line)
    found.python.conda_dependencies = conda
    return found


def test_a_script_for_sdk_v1_registers_gets_lists_saves_and_builds(
    workspace: Workspace, base_layout: BaseLayout, wheels: Path, tmp_path: Path
) -> None:
    """The whole round: an unchanged environment keeps its version, a changed variable makes the next one, and
    build_local after register finds the image."""
    env = environment(base_layout, wheels, "spam")
    first = env.register(workspace)
    assert (first.name, first.version) == ("train", 1)
    assert first.reference.endswith(f"@{first.digest}")
    assert env.version is None
    assert env.register(workspace).version == first.version == first.register(workspace).version
    first.environment_variables["THREADS"] = "4"
    second = first.register(workspace)
    assert (second.version, second.digest) == (2, first.digest)

    assert Environment.get(workspace, "train").version == 2
    assert Environment.get(workspace, "train", version="1").environment_variables == {}
    assert Environment.get(workspace, "train", label="Latest").definition() == second.definition()
    envs = workspace.environments
    assert envs["train"].version == Environment.list(workspace)["train"].version == 2
    assert "nothing" not in envs

    second.save_to_directory(tmp_path / "saved", overwrite=True)
    assert Environment.load_from_directory(tmp_path / "saved").definition() == second.definition()
    built = second.build_local(workspace, useDocker=True, pushImageToWorkspaceAcr=True)
    assert (built.version, built.digest, built.reused) == (2, first.digest, True)
    assert env.get_image_details(workspace).version == 1
    assert second.get_image_details(workspace) == built


async def test_it_is_synchronous_also_where_a_loop_runs(
    workspace: Workspace, base_layout: BaseLayout, wheels: Path
) -> None:
    """As in a notebook: the call returns the environment, not a coroutine, and the loop goes on."""
    assert asyncio.get_running_loop().is_running()
    assert environment(base_layout, wheels).register(workspace).version == 1
    assert list(workspace.environments)[-1] == "train"


def test_an_environment_is_got_by_its_label(workspace: Workspace, base_layout: BaseLayout, wheels: Path) -> None:
    environment(base_layout, wheels).register(workspace)
    with pytest.raises(VersionNotFound, match="'production'; no label of it is set yet"):
        Environment.get(workspace, "train", label="production")
    set_label.fn("train", "production", workspace)
    assert Environment.get(workspace, "train", label="production").version == 1


def test_version_and_label_together_and_a_version_that_is_no_number_are_refused(workspace: Workspace) -> None:
    with pytest.raises(DefinitionError, match="both given"):
        Environment.get(workspace, "train", version=1, label="latest")
    for wrong in ("latest", "1.0", 0, True):
        with pytest.raises(DefinitionError, match="number from 1"):
            Environment.get(workspace, "train", version=wrong)


def test_details_of_what_is_not_registered_or_gone_are_an_error(
    workspace: Workspace, base_layout: BaseLayout, wheels: Path, tmp_path: Path
) -> None:
    env = environment(base_layout, wheels)
    with pytest.raises(VersionNotFound, match="not registered"):
        env.get_image_details(workspace)
    registered = env.register(workspace)
    shutil.rmtree(tmp_path / "workspace" / "images")
    with pytest.raises(NotFound, match="gone from the registry"):
        registered.get_image_details(workspace)


def test_a_private_wheel_is_kept_in_the_registry_and_found_again_by_its_sha256(
    workspace: Workspace, base_layout: BaseLayout, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requirement names no place: the image is built when the wheel's file, and every cache, are gone."""
    wheel = make_wheel(tmp_path / "dist", "Our_Tools", "1.0+local", requires=["spam"])
    line = Environment.add_private_pip_wheel(workspace, wheel)
    assert line.startswith("our-tools @ wheel://sha256/")
    shutil.rmtree(tmp_path / "dist")
    env = environment(base_layout, wheels, f"{line} ; python_version >= '3.8'")
    assert str(tmp_path) not in "".join(env.definition().requirements)
    first = env.register(workspace)

    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "workspace" / "versions")
    other = env.clone("other").register(workspace)
    assert other.digest == first.digest
    details = other.get_image_details(workspace)
    assert details.packages == 3


def test_a_private_wheel_is_kept_once(workspace: Workspace, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "dist", "tools", "1.0")
    line = Environment.add_private_pip_wheel(workspace, wheel)
    with pytest.raises(AlreadyExists, match="exist_ok"):
        Environment.add_private_pip_wheel(workspace, str(wheel))
    assert Environment.add_private_pip_wheel(workspace, wheel, exist_ok=True) == line


def test_what_is_no_wheel_is_refused_before_it_is_kept(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "tools.zip").write_bytes(b"PK")
    (tmp_path / "tools-1.0-py3-none-any.whl").write_bytes(b"no archive")
    for name, said in {
        "tools.zip": "not named like a wheel",
        "tools-1.0-py3-none-any.whl": "no zip archive",
        "gone-1.0-py3-none-any.whl": "no file",
    }.items():
        with pytest.raises(PackageError, match=said):
            Environment.add_private_pip_wheel(workspace, tmp_path / name)


def test_a_private_wheel_that_the_registry_does_not_have_is_named(
    workspace: Workspace, base_layout: BaseLayout, wheels: Path
) -> None:
    missing = f"tools @ wheel://sha256/{'0' * 64}/tools-1.0-py3-none-any.whl"
    with pytest.raises(PackageError, match=r"no wheel tools-1.0.*add_private_pip_wheel"):
        environment(base_layout, wheels, missing).register(workspace)


def test_an_altered_address_of_a_private_wheel_is_refused_when_it_is_added() -> None:
    for altered in ("wheel://sha256/zz/tools-1.0-py3-none-any.whl", "wheel://elsewhere/tools-1.0-py3-none-any.whl"):
        with pytest.raises(RequirementsError, match="unchanged"):
            CondaDependencies().add_pip_package(f"tools @ {altered}")
