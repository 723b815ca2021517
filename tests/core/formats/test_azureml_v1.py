"""The folder of Azure ML's SDK v1: read whatever year it is from, written so that it reads back equal."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments import CondaDependencies, DockerBuildContext, Environment
from prefect_environments.core.errors import (
    AlreadyExists,
    DefinitionError,
    NameNotAllowed,
    RequirementsError,
    SpecificationError,
    StorageError,
)
from prefect_environments.core.formats.azureml_v1_load import ENVIRONMENT
from prefect_environments.core.secrets import SecretReference, SecretValue

PLANTED = "planted-password"
FULL: dict[str, Any] = {
    "name": "ours",
    "version": "3",
    "environmentVariables": {"LEVEL": "1.10"},
    "python": {
        "userManagedDependencies": False,
        "interpreterPath": "python",
        "condaDependenciesFile": None,
        "baseCondaEnvironment": None,
    },
    "docker": {
        "enabled": True,
        "baseImage": "team/python:3.12",
        "baseDockerfile": None,
        "buildContext": None,
        "sharedVolumes": False,
        "shmSize": "8g",
        "arguments": ["--cap-add", "SYS_ADMIN"],
        "baseImageRegistry": {
            "address": "registry.example.com",
            "username": "ann",
            "password": "secret:registry",
            "registryIdentity": None,
        },
        "platform": {"os": "Linux", "architecture": "arm64"},
        "newInThe30s": {"a": [1, 2.5, None]},
    },
    "spark": {"repositories": ["r"], "packages": [{"group": "g", "artifact": "a", "version": "1"}]},
    "databricks": None,
    "r": {"rVersion": "4.0", "cranPackages": [{"name": "dplyr", "version": "1.0"}]},
    "inferencingStackVersion": "latest",
    "assetId": "azureml://x",
    "alsoNew": [True],
}
CONDA = """\
channels: [conda-forge]
dependencies:
  - python=3.7.*
  - pip=23.3
  - pip:
      - pandas>=2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "given"
    place.mkdir()
    return place


def write(folder: Path, document: Any, **files: str) -> Path:
    (folder / ENVIRONMENT).write_text(json.dumps(document))
    for name, text in files.items():
        (folder / name.replace("_yml", ".yml")).write_text(text)
    return folder


def document(folder: Path) -> Any:
    return json.loads((folder / ENVIRONMENT).read_text())


def test_everything_that_sdk_v1_writes_is_read_and_written_back_untouched(folder: Path, tmp_path: Path) -> None:
    """Sections and keys that we do not know are the same afterwards, in the same order."""
    environment = Environment.load_from_directory(write(folder, FULL, conda_dependencies_yml=CONDA))
    definition = environment.definition()
    assert definition.base_image == "registry.example.com/team/python:3.12"
    assert (definition.base_image_username, definition.base_image_password) == ("ann", "secret:registry")
    assert (definition.platform, definition.environment_variables) == ("linux/arm64", {"LEVEL": "1.10"})
    assert (definition.conda_channels, definition.conda_dependencies) == (
        ("conda-forge",),
        ("python=3.7.*", "pip=23.3"),
    )
    assert definition.requirements == ("pandas>=2",)
    assert (environment.version, environment.docker.shm_size) == (None, "8g")

    environment.save_to_directory(tmp_path / "saved")
    saved = document(tmp_path / "saved")
    empty: dict[str, list[str]] = {f"{kind}Libraries": [] for kind in ("maven", "pypi", "rcran", "jar", "egg")}
    assert saved == FULL | {"databricks": empty}
    assert list(saved) == list(FULL)
    assert list(saved["docker"]) == list(FULL["docker"])
    assert Environment.load_from_directory(tmp_path / "saved").definition() == definition
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [ENVIRONMENT, "conda_dependencies.yml"]


@pytest.mark.parametrize(
    "given",
    [
        {"name": "ours"},
        {"name": "ours", "python": None, "docker": None, "environmentVariables": None, "spark": None},
        {"name": "ours", "docker": {"baseImage": None, "platform": None, "baseImageRegistry": None, "arguments": None}},
        {"name": "ours", "python": {"userManagedDependencies": None, "interpreterPath": None}},
    ],
)
def test_every_key_may_be_missing_or_null(given: Any, folder: Path) -> None:
    assert Environment.load_from_directory(write(folder, given)).definition() == Environment("ours").definition()


def test_files_of_2021_lack_keys_and_load(folder: Path) -> None:
    old = {key: value for key, value in FULL.items() if key not in ("assetId", "alsoNew")}
    old["docker"] = {key: value for key, value in FULL["docker"].items() if key != "buildContext"}
    assert Environment.load_from_directory(write(folder, old)).definition().platform == "linux/arm64"


