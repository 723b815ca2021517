"""`Environment`: the attribute paths of Azure ML's SDK v1, and its frozen snapshot."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefect_environments.core.conda_dependencies import CondaDependencies
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import (
    DefinitionError,
    NameNotAllowed,
    NotSupportedYet,
    RequirementsError,
    SpecificationError,
)
from prefect_environments.core.formats.requirements import Requirements
from prefect_environments.core.secrets import SecretReference, SecretValue
from prefect_environments.core.sections import DockerBuildContext

CONDA_FILE = """\
name: ours
channels: [pytorch, nodefaults]
dependencies:
  - python=3.7.*
  - pytorch::pytorch   >=2
  - pip:
      - mlflow==2.9
      - --extra-index-url https://packages.example.com/simple
variables:
  LEVEL: 3.10
"""
PLANTED = "hunter2-planted"
SECRET = SecretValue(PLANTED, SecretReference.parse("secret:registry"))


def test_the_attribute_paths_of_v1_are_there_and_reach_the_definition() -> None:
    environment = Environment("train")
    environment.docker.base_image = "python:3.12-slim"
    environment.docker.base_image_registry.address = "registry.example.com"
    environment.docker.base_image_registry.username = "ann"
    environment.docker.base_image_registry.password = "secret:registry"
    environment.python.user_managed_dependencies = True
    environment.python.interpreter_path = "/usr/bin/python3"
    environment.environment_variables["OMP_NUM_THREADS"] = "4"
    environment.tags["team"] = "vision"
    environment.description = "what we train with"
    definition = environment.definition()
    assert definition == EnvironmentDefinition(
        name="train",
        description="what we train with",
        tags={"team": "vision"},
        environment_variables={"OMP_NUM_THREADS": "4"},
        base_image="registry.example.com/python:3.12-slim",
        base_image_username="ann",
        base_image_password="secret:registry",
        user_managed=True,
        interpreter_path="/usr/bin/python3",
    )


@pytest.mark.parametrize(
    ("section", "misspelt"),
    [("", "dockr"), ("docker", "base_img"), ("python", "interpreter"), ("docker.base_image_registry", "user")],
)
def test_a_misspelt_attribute_is_an_error_and_not_silently_kept(section: str, misspelt: str) -> None:
    target: Any = Environment("train")
    for name in filter(None, section.split(".")):
        target = getattr(target, name)
    with pytest.raises(AttributeError):
        setattr(target, misspelt, "x")


def test_a_definition_is_a_snapshot() -> None:
    """Later changes of the environment, of its dictionaries too, do not reach it."""
    environment = Environment("train")
    before = environment.definition()
    environment.environment_variables["A"] = "1"
    environment.tags["a"] = "1"
    environment.docker.base_image = "python:3.12"
    assert before == Environment("train").definition()
    assert environment.definition() != before


def test_a_requirements_file_is_read_with_its_options_and_nested_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.txt").write_text("NumPy>=2\n-c limits.txt\n")
    (tmp_path / "sub" / "limits.txt").write_text("numpy<3\n")
    (tmp_path / "requirements.txt").write_text(
        "--index-url https://packages.example.com/simple\n-r sub/more.txt\npandas  # frames\n--find-links wheels\n"
    )
    (tmp_path / "wheels").mkdir()
    definition = Environment.from_pip_requirements("train", tmp_path / "requirements.txt").definition()
    assert definition.requirements == ("numpy>=2", "pandas")
    assert definition.constraints == ("numpy<3",)
    assert definition.index_url == "https://packages.example.com/simple"
    assert definition.find_links == ((tmp_path / "wheels").as_uri(),)


def test_a_pip_version_is_one_requirement_more(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("pandas\n")
    pinned = Environment.from_pip_requirements("train", str(tmp_path / "requirements.txt"), pip_version="25.0")
    assert pinned.definition().requirements == ("pandas", "pip==25.0")
    with pytest.raises(RequirementsError, match="pip_version"):
        Environment.from_pip_requirements("train", tmp_path / "requirements.txt", pip_version="newest")


def test_a_missing_file_and_a_name_that_is_not_allowed_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RequirementsError, match=r"no such file.*none\.txt"):
        Environment.from_pip_requirements("train", tmp_path / "none.txt")
    with pytest.raises(NameNotAllowed):
        Environment("a b")
    environment = Environment("train")
    environment.name = "a b"
    with pytest.raises(NameNotAllowed):
        environment.definition()


def test_a_secret_value_keeps_its_reference_and_never_its_value() -> None:
    environment = Environment("train")
    environment.docker.base_image_registry.username = "ann"
    environment.docker.base_image_registry.password = SECRET
    environment.environment_variables["TOKEN"] = SECRET
    definition = environment.definition()
    assert definition.base_image_password == "secret:registry"
    assert definition.environment_variables == {"TOKEN": "secret:registry"}
    assert PLANTED not in definition.model_dump_json() + repr(definition) + str(dict(environment))


def test_a_literal_registry_password_is_refused_with_advice_and_not_shown() -> None:
    environment = Environment("train")
    environment.docker.base_image_registry.username = "ann"
    environment.docker.base_image_registry.password = PLANTED
    with pytest.raises(DefinitionError, match=r'literal value.*"secret:NAME"') as caught:
        environment.definition()
    assert PLANTED not in repr(caught.value)


def test_a_repr_shows_no_secret() -> None:
    environment = Environment("train")
    environment.docker.base_image_registry.password = PLANTED
    environment.environment_variables["TOKEN"] = SECRET
    shown = f"{environment!r} {environment.docker!r} {environment.python!r} {environment.environment_variables!r}"
    assert "train" in shown
    assert PLANTED not in shown


def test_a_dictionary_of_it_is_its_stored_form() -> None:
    """Prefect stores a flow's parameters so; the definition reads it back."""
    environment = Environment("train")
    environment.docker.base_image = "python:3.12"
    stored = json.loads(json.dumps(dict(environment)))
    assert EnvironmentDefinition(**stored) == environment.definition()


