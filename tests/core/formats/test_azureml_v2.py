"""Azure ML v2 YAML: read as it is written, refused with line and reason, and written for an image by digest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, NameNotAllowed, RequirementsError, SpecificationError
from prefect_environments.core.formats import azureml_v2
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.versions import VersionRecord

IMAGE = "registry.example.com/base/python:3.12"
DIGEST = "sha256:" + "a" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLANTED = "hunter2-planted"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a YAML into a folder that has a conda file and a build context beside it."""
    (tmp_path / "conda").mkdir()
    (tmp_path / "conda" / "env.yml").write_text(
        "name: ignored\nchannels: [conda-forge]\ndependencies:\n- python=3.10\n- pip=25.0\n- numpy=1.26.*\n"
        "- pip:\n  - -r more.txt\n  - Requests>=2\nvariables:\n  OMP_NUM_THREADS: 04\n"
    )
    (tmp_path / "conda" / "more.txt").write_text("pandas  # frames\n")
    (tmp_path / "context" / "docker").mkdir(parents=True)
    for name in ("Dockerfile", "docker/gpu.Dockerfile"):
        (tmp_path / "context" / name).write_text(f"FROM {IMAGE}\n")

    def put(text: str) -> Path:
        path = tmp_path / "environment.yml"
        path.write_text(text)
        return path

    return put


def fields(definition: EnvironmentDefinition) -> dict[str, Any]:
    return definition.model_dump(exclude_defaults=True)


def test_all_keys_are_read_and_nothing_is_converted(write: Write) -> None:
    found = azureml_v2.read(
        write(
            f"""\
$schema: https://example.com/environment.schema.json
name: train
version: 1.10
description: What we train with
tags: {{python: 3.10, gpu: no, empty: }}
properties: {{stage: 2024-01-02}}
image: {IMAGE}
os_type: Linux
inference_config:
  liveness_route: {{path: /live, port: 5001}}
  scoring_route:
    path: /score
    port: 5001
"""
        )
    )
    assert found.version == "1.10"
    assert found.schema == "https://example.com/environment.schema.json"
    assert found.properties == {"stage": "2024-01-02"}
    assert found.inference_config == {
        "liveness_route": {"path": "/live", "port": 5001},
        "scoring_route": {"path": "/score", "port": 5001},
    }
    assert fields(found.definition) == {
        "name": "train",
        "description": "What we train with",
        "tags": {"python": "3.10", "gpu": "no", "empty": ""},
        "base_image": IMAGE,
        "user_managed": True,
    }


def test_an_image_with_a_conda_file_is_managed_and_its_paths_count_from_their_own_files(write: Write) -> None:
    path = write(f"name: train\nimage: {IMAGE}\nconda_file: conda/env.yml\n")
    assert fields(azureml_v2.read(path).definition) == {
        "name": "train",
        "base_image": IMAGE,
        "conda_channels": ("conda-forge",),
        "conda_dependencies": ("python=3.10", "pip=25.0", "numpy=1.26.*"),
        "requirements": ("pandas", "requests>=2"),
        "environment_variables": {"OMP_NUM_THREADS": "04"},
    }


def test_a_conda_file_may_stand_in_the_yaml_itself(write: Write) -> None:
    path = write(
        f"""\
name: train
image: {IMAGE}
conda_file:
  channels: [conda-forge]
  dependencies:
  - python=3.10
  - pip:
    - -r conda/more.txt
"""
    )
    definition = azureml_v2.read(path).definition
    assert (definition.conda_dependencies, definition.requirements) == (("python=3.10",), ("pandas",))


@pytest.mark.parametrize("dockerfile", ["", "docker/gpu.Dockerfile"])
def test_a_build_context_is_a_folder_beside_the_file(write: Write, dockerfile: str, tmp_path: Path) -> None:
    """Its image brings its own Python, as in Azure ML, where nothing is installed on it."""
    more = f"\n  dockerfile_path: {dockerfile}" if dockerfile else ""
    definition = azureml_v2.read(write(f"name: train\nbuild:\n  path: ./context/{more}\n")).definition
    expected = {"name": "train", "build_context": str(tmp_path / "context"), "user_managed": True}
    assert fields(definition) == expected | ({"dockerfile_path": dockerfile} if dockerfile else {})