def test_a_dockerfile_is_in_a_file_of_its_own(folder: Path, tmp_path: Path) -> None:
    docker = {"baseImage": None, "enabled": False}
    write(folder, {"name": "ours", "docker": docker}, BaseDockerfile="FROM python:3.12\nRUN true\n")
    environment = Environment.load_from_directory(folder)
    assert environment.definition().dockerfile == "FROM python:3.12\nRUN true\n"
    environment.save_to_directory(tmp_path / "saved")
    assert (tmp_path / "saved" / "BaseDockerfile").read_text() == "FROM python:3.12\nRUN true\n"
    assert "baseDockerfile" not in document(tmp_path / "saved")["docker"]
    assert Environment.load_from_directory(tmp_path / "saved").definition() == environment.definition()


def test_a_build_context_is_kept_with_its_location(folder: Path, tmp_path: Path) -> None:
    context = {"locationType": "git", "location": f"https://git.example.com/a#{'b' * 40}", "dockerfilePath": "d/File"}
    environment = Environment.load_from_directory(write(folder, {"name": "x", "docker": {"buildContext": context}}))
    definition = environment.definition()
    assert (definition.build_context, definition.dockerfile_path) == (context["location"], "d/File")
    assert definition.user_managed
    environment.save_to_directory(tmp_path / "saved")
    assert document(tmp_path / "saved")["docker"]["buildContext"] == context
    context["locationType"] = "storageAccount"
    stored = Environment.load_from_directory(write(folder, {"name": "x", "docker": {"buildContext": context}}))
    with pytest.raises(DefinitionError, match=r"storageAccount.*download"):
        stored.definition()


def test_a_local_build_context_reads_back(tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM x")
    context = DockerBuildContext.from_local_directory(None, tmp_path / "context")
    environment = Environment.from_docker_build_context("ours", context)
    environment.save_to_directory(tmp_path / "saved")
    assert Environment.load_from_directory(tmp_path / "saved").definition() == environment.definition()
    assert not (tmp_path / "saved" / "conda_dependencies.yml").exists()


def test_what_sdk_v1_has_no_key_for_is_saved_under_one_of_our_own(tmp_path: Path) -> None:
    environment = Environment.from_dockerfile("ours", "FROM python:3.12")
    environment.description, environment.tags = "what we train with", {"team": "vision"}
    environment.docker.build_arguments = {"A": "1"}
    environment.docker.build_secrets = {"token": SecretValue(PLANTED, SecretReference.parse("secret:token"))}
    environment.python.user_managed_dependencies = False
    environment.python.compile_bytecode = False
    environment.save_to_directory(tmp_path / "saved")
    assert document(tmp_path / "saved")["prefectEnvironments"] == {
        "description": "what we train with",
        "tags": {"team": "vision"},
        "buildArguments": {"A": "1"},
        "buildSecrets": {"token": "secret:token"},
        "compileBytecode": False,
    }
    assert Environment.load_from_directory(tmp_path / "saved").definition() == environment.definition()


def test_constraints_are_saved_beside_the_conda_file(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("pandas\n-c limits.txt\n")
    (tmp_path / "limits.txt").write_text("numpy<3\n")
    environment = Environment.from_pip_requirements("ours", tmp_path / "requirements.txt")
    for place in ("first", "second"):
        environment.save_to_directory(tmp_path / place)
        assert (tmp_path / place / "constraints.txt").read_text() == "numpy<3\n"
        environment = Environment.load_from_directory(tmp_path / place)
        assert environment.definition().constraints == ("numpy<3",)
    CondaDependencies(tmp_path / "second" / "conda_dependencies.yml").requirements()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"python": {"userManagedDependencies": "false"}},
            "python.userManagedDependencies is the text 'false'.*quotes",
        ),
        ({"python": {"userManagedDependencies": 1}}, "python.userManagedDependencies is a number"),
        ({"python": []}, "python is a list; expected an object"),
        ({"docker": {"baseImage": ["a", "b"]}}, "docker.baseImage is a list; expected text"),
        ({"docker": {"baseImage": 5}}, "docker.baseImage is a number"),
        ({"docker": {"baseImage": "a", "baseDockerfile": "FROM b"}}, "docker.baseImage stands beside another base"),
        ({"environmentVariables": {"A": 1.10}}, "environmentVariables.A is no text"),
        ({"environmentVariables": {"A": True}}, "environmentVariables.A is no text"),
        ({"environmentVariables": ["A"]}, "environmentVariables is a list"),
        ({"name": "a b"}, "name is not allowed"),
        ({"name": 5}, "name is a number"),
        ({"prefectEnvironments": {"tags": {"a": 1}}}, "prefectEnvironments.tags has values that are no text"),
    ],
)
def test_wrong_types_are_refused_by_file_and_key(given: Any, said: str, folder: Path) -> None:
    with pytest.raises(SpecificationError, match=rf"{ENVIRONMENT}: {said}"):
        Environment.load_from_directory(write(folder, {"name": "ours"} | given))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "a",\n "python": {]}', "json:2: this is not JSON"),
        ('{"name": "a", "name": "b"}', "'name' is there twice"),
        ("[1]", "json:1: a JSON object is expected"),
        ("[" * 100_000, "nested too deeply"),
        ("", "json:1: this is not JSON"),
    ],
)
def test_a_file_that_is_no_object_is_refused(text: str, said: str, folder: Path) -> None:
    (folder / ENVIRONMENT).write_text(text)
    with pytest.raises(SpecificationError, match=said):
        Environment.load_from_directory(folder)