@pytest.mark.parametrize(
    ("image", "address", "reference"),
    [
        ("python:3.12", None, "python:3.12"),
        ("python:3.12", "registry.example.com", "registry.example.com/python:3.12"),
        ("/team/python:3.12", "https://registry.example.com/", "registry.example.com/team/python:3.12"),
        ("registry.example.com/python:3.12", "registry.example.com", "registry.example.com/python:3.12"),
        (None, "registry.example.com", ""),
    ],
)
def test_a_base_image_is_joined_to_its_registrys_address(
    image: str | None, address: str | None, reference: str
) -> None:
    environment = Environment("train")
    environment.docker.base_image = image
    environment.docker.base_image_registry.address = address
    assert environment.definition().base_image == reference


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("docker.base_image", ("python:3.12",), "docker.base_image must be text, got tuple.*comma"),
        ("docker.base_image_registry.address", ("registry.example.com",), "address must be text, got tuple.*comma"),
        ("docker.base_image_registry.password", ("secret:x",), "text, got tuple"),
        ("docker.base_dockerfile", ("FROM x",), "dockerfile: Input should be a valid string"),
        ("environment_variables", {"THREADS": 4}, "text, got int; quote the value"),
        ("environment_variables", {"THREADS": ("4",)}, "text, got tuple"),
    ],
)
def test_a_wrong_type_such_as_a_stray_comma_makes_is_told(path: str, value: Any, said: str) -> None:
    environment: Any = Environment("train")
    environment.docker.base_image = "python:3.12"
    *sections, name = path.split(".")
    target = environment
    for section in sections:
        target = getattr(target, section)
    setattr(target, name, value)
    with pytest.raises(DefinitionError, match=said):
        environment.definition()