def test_a_build_context_in_git_stays_as_it_is_written(write: Write) -> None:
    url = f"https://git.example.com/team/images.git#{COMMIT}:train"
    definition = azureml_v2.read(
        write(f"name: train\nbuild: {{path: '{url}', dockerfile_path: a/Dockerfile}}\n")
    ).definition
    assert (definition.build_context, definition.dockerfile_path) == (url, "a/Dockerfile")


def test_a_name_is_in_the_file_or_given_by_the_caller(write: Write) -> None:
    path = write(f"image: {IMAGE}\n")
    with pytest.raises(SpecificationError, match=r"environment.yml: the environment has no name"):
        azureml_v2.read(path)
    assert azureml_v2.read(path, name="mine").definition.name == "mine"
    assert azureml_v2.read(write(f"name: theirs\nimage: {IMAGE}\n"), name="mine").definition.name == "mine"
    with pytest.raises(NameNotAllowed):
        azureml_v2.read(path, name="a b")


def test_what_the_service_adds_when_it_shows_an_environment_is_ignored_with_a_warning(write: Write) -> None:
    found = azureml_v2.read(write(f"name: train\nid: azureml:/subscriptions/x\nimage: {IMAGE}\n"))
    assert found.definition.name == "train"
    assert [warning.split(": ", 1)[0][-17:] for warning in found.warnings] == ["environment.yml:2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "environment.yml: .*this is empty"),
        ("- a\n", "environment.yml: .*this is a list"),
        ("name: a\n", r":1: an environment needs an image or a build"),
        (f"name: a\nimage: {IMAGE}\nbuild: {{path: context}}\n", r":3: image and build exclude each other"),
        ("name: a\nbuild: {path: context}\nconda_file: conda/env.yml\n", r":3: conda_file needs an image"),
        (f"name: a\nimage: {IMAGE}\ncondaFile: x\n", r":3: .*no key 'condaFile'; did you mean 'conda_file'\?"),
        (f"name: a\nimage: {IMAGE}\nos_type: Windows\n", r":3: os_type is linux; Windows images are not built here"),
        (f"name: a\nimage: {IMAGE}\nos_type: plan9\n", r":3: os_type is linux; 'plan9'"),
        ("name: a\nimage: Python 3\n", r":2: "),
        ("name: a\nimage: [python]\n", r":2: image is text, and this is a list"),
        ("name: a\nimage: azureml:sklearn@latest\n", r":2: "),
        ("name: a\nbuild: context\n", r":2: build is a mapping with a path"),
        ("name: a\nbuild: {}\n", r":2: build needs a path"),
        ("name: a\nbuild:\n  path: context\n  dockerfile: x\n", r":4: .*did you mean 'dockerfile_path'"),
        ("name: a\nbuild: {path: contxt}\n", r":2: there is no folder 'contxt'"),
        ("name: a\nbuild: {path: context, dockerfile_path: ../x}\n", r":2: the Dockerfile '../x' is outside"),
        ("name: a\nbuild: {path: azureml://datastores/x}\n", r":2: the git build context .* is not fetched"),
        ("name: a\nbuild: {path: https://x.blob.example.net/y/z}\n", r":2: .*no full commit"),
        (f"name: a\nimage: {IMAGE}\nconda_file: []\n", r":3: conda_file is the path"),
        (f"name: a\nimage: {IMAGE}\ntags: [a]\n", r":3: tags is a mapping"),
        (f"name: a\nimage: {IMAGE}\ntags:\n  a: {{b: c}}\n", r":4: 'a' in tags is text"),
        (f"name: a\nimage: {IMAGE}\nversion: 1-<VERSION>\n", r":3: '1-<VERSION>' is no version"),
        (f"name: a\nimage: {IMAGE}\ninference_config: {{score: x}}\n", r":3: .*no key 'score'"),
        (f"name: a\nimage: {IMAGE}\ninference_config: {{scoring_route: {{path: /x}}}}\n", r":3: .*a path and a port"),
        (
            f"name: a\nimage: {IMAGE}\ninference_config: {{scoring_route: {{path: /x, port: 70000}}}}\n",
            r":3: the port of scoring_route",
        ),
        ("name: a\nchannels: []\ndependencies: [numpy]\n", r":3: this is a conda environment file"),
    ],
)
def test_what_is_wrong_is_refused_with_file_line_and_reason(write: Write, text: str, said: str) -> None:
    with pytest.raises(SpecificationError, match=said) as caught:
        azureml_v2.read(write(text))
    assert "environment.yml" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        f"image: https://ann:{PLANTED}@registry.example.com/a",
        f"image: ann:{PLANTED}@registry.example.com/a:1",
        f"build: {{path: 'https://ann:{PLANTED}@git.example.com/a.git#{COMMIT}'}}",
        f"build: {{path: 'ftp://ann:{PLANTED}@files.example.com/a'}}",
        f"image: a:1\nconda_file: https://ann:{PLANTED}@files.example.com/env.yml",
        f"image: a:1\nconda_file: {{channels: ['https://conda.example.com/t/{PLANTED}/x'], dependencies: [a]}}",
        f"image: a:1\nconda_file: {{dependencies: [{{pip: ['--index-url https://u:{PLANTED}@p.example.com/s']}}]}}",
    ],
)
def test_credentials_are_refused_and_not_shown(write: Write, line: str) -> None:
    with pytest.raises((SpecificationError, RequirementsError)) as caught:
        azureml_v2.read(write(f"name: a\n{line}\n"))
    assert PLANTED not in str(caught.value)