def test_a_missing_folder_and_missing_files_are_told(folder: Path) -> None:
    with pytest.raises(SpecificationError, match=r"cannot read .*azureml_environment.json"):
        Environment.load_from_directory(folder / "none")
    write(folder, {"name": "ours", "python": {"condaDependenciesFile": "none.yml"}})
    with pytest.raises(SpecificationError, match=r"cannot read .*none.yml"):
        Environment.load_from_directory(folder)


def test_byte_order_marks_and_utf_16_are_read(folder: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (folder / ENVIRONMENT).write_bytes(json.dumps({"name": "ours"}).encode(encoding))
        assert Environment.load_from_directory(folder).name == "ours"


def test_numbers_and_nulls_among_variables_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, {"name": "ours", "environmentVariables": {"N": 2, "NONE": None, "A": "1"}})
    assert Environment.load_from_directory(folder).environment_variables == {"N": "2", "A": "1"}
    assert "environmentVariables.N is a number" in caplog.text
    assert "environmentVariables.NONE is null" in caplog.text


def test_a_missing_name_is_the_folders_and_a_reserved_one_needs_a_clone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Environment.load_from_directory(write(folder, {})).name == "given"
    found = Environment.load_from_directory(write(folder, {"name": "AzureML-Minimal"}))
    with pytest.raises(NameNotAllowed):
        found.definition()
    assert found.clone("mine").definition().name == "mine"
    assert len({line for line in caplog.messages if "name is " in line}) == 2


def test_conda_dependencies_inside_the_json_count(folder: Path) -> None:
    """Files that the service gave out hold them so."""
    inline = {"channels": ["conda-forge"], "dependencies": ["python=3.10", {"pip": ["pandas==2.0"]}]}
    write(folder, {"name": "ours", "python": {"condaDependencies": inline}})
    definition = Environment.load_from_directory(folder).definition()
    assert (definition.conda_dependencies, definition.requirements) == (("python=3.10",), ("pandas==2.0",))


def test_requirements_files_that_are_not_there_are_asked_for_when_it_is_defined(folder: Path) -> None:
    """SDK v1 saved `-r` lines as they were, without the file: such a folder loads."""
    write(folder, {"name": "ours"}, conda_dependencies_yml="dependencies:\n- pip:\n  - pandas\n  - -r more.txt\n")
    environment = Environment.load_from_directory(folder)
    with pytest.raises(RequirementsError, match=r"more.txt.*no such file"):
        environment.definition()
    (folder / "more.txt").write_text("numpy\n")
    assert environment.definition().requirements == ("numpy", "pandas")