def test_the_package_hands_its_names_on_lazily() -> None:
    """Each name of the top level is there, in `dir`, and loads no more than it needs."""
    code = """
import sys, prefect_environments as p
assert set(p.__all__) <= set(dir(p))
assert p.Environment.__name__ == "Environment" and "prefect" not in sys.modules
assert all(getattr(p, name).__name__ == name for name in p.__all__) and "prefect" in sys.modules
try:
    p.Nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout == "module 'prefect_environments' has no attribute 'Nothing'\n", done.stderr


def test_every_constructor_of_v1_gives_the_kind_of_environment_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("pandas\n")
    (tmp_path / "environment.yml").write_text(CONDA_FILE)
    (tmp_path / "Dockerfile").write_text("FROM python:3.12\n")
    registry = SimpleNamespace(address="registry.example.com", username="ann", password="secret:registry")
    conda = Environment.from_conda_specification("train", tmp_path / "environment.yml").definition()
    assert conda.conda_channels == ("pytorch", "nodefaults")
    assert conda.conda_dependencies == ("python=3.7.*", "pytorch::pytorch >=2")
    assert (conda.requirements, conda.extra_index_urls) == (("mlflow==2.9",), ("https://packages.example.com/simple",))
    assert conda.environment_variables == {"LEVEL": "3.10"}

    image = Environment.from_docker_image("train", "/team/python:3.12", registry).definition()
    assert (image.base_image, image.base_image_username, image.user_managed) == (
        "registry.example.com/team/python:3.12",
        "ann",
        True,
    )
    pip = Environment.from_docker_image("train", "python:3.12", pip_requirements=tmp_path / "requirements.txt")
    assert (pip.definition().requirements, pip.definition().user_managed) == (("pandas",), False)
    file = Environment.from_dockerfile("train", tmp_path / "Dockerfile").definition()
    assert (file.dockerfile, file.base_image, file.user_managed) == ("FROM python:3.12\n", "", True)
    text = Environment.from_dockerfile("train", "FROM python:3.12", tmp_path / "environment.yml").definition()
    assert (text.dockerfile, text.conda_dependencies) == ("FROM python:3.12", conda.conda_dependencies)
    context = DockerBuildContext.from_local_directory(None, tmp_path)
    built = Environment.from_docker_build_context("train", context).definition()
    assert (built.build_context, built.dockerfile_path, built.user_managed) == (str(tmp_path), "", True)
    git = DockerBuildContext.from_git(f"https://git.example.com/team/app#{'a' * 40}:docker", "sub/Dockerfile")
    assert Environment.from_docker_build_context("train", git).definition().dockerfile_path == "sub/Dockerfile"


def test_a_conda_file_and_requirements_together_are_refused(tmp_path: Path) -> None:
    for make in (Environment.from_docker_image, Environment.from_dockerfile):
        with pytest.raises(DefinitionError, match="both given"):
            make("train", "FROM x", conda_specification="a.yml", pip_requirements="b.txt")


def test_the_last_of_image_dockerfile_and_context_wins_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = Environment("train")
    environment.docker.base_image = "python:3.12"
    with pytest.warns(UserWarning, match="base_dockerfile replaces docker.base_image"):
        environment.docker.base_dockerfile = "FROM python:3.12"
    with pytest.warns(UserWarning, match="build_context replaces docker.base_dockerfile"):
        environment.docker.build_context = tmp_path
    assert environment.definition().build_context == str(tmp_path)
    with pytest.warns(UserWarning, match="base_image replaces docker.build_context"):
        environment.docker.base_image = "python:3.11"
    definition = environment.definition()
    assert (definition.base_image, definition.dockerfile, definition.build_context) == ("python:3.11", "", "")
    assert len({record.getMessage() for record in caplog.records}) == 3
    environment.docker.base_dockerfile = None
    assert environment.docker.base_image == "python:3.11"


def test_packages_added_to_an_environment_of_a_requirements_file_join_it(tmp_path: Path) -> None:
    """As in SDK v1, where conda_dependencies holds the file's packages; to assign others would lose them."""
    (tmp_path / "requirements.txt").write_text("pandas\n-c limits.txt\n")
    (tmp_path / "limits.txt").write_text("numpy<3\n")
    environment = Environment.from_pip_requirements("train", tmp_path / "requirements.txt")
    conda = environment.python.conda_dependencies
    assert conda is not None
    assert conda.pip_packages == ("pandas",)
    conda.add_pip_package("pyyaml")
    definition = environment.definition()
    assert (definition.requirements, definition.constraints) == (("pandas", "pyyaml"), ("numpy<3",))
    with pytest.raises(DefinitionError, match="replace them unseen"):
        environment.python.conda_dependencies = CondaDependencies()