def test_text_without_a_folder_cannot_name_files() -> None:
    assert azureml_v2.parse(f"name: a\nimage: {IMAGE}\n").definition.base_image == IMAGE
    with pytest.raises(SpecificationError, match=r"environment:3: it names a path"):
        azureml_v2.parse(f"name: a\nimage: {IMAGE}\nconda_file: env.yml\n")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match=r"none.yml.*No such file"):
        azureml_v2.read(tmp_path / "none.yml")


def record(**given: Any) -> VersionRecord:
    known: dict[str, Any] = {"workspace": "w", "name": "train", "version": 10, "reference": f"r.example.com/t@{DIGEST}"}
    return VersionRecord(**known | given)


def test_a_registered_version_is_written_as_text_that_every_reader_takes_as_text() -> None:
    written = azureml_v2.write(record(description="no", tags={"b": "1.10", "a": "null"}))
    document = yaml.safe_load(written)
    assert document == {
        "$schema": azureml_v2.SCHEMA,
        "name": "train",
        "version": "10",
        "description": "no",
        "tags": {"a": "null", "b": "1.10"},
        "image": f"r.example.com/t@{DIGEST}",
        "os_type": "linux",
    }
    assert written == azureml_v2.write(record(description="no", tags={"a": "null", "b": "1.10"}))


def test_variables_have_no_place_in_v2_and_are_named_in_a_comment_without_values() -> None:
    written = azureml_v2.write(record(environment_variables={"TOKEN": f"secret:{PLANTED}", "A": "1"}))
    assert written.startswith("# Set in the job: A, TOKEN\n")
    assert PLANTED not in written


def test_a_ready_image_is_written_too() -> None:
    ready = ReadyImage(
        reference=f"r.example.com/t@{DIGEST}",
        name="train",
        version=3,
        digest=DIGEST,
        image_hash="sha256:x",
        platform="linux/amd64",
        python_path="/usr/bin/python3",
        reused=True,
    )
    document = yaml.safe_load(azureml_v2.write(ready, name="theirs", version="2.0"))
    assert (document["name"], document["version"], document["image"]) == ("theirs", "2.0", ready.reference)


@pytest.mark.parametrize("reference", ["oci:/data/images:t@" + DIGEST, ""])
def test_an_image_that_azure_ml_cannot_pull_is_refused(reference: str) -> None:
    with pytest.raises(DefinitionError, match="no image in a registry"):
        azureml_v2.write(record(reference=reference))


def test_a_version_that_azure_ml_would_not_take_is_refused() -> None:
    with pytest.raises(SpecificationError, match="no version"):
        azureml_v2.write(record(), version="a b")


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(description=words, tags=st.dictionaries(words, words, max_size=4), number=st.integers(1, 10**6))
def test_what_is_written_reads_back_equal(description: str, tags: dict[str, str], number: int) -> None:
    found = azureml_v2.parse(azureml_v2.write(record(version=number, description=description, tags=tags)))
    assert found.version == str(number)
    assert found.definition == EnvironmentDefinition(
        name="train",
        base_image=f"r.example.com/t@{DIGEST}",
        user_managed=True,
        description=description if description.strip() else "",
        tags=tags,
    )


@given(st.text(max_size=100), st.sampled_from(azureml_v2.KEYS))
def test_nothing_leaves_the_error_tree(value: str, key: str) -> None:
    written = yaml.safe_dump({"name": "a", "image": IMAGE, key: value})
    try:
        azureml_v2.parse(written)
    except DefinitionError as error:
        assert str(error)
