"""Defects of Azure ML that are left behind: build contexts (6), failed builds (9) and versions (12)."""

import io
import logging
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments import DockerBuildContext, Environment, Workspace
from prefect_environments.core import hashes, loop
from prefect_environments.core.build.docker.inputs import open_inputs, pack_context
from prefect_environments.core.errors import BuildError
from prefect_environments.core.formats import azureml_v2
from prefect_environments.core.versions import VersionRecord
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.registry import Registry

IMAGE = "registry.example.com/base/python:3.12"
SHA256 = "@sha256:" + "a" * 64


def context(place: Path, files: dict[str, str]) -> Path:
    for path, text in {"Dockerfile": f"FROM {IMAGE}\nCOPY . /srv\n", **files}.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    return place


def environment(folder: Path) -> Environment:
    return Environment.from_docker_build_context("train", DockerBuildContext.from_local_directory(None, folder))


async def packed(folder: Path, scratch: Path) -> dict[str, str]:
    """What a build gets to see: the files by path."""
    out = io.BytesIO()
    async with open_inputs(environment(folder).definition(), scratch) as inputs:
        pack_context(inputs, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        files = [(member.name, archive.extractfile(member)) for member in archive if member.isfile()]
        return {name: content.read().decode() for name, content in files if content is not None}


async def test_defect_06_nested_folders_stay_and_same_named_files_don_t_collide(tmp_path: Path) -> None:
    files = {"a/x.txt": "of a", "a/b/x.txt": "of a/b", "x.txt": "of the top", "b/x.txt": "of b"}
    found = await packed(context(tmp_path / "context", files), tmp_path / "scratch")
    assert {path: text for path, text in found.items() if path != "Dockerfile"} == files


async def test_defect_06_the_ignore_file_is_honoured(tmp_path: Path) -> None:
    """What it leaves out is neither sent nor counted."""
    folder = context(tmp_path / "context", {"a/data.csv": "1", "kept.txt": "", ".dockerignore": "**/*.csv\n"})
    before = hashes.definition_hash(environment(folder).definition())
    assert "a/data.csv" not in await packed(folder, tmp_path / "scratch")
    (folder / "a/data.csv").write_text("2")
    assert hashes.definition_hash(environment(folder).definition()) == before


def test_defect_06_names_modes_and_places_of_files_are_in_the_hash(tmp_path: Path) -> None:
    """`a/b` and `ab` with the same content were one environment."""
    contents = ({"a/b": "x"}, {"ab": "x"}, {"a/b": "x", "c": ""}, {"b": "x"}, {"a/b": "y"}, {"a": "bx"})
    folders = [context(tmp_path / str(number), files) for number, files in enumerate(contents)]
    folders.append(context(tmp_path / "executable", {"a/b": "x"}))
    (folders[-1] / "a/b").chmod(0o755)
    found = [hashes.definition_hash(environment(folder).definition()) for folder in folders]
    assert len(set(found)) == len(folders)
    again = context(tmp_path / "elsewhere", {"a/b": "x"})
    assert hashes.definition_hash(environment(again).definition()) == found[0]


def test_defect_06_contexts_of_v2_have_identities_of_their_own(tmp_path: Path) -> None:
    found = set()
    for number, path in enumerate(("a/b", "ab")):
        folder = tmp_path / str(number)
        context(folder / "context", {path: "x"})
        (folder / "environment.yml").write_text("name: train\nbuild:\n  path: context\n")
        found.add(hashes.definition_hash(azureml_v2.read(folder / "environment.yml").definition))
    assert len(found) == 2


@pytest.mark.parametrize("by", ["dockerfile", "context"])
def test_defect_09_a_failed_build_raises_and_shows_its_log(
    *,
    by: str,
    tmp_path: Path,
    docker_engine: DockerEngine,
    open_registry: Registry,
    base_layout: BaseLayout,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also one that fails at once: its lines are in the log as they came, its step and last lines in the error."""
    monkeypatch.setenv("PREFECT_ENVIRONMENTS_BUILD_NETWORK", "host")  # the engine of the tests has no bridge
    for name, value in docker_engine.environment.items():
        if value:
            monkeypatch.setenv(name, value)
    base = open_registry.repository_url("defects/base:1")
    base_layout.push(base)
    text = f"FROM {base}\nRUN echo {by}: fine so far\nRUN echo told before the end >&2; exit 3\n"
    if by == "context":
        folder = context(tmp_path / "context", {})
        (folder / "Dockerfile").write_text(text)
        wanted = environment(folder)
    else:
        wanted = Environment.from_dockerfile("train", text)
    workspace = Workspace.local(tmp_path / "workspace")
    with caplog.at_level(logging.INFO, logger="prefect_environments"), pytest.raises(BuildError) as caught:
        wanted.register(workspace)
    told = str(caught.value)
    assert "exit 3" in told
    assert "told before the end" in told
    logged = [record.getMessage() for record in caplog.records]
    for line in ("fine so far", "told before the end"):
        assert any(re.search(rf"(?m)^(?!.*RUN).*{line}$", message) for message in logged), line
    assert [name for name in workspace.environments if not name.startswith("AzureML-")] == []


def test_defect_12_the_newest_is_the_greatest_number_whatever_clocks_say(tmp_path: Path) -> None:
    """Version 10 comes after 9, and one that was written by a clock that is behind is the newest all the same."""
    workspace = Workspace.local(tmp_path)
    draft = VersionRecord(
        workspace.name,
        "train",
        0,
        f"registry.example.com/train{SHA256}",
        definition={"name": "train", "base_image": IMAGE},
    )
    for day in range(11, 0, -1):
        loop.run(workspace.versions.register(replace(draft, created=f"2030-01-{day:02}T00:00:00+00:00")))
    assert Environment.get(workspace, "train").version == 11
    assert Environment.get(workspace, "train", label="latest").version == 11
    assert workspace.environments["train"].version == 11
    assert [Environment.get(workspace, "train", version=number).version for number in ("2", 10)] == [2, 10]


def test_defect_12_nothing_that_was_written_of_a_version_is_lost_by_a_later_write(tmp_path: Path) -> None:
    """There, an archived version came back with the next write. Here each version's document is written once."""
    workspace = Workspace.local(tmp_path)
    draft = VersionRecord(workspace.name, "train", 0, f"registry.example.com/train{SHA256}", description="first")
    loop.run(workspace.versions.register(draft))
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert first
    for number in range(2, 12):
        loop.run(workspace.versions.register(replace(draft, description=str(number))))
    assert {path: path.read_bytes() for path in first} == first
    kept = loop.run(workspace.versions.versions("train"))
    assert [record.description for record in kept] == ["first", *map(str, range(2, 12))]
