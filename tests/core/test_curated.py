"""Curated environments: shipped, read-only, in every workspace, with an image once somebody builds them."""

import importlib.resources
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from prefect_environments.blocks import PackageIndexCredentials, Workspace
from prefect_environments.core import checks, curated, loop, names, registration, steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import DefinitionError, NameNotAllowed, VersionNotFound
from prefect_environments.core.formats import azureml_v2
from prefect_environments.core.lock.model import LockedBase
from prefect_environments.core.lock.resolver import ResolveRequest
from prefect_environments.core.lock.target import Target
from prefect_environments.core.lock.uv import UvResolver
from prefect_environments.core.versions import VersionRecord
from prefect_environments.tasks import list_environments
from tests.support.base import BaseLayout
from tests.support.wheels import make_wheel, serve_index

NAMES = ["AzureML-gradient-boosting", "AzureML-sklearn", "AzureML-torch"]
SKLEARN = "AzureML-sklearn"


@pytest.fixture
def workspace(tmp_path: Path, base_layout: BaseLayout) -> Iterator[Workspace]:
    """A workspace in a folder, whose index has a tiny wheel for each package that curated environments ask for."""
    folder = tmp_path / "wheels"
    for definition in curated.environments().values():
        for line in definition.requirements:
            requirement = Requirement(line)
            lowest = next(part.version for part in requirement.specifier if part.operator == ">=")
            make_wheel(folder, requirement.name, f"{lowest}.0")
    with serve_index(folder) as index:
        local = Workspace.local(tmp_path / "workspace")
        private = PackageIndexCredentials(url=index.url)
        yield local.model_copy(update={"index": private, "default_base_image": base_layout.reference})


def test_three_definitions_are_shipped_and_their_names_are_the_reserved_ones_that_may_be_used() -> None:
    assert list(curated.environments()) == NAMES
    assert all(names.is_curated(name) and names.check_name(name) == name for name in NAMES)
    for other in ("AzureML-pytorch", "azureml-sklearn", "AzureML-sklearn2", "Microsoft-sklearn"):
        with pytest.raises(NameNotAllowed, match="reserved"):
            names.check_name(other)


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_says_what_it_is_and_has_nothing_to_complain_about(name: str) -> None:
    definition = curated.get(name)
    assert definition.description and definition.tags
    findings = checks.check(definition)
    assert [(finding.level, finding.field) for finding in findings] == [("warning", "base_image")]  # the workspace's


def test_the_definitions_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        curated.environments()["mine"] = curated.get(SKLEARN)  # type: ignore[index]
    with pytest.raises(VersionNotFound, match=r"no curated environment 'AzureML-x'; there are AzureML-gradient"):
        curated.get("AzureML-x")


def test_every_file_is_data_of_the_package() -> None:
    files = importlib.resources.files(curated)
    assert sum(file.name.endswith(".toml") for file in files.iterdir()) == len(NAMES)


def test_a_workspace_shows_them_as_the_version_that_building_them_registers(workspace: Workspace) -> None:
    record = loop.run(steps.find_version(workspace, SKLEARN))
    assert (record.version, record.reference) == (1, "")
    assert EnvironmentDefinition(**record.definition) == curated.get(SKLEARN)
    assert loop.run(steps.find_version(workspace, SKLEARN, 1)) == record
    with pytest.raises(VersionNotFound):
        loop.run(steps.find_version(workspace, SKLEARN, 2))
    assert [record.name for record in loop.run(steps.newest_versions(workspace))] == NAMES
    assert [version.name for version in list_environments.fn(workspace, curated=True)] == NAMES
    assert list_environments.fn(workspace) == []


def test_building_one_registers_it_under_its_name_and_a_second_build_finds_it(workspace: Workspace) -> None:
    first = registration.register(workspace, curated.get(SKLEARN))
    assert (first.name, first.version) == (SKLEARN, 1)
    assert first.reference.endswith(first.digest) and first.packages > 5
    assert registration.register(workspace, curated.get(SKLEARN)) == first
    assert loop.run(steps.find_version(workspace, SKLEARN)) == first
    newest = {record.name: record.reference for record in loop.run(steps.newest_versions(workspace))}
    assert newest == {name: first.reference if name == SKLEARN else "" for name in NAMES}
    assert [version.name for version in list_environments.fn(workspace)] == [SKLEARN]


@pytest.mark.parametrize(
    "changes",
    [{"requirements": ("pandas",)}, {"base_image": "python:3.12"}, {"tags": {}}, {"environment_variables": {"A": "1"}}],
)
def test_another_definition_cannot_take_the_name(workspace: Workspace, changes: dict[str, object]) -> None:
    altered = EnvironmentDefinition(**(curated.get(SKLEARN).model_dump() | changes))
    with pytest.raises(NameNotAllowed, match=r'cannot be changed.*clone\("my-sklearn"\)'):
        registration.register(workspace, altered)
    assert loop.run(workspace.versions.names()) == []


def test_one_is_the_start_of_an_environment_of_ones_own(workspace: Workspace) -> None:
    mine = Environment.get(workspace, SKLEARN).clone("mine")
    assert mine.definition() == curated.get(SKLEARN).model_copy(update={"name": "mine"})
    assert mine.register(workspace).definition().name == "mine"


def test_a_definition_that_a_newer_release_ships_is_the_next_version(workspace: Workspace) -> None:
    """What an older release has built stays as it is, under its own number."""
    shipped = curated.get(SKLEARN)
    wanted = steps.definition_hash(workspace, shipped)
    older = VersionRecord("w", SKLEARN, 3, "r.example.com/a@sha256:" + "a" * 64, definition_hash="sha256:another")
    unbuilt = curated.unbuilt_version(shipped, older, "w", wanted)
    assert unbuilt is not None and (unbuilt.version, unbuilt.reference) == (4, "")
    equal = VersionRecord("w", SKLEARN, 3, older.reference, definition_hash=wanted)
    assert curated.unbuilt_version(shipped, equal, "w", wanted) is None


def test_one_that_nobody_has_built_has_no_image_to_write_for_azure_ml(workspace: Workspace) -> None:
    with pytest.raises(DefinitionError, match="no image in a registry"):
        azureml_v2.write(loop.run(steps.find_version(workspace, SKLEARN)), name="sklearn")


@pytest.mark.network
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("python", ["3.12.7", "3.13.5"])
async def test_it_resolves_against_the_package_index(name: str, python: str, tmp_path: Path) -> None:
    """Metadata only: nothing large is downloaded."""
    definition = curated.get(name)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ["UV_CACHE_DIR"] = str(tmp_path / "cache")
    request = ResolveRequest(
        definition.requirements,
        target=Target(python, "/usr/local/bin/python3", "glibc", "2.36"),
        base=LockedBase("registry.example.com/python:3", "sha256:" + "a" * 64),
    )
    lock = await UvResolver(environ=environ).resolve(request)
    asked = {Requirement(line).name for line in definition.requirements}
    assert asked <= {package.name for package in lock.packages}
    assert all(package.sha256 and package.size for package in lock.packages)