def test_saving_needs_overwrite_where_something_is(tmp_path: Path) -> None:
    environment = Environment("ours")
    (tmp_path / "empty").mkdir()
    environment.save_to_directory(tmp_path / "empty")
    for kind in (FileExistsError, StorageError, AlreadyExists):
        with pytest.raises(kind, match="overwrite=True"):
            environment.save_to_directory(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        environment.save_to_directory(tmp_path / "file", overwrite=True)


def test_overwriting_keeps_files_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    Environment("ours").save_to_directory(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ENVIRONMENT, "conda_dependencies.yml", "notes.txt"]


def test_a_save_that_fails_half_way_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whichever file it fails: the old folder still loads as it was."""
    place = tmp_path / "saved"
    old = Environment.from_dockerfile("ours", "FROM python:3.12")
    old.python.user_managed_dependencies = False
    old.save_to_directory(place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    new = Environment("other")
    new.python.conda_dependencies = CondaDependencies.create(pip_packages=["pandas"])
    real = Path.replace
    for failing in ("conda_dependencies.yml", ENVIRONMENT):

        def broken(self: Path, target: Path, name: str = failing) -> Path:
            if Path(target).name == name and self.parent.name != "old":
                raise OSError(28, "No space left on device")
            return real(self, target)

        monkeypatch.setattr(Path, "replace", broken)
        with pytest.raises(StorageError, match="No space left"):
            new.save_to_directory(place, overwrite=True)
        monkeypatch.setattr(Path, "replace", real)
        assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    new.save_to_directory(place, overwrite=True)
    assert Environment.load_from_directory(place).definition() == new.definition()


def test_a_literal_password_is_never_written_and_a_reference_is(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One in a foreign file stays in the process; saving and defining say how to go on."""
    registry = {"address": "registry.example.com", "username": "ann", "password": PLANTED}
    write(folder, {"name": "ours", "docker": {"baseImage": "x", "baseImageRegistry": registry}})
    environment = Environment.load_from_directory(folder)
    assert environment.docker.base_image_registry.password == PLANTED
    for refused in (environment.definition, lambda: environment.save_to_directory(tmp_path / "saved")):
        with pytest.raises(DefinitionError, match="secret:NAME") as caught:
            refused()
        assert PLANTED not in str(caught.value)
    assert not (tmp_path / "saved").exists()
    assert "literal password" in caplog.text
    assert PLANTED not in caplog.text
    for password in ("secret:registry", SecretValue(PLANTED, SecretReference.parse("secret:registry"))):
        environment.docker.base_image_registry.password = password
        environment.save_to_directory(tmp_path / "saved", overwrite=True)
        assert document(tmp_path / "saved")["docker"]["baseImageRegistry"]["password"] == "secret:registry"
        assert PLANTED not in (tmp_path / "saved" / ENVIRONMENT).read_text()


def test_a_variable_that_looks_like_a_secret_needs_a_switch(tmp_path: Path) -> None:
    environment = Environment("ours")
    environment.environment_variables["API_TOKEN"] = PLANTED
    with pytest.raises(DefinitionError, match="API_TOKEN looks like a secret") as caught:
        environment.save_to_directory(tmp_path / "saved")
    assert PLANTED not in str(caught.value)
    environment.allow_literal_secrets = True
    environment.save_to_directory(tmp_path / "saved")
    assert Environment.load_from_directory(tmp_path / "saved").definition() == environment.definition()


FROM_STORE = SecretValue(PLANTED, SecretReference.parse("secret:registry"))


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("docker.build_secrets", {"token": PLANTED}),
        ("docker.build_arguments", {"DB_PASSWORD": PLANTED}),
        ("docker.build_arguments", {"VALUE": FROM_STORE}),
        ("docker.base_image", f"ann:{PLANTED}@registry.example.com/base:1"),
        ("docker.base_image_registry.address", f"https://ann:{PLANTED}@registry.example.com"),
        ("docker.build_context", f"https://ann:{PLANTED}@git.example.com/a.git#{'a' * 40}"),
        ("docker.build_context", f"https://storage.example.com/a.zip?sig={PLANTED}"),
        ("python.conda_dependencies.variables", {"VALUE": FROM_STORE}),
    ],
)
def test_nothing_secret_is_saved_wherever_it_was_put(change: str, value: Any, tmp_path: Path) -> None:
    """What a definition refuses is refused before a file is written; the message does not repeat it."""
    environment = Environment("ours")
    *sections, name = change.split(".")
    target: Any = environment
    for section in sections:
        target = getattr(target, section)
    if name == "variables":
        target.variables.update(value)
    else:
        setattr(target, name, value)
    with pytest.raises(DefinitionError) as caught:
        environment.save_to_directory(tmp_path / "saved")
    assert PLANTED not in str(caught.value)
    assert not (tmp_path / "saved").exists()


def test_a_value_from_a_store_is_saved_as_its_reference(tmp_path: Path) -> None:
    environment = Environment.from_dockerfile("ours", "FROM a\nRUN b\n")
    environment.docker.build_secrets["token"] = environment.tags["note"] = environment.description = FROM_STORE
    environment.save_to_directory(tmp_path / "saved")
    assert PLANTED not in "".join(path.read_text() for path in (tmp_path / "saved").iterdir())
    loaded = Environment.load_from_directory(tmp_path / "saved")
    assert loaded.docker.build_secrets == {"token": "secret:registry"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda values: (
        st.lists(values, max_size=2)
        | st.dictionaries(st.sampled_from([*FULL, *FULL["python"], *FULL["docker"]]), values, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, given: Any) -> None:
    folder = write(tmp_path_factory.mktemp("any"), given)
    logging.disable(logging.WARNING)
    try:
        Environment.load_from_directory(folder)
    except DefinitionError:
        pass
    finally:
        logging.disable(logging.NOTSET)