def test_requirements_cannot_replace_conda_dependencies_unseen_either(tmp_path: Path) -> None:
    environment = Environment("train")
    environment.python.conda_dependencies = CondaDependencies.create(pip_packages=["pandas"])
    with pytest.raises(DefinitionError, match="set_pip_requirements"):
        environment.python.requirements = Requirements(("numpy",))
    for wrong in (["pandas"], "pandas"):
        with pytest.raises(DefinitionError, match=r"from_pip_requirements read, got .*EnvironmentDefinition"):
            environment.python.requirements = wrong  # type: ignore[assignment]
        with pytest.raises(DefinitionError, match=r"is a CondaDependencies, got .*create"):
            environment.python.conda_dependencies = wrong  # type: ignore[assignment]


def test_a_conda_dependencies_file_is_read_when_it_is_set(tmp_path: Path) -> None:
    (tmp_path / "environment.yml").write_text(CONDA_FILE)
    environment = Environment("train")
    environment.python.conda_dependencies_file = str(tmp_path / "environment.yml")
    assert environment.definition().conda_dependencies == ("python=3.7.*", "pytorch::pytorch >=2")
    with pytest.raises(SpecificationError, match="No such file"):
        environment.python.conda_dependencies_file = str(tmp_path / "none.yml")


def test_a_variable_of_the_conda_file_gives_way_to_one_that_is_set_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "environment.yml").write_text(CONDA_FILE)
    environment = Environment.from_conda_specification("train", tmp_path / "environment.yml")
    environment.environment_variables["LEVEL"] = "4"
    with pytest.warns(UserWarning, match="LEVEL"):
        assert environment.definition().environment_variables == {"LEVEL": "4"}


def test_an_interpreter_path_counts_for_user_managed_environments_only() -> None:
    environment = Environment("train")
    environment.python.interpreter_path = "/usr/bin/python3"
    with pytest.warns(UserWarning, match="interpreter_path"):
        assert environment.definition().interpreter_path == ""
    environment.python.user_managed_dependencies = True
    assert environment.definition().interpreter_path == "/usr/bin/python3"
    environment.python.interpreter_path = "python"  # SDK v1's default
    assert environment.definition().interpreter_path == ""


