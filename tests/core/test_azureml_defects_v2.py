"""Defects of Azure ML that are left behind: those of its v2 YAML and of its versions."""

from pathlib import Path

import pytest
import yaml

from prefect_environments.core.errors import (
    DefinitionError,
    NameNotAllowed,
    RequirementsError,
    SpecificationError,
)
from prefect_environments.core.formats import azureml_v2
from prefect_environments.core.versions import FolderVersionStore, VersionRecord

IMAGE = "registry.example.com/base/python:3.12"

REQUIREMENTS = [
    "pandas\n",
    "pandas==2.3.0\nscikit-learn>=1.5\n",
    "# what we train with\n\npandas ~= 2.3\nnumpy\n",
    "pandas; python_version < '3.13'\n",
    "--index-url https://packages.example.com/simple\npandas\n",
    "-r base.txt\n",
    "-e .\n",
    "pandas[excel]\n",
    "name @ https://files.example.com/name-1-py3-none-any.whl\n",
    "pandas==2.3.0 --hash=sha256:" + "a" * 64 + "\n",
    "git+https://git.example.com/team/name\n",
]


def as_conda_file(folder: Path, content: str) -> Path:
    (folder / "given").write_text(content)
    path = folder / "environment.yml"
    path.write_text(f"name: train\nimage: {IMAGE}\nconda_file: given\n")
    return path


@pytest.mark.parametrize("content", REQUIREMENTS)
def test_defect_10_a_requirements_file_is_no_conda_file(content: str, tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match="given") as caught:
        azureml_v2.read(as_conda_file(tmp_path, content))
    assert "requirements" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "just words\n",
        "[]\n",
        "{}}\n",
        "dependencies: numpy\n",
        "dependencies: [1.5]\n",
        "packages: [numpy]\n",
        "dependencies:\n- pip: pandas\n",
        "dependencies:\n- numpy: 1.26\n",
        "dependencies: [numpy\n",
        "name: a\nname: b\ndependencies: [numpy]\n",
        "\x00\x01\x02",
    ],
)
def test_defect_10_a_conda_file_of_garbage_is_refused_at_once(content: str, tmp_path: Path) -> None:
    with pytest.raises((SpecificationError, RequirementsError), match="given"):
        azureml_v2.read(as_conda_file(tmp_path, content))


@pytest.mark.parametrize("written", ["1.10", "1.0", "007", "1_0", "1e3", "2024-01-02", "10"])
def test_defect_10_a_version_stays_as_it_is_written(written: str) -> None:
    assert azureml_v2.parse(f"name: a\nversion: {written}\nimage: {IMAGE}\n").version == written
    record = VersionRecord("w", "a", 1, "r.example.com/a@sha256:" + "a" * 64)
    again = azureml_v2.write(record, version=written)
    assert azureml_v2.parse(again).version == yaml.safe_load(again)["version"] == written


def test_defect_10_a_dockerfile_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    path = tmp_path / "environment.yml"
    path.write_text("name: train\nbuild:\n  path: context\n")
    with pytest.raises(SpecificationError, match=r"environment.yml:3: there is no Dockerfile 'Dockerfile'"):
        azureml_v2.read(path)
    path.write_text("name: train\nbuild:\n  path: context\n  dockerfile_path: gpu/Dockerfile\n")
    with pytest.raises(SpecificationError, match=r"environment.yml:4: there is no Dockerfile 'gpu/Dockerfile'"):
        azureml_v2.read(path)


@pytest.mark.parametrize("name", ["a b", "a/b", "-a", "a:1", "AzureML-x", "Microsoft.x", "a" * 129, "ä"])
def test_defects_10_and_11_a_bad_name_is_told_with_its_line(name: str) -> None:
    with pytest.raises(NameNotAllowed, match=r"environment:2: "):
        azureml_v2.parse(f"# a name\nname: {name!r}\nimage: {IMAGE}\n")


@pytest.mark.parametrize("name", ["", "~", "' '"])
def test_defect_11_no_name_is_not_a_name(name: str) -> None:
    with pytest.raises(DefinitionError, match="no name"):
        azureml_v2.parse(f"name: {name}\nimage: {IMAGE}\n")


async def test_defects_11_names_that_differ_in_case_and_separators_only_are_one_repository(tmp_path: Path) -> None:
    store = FolderVersionStore(tmp_path, "w")
    await store.register(VersionRecord("w", "My.Env", 0, "r.example.com/a@sha256:" + "a" * 64))
    for other in ("my.env", "My-Env", "my_env"):
        with pytest.raises(NameNotAllowed, match=r"'My.Env'"):
            await store.register(VersionRecord("w", other, 0, "r.example.com/a@sha256:" + "b" * 64))


async def test_defect_12_the_newest_version_is_the_one_with_the_greatest_number(tmp_path: Path) -> None:
    """Not the one that was written last, and 10 comes after 9."""
    store = FolderVersionStore(tmp_path, "w")
    times = [f"2030-01-{28 - number:02}T00:00:00+00:00" for number in range(12)]  # each one older than the one before
    for time in times:
        draft = VersionRecord("w", "train", 0, "r.example.com/a@sha256:" + "a" * 64, created=time)
        await store.register(draft)
    assert [record.version for record in await store.versions("train")] == list(range(1, 13))
    newest = await store.newest("train")
    assert newest is not None and (newest.version, newest.created) == (12, times[-1])


async def test_defect_12_a_registered_version_is_written_for_azure_ml_as_text_in_the_order_of_numbers(
    tmp_path: Path,
) -> None:
    store = FolderVersionStore(tmp_path, "w")
    for _ in range(10):
        await store.register(VersionRecord("w", "train", 0, "r.example.com/a@sha256:" + "a" * 64))
    written = [azureml_v2.parse(azureml_v2.write(record)).version for record in await store.versions("train")]
    assert written == [str(number) for number in range(1, 11)]