def test_user_managed_environments_install_nothing_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    environment = Environment("train")
    environment.python.user_managed_dependencies = True
    assert environment.definition().requirements == ()
    assert not caplog.records
    environment.python.conda_dependencies = CondaDependencies.create(pip_packages=["pandas"])
    assert environment.definition().requirements == ()
    assert "conda_dependencies are ignored" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("enabled", True), ("arguments", ["--cap-add", "X"]), ("shared_volumes", False), ("shm_size", "8g")],
)
def test_settings_of_v1_for_running_containers_are_kept_and_told_to_have_no_effect(
    name: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    environment = Environment("train")
    with pytest.warns(UserWarning, match=f"docker.{name} has no effect"):
        setattr(environment.docker, name, value)
    assert getattr(environment.docker, name) == value
    caplog.clear()
    assert environment.definition() == Environment("train").definition()
    assert f"docker.{name} have no effect" in caplog.text


def test_sections_of_other_engines_are_kept_and_told_to_be_ignored(caplog: pytest.LogCaptureFixture) -> None:
    environment = Environment("train")
    environment.spark = {"packages": [], "precachePackages": True}
    environment.definition()
    assert not caplog.records
    environment.r = {"rVersion": "4.0"}
    assert environment.definition() == Environment("train").definition()
    assert "r have no effect" in caplog.text


def test_a_base_conda_environment_is_refused_and_not_left_out_silently() -> None:
    environment = Environment("train")
    environment.python.base_conda_environment = "base"
    with pytest.raises(NotSupportedYet, match="interpreter_path"):
        environment.definition()


@pytest.mark.parametrize("platform", ["linux/arm64", SimpleNamespace(os="Linux", architecture="arm64")])
def test_a_platform_is_text_or_an_object_of_v1(platform: Any) -> None:
    environment = Environment("train")
    assert environment.docker.platform == "linux/amd64"
    environment.docker.platform = platform
    assert environment.definition().platform == "linux/arm64"
    environment.docker.platform.architecture = "amd64"
    assert environment.definition().platform == "linux/amd64"
    assert str(environment.docker.platform) == "linux/amd64"
    for wrong in ("arm64", 5):
        with pytest.raises(DefinitionError, match="platform"):
            environment.docker.platform = wrong


def test_the_credentials_of_a_dockerfiles_registry_go_to_that_registry_only() -> None:
    environment = Environment.from_dockerfile("train", "FROM registry.example.com/base")
    environment.docker.base_image_registry = SimpleNamespace(
        address="https://registry.example.com/", username="ann", password="secret:registry"
    )
    definition = environment.definition()
    assert (definition.base_image_registry, definition.base_image_username) == ("registry.example.com", "ann")


def test_a_clone_has_another_name_and_is_not_reached_by_later_changes() -> None:
    environment = Environment("train")
    environment.environment_variables["TOKEN"] = SECRET
    environment.python.conda_dependencies = CondaDependencies.create(pip_packages=["pandas"])
    other = environment.clone("other")
    environment.python.conda_dependencies.add_pip_package("numpy")
    environment.docker.base_image = "python:3.12"
    assert (other.name, other.version) == ("other", None)
    assert other.definition().requirements == ("pandas",)
    assert other.definition().environment_variables == {"TOKEN": "secret:registry"}
    with pytest.raises(NameNotAllowed):
        environment.clone("a b")


COMMIT = f"https://git.example.com/team/app#{'a' * 40}"
DEFINITIONS: list[dict[str, Any]] = [
    {"base_image": "python:3.12", "requirements": ("numpy>=2", "pandas"), "constraints": ("numpy<3",)},
    {"description": "d", "tags": {"team": "vision"}, "environment_variables": {"A": "1"}, "platform": "linux/arm64"},
    {"index_url": "https://a.example.com/s", "extra_index_urls": ("https://b.example.com/s",), "pre": True},
    {"no_index": True, "find_links": ("file:///srv/my%20wheels",), "only_binary": ("numpy", "pandas")},
    {"requirements": ("numpy==2.0",), "require_hashes": True, "allow_source_builds": True, "compile_bytecode": True},
    {"conda_dependencies": ("python=3.7.*", "numpy"), "conda_channels": ("pytorch",), "requirements": ("pandas",)},
    {"conda_dependencies": ("python=3.11",)},
    {"dockerfile": "FROM x", "build_arguments": {"A": "1"}, "build_target": "t", "build_secrets": {"s": "secret:x"}},
    {"build_context": COMMIT, "dockerfile_path": "sub/Dockerfile", "user_managed": True, "mirror": True},
    {"base_image": "x", "base_image_username": "ann", "base_image_password": "secret:x", "user_managed": True},
    {"dockerfile": "FROM x", "base_image_registry": "r.example.com", "base_image_username": "ann"}
    | {"base_image_password": "secret:x"},
    {"user_managed": True, "interpreter_path": "/usr/bin/python3"},
    {"extends": "base:7", "requirements": ("numpy",)},
    {"environment_variables": {"API_TOKEN": "x"}, "allow_literal_secrets": True},
    {"pylock": 'lock-version = "1.0"\ncreated-by = "x"\npackages = []\n', "requires_python": ">=3.11"},
]


@pytest.mark.parametrize("fields", DEFINITIONS, ids="-".join)
def test_the_way_back_from_a_definition_gives_an_equal_one(fields: dict[str, Any], tmp_path: Path) -> None:
    """Also by way of a saved folder: no field is lost."""
    definition = EnvironmentDefinition(name="train", **fields)
    environment = Environment.from_definition(definition)
    assert environment.definition() == definition
    environment.save_to_directory(tmp_path / "saved")
    assert Environment.load_from_directory(tmp_path / "saved").definition() == definition


def test_every_field_of_a_definition_has_its_way_back() -> None:
    """A field that is added later and not converted is noticed here: it is in no example above, or changes."""
    seen = {"name", *(field for fields in DEFINITIONS for field in fields)}
    assert seen == set(EnvironmentDefinition.model_fields)


def test_a_misspelt_attribute_names_the_nearest_one() -> None:
    environment: Any = Environment("train")
    with pytest.raises(AttributeError, match="did you mean 'base_image'"):
        environment.docker.base_imge = "python:3.12"
    with pytest.raises(AttributeError, match="cannot be set"):
        environment.version = 3


def test_an_extension_names_its_base_and_what_is_added() -> None:
    environment = Environment.extend("base-env", version=7, pip=["pandas>=2", "PyYAML"], conda=["libgomp"])
    definition = environment.definition()
    assert (definition.name, definition.extends) == ("base-env-extended", "base-env:7")
    assert definition.requirements == ("pandas>=2", "pyyaml")
    assert definition.conda_dependencies == ("libgomp",)
    assert Environment.extend("base-env", 7, name="mine").definition().name == "mine"
    with pytest.raises(DefinitionError, match="expected name:version"):
        Environment.extend("base-env", version=0)


def test_a_lock_and_a_project_are_read_from_their_files(tmp_path: Path) -> None:
    wheel = f'{{url = "https://files.example.com/a-1-py3-none-any.whl", hashes = {{sha256 = "{"a" * 64}"}}}}'
    (tmp_path / "pylock.toml").write_text(
        f'lock-version = "1.0"\n[[packages]]\nname = "a"\nversion = "1"\nwheels = [{wheel}]\n'
    )
    definition = Environment.from_pylock("locked", tmp_path / "pylock.toml").definition()
    assert "a-1-py3-none-any.whl" in definition.pylock and not definition.requirements
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "p"\nrequires-python = ">=3.11"\ndependencies = ["pandas"]\n'
        '[dependency-groups]\nx = ["six"]\n'
    )
    definition = Environment.from_pyproject("project", tmp_path, groups=["x"]).definition()
    assert (definition.requirements, definition.requires_python) == (("pandas", "six"), ">=3.11")


def test_none_counts_as_nothing_and_other_types_are_our_error() -> None:
    """Scripts reset by `None`; a number says which value to quote."""
    environment = Environment("train")
    environment.environment_variables = None  # type: ignore[assignment]
    environment.tags = environment.description = None  # type: ignore[assignment]
    environment.docker.build_arguments = environment.docker.build_secrets = None  # type: ignore[assignment]
    assert environment.definition() == EnvironmentDefinition(name="train")
    environment.environment_variables = ["A=1"]  # type: ignore[assignment]
    with pytest.raises(DefinitionError, match="environment_variables is a dictionary of text by name, got list"):
        environment.definition()


def test_a_build_argument_from_a_store_is_refused_and_never_shown() -> None:
    environment = Environment.from_dockerfile("train", "FROM a\nRUN b\n")
    environment.docker.build_arguments["VALUE"] = SECRET
    with pytest.raises(DefinitionError, match="build_secrets") as caught:
        environment.definition()
    assert PLANTED not in str(caught.value)


def test_credentials_in_an_address_are_not_in_what_is_printed() -> None:
    """They are refused when it is defined; a notebook prints it before."""
    environment = Environment("train")
    environment.docker.base_image = f"ann:{PLANTED}@registry.example.com/base:1"
    assert "registry.example.com/base:1" in repr(environment)
    assert PLANTED not in repr(environment) + repr(environment.docker)
    environment.docker.base_image = None
    environment.docker.build_context = f"https://ann:{PLANTED}@git.example.com/a.git#{'a' * 40}"
    assert "git.example.com" in repr(environment.docker) and PLANTED not in repr(environment.docker)
