"""`Environment`: the attribute paths of Azure ML's SDK v1, and its frozen snapshot."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import DefinitionError, NameNotAllowed, NotSupportedYet, RequirementsError
from prefect_environments.core.secrets import SecretReference, SecretValue

PLANTED = "hunter2-planted"
SECRET = SecretValue(PLANTED, SecretReference.parse("secret:registry"))


def test_the_attribute_paths_of_v1_are_there_and_reach_the_definition() -> None:
    environment = Environment("train")
    environment.docker.base_image = "python:3.12-slim"
    environment.docker.base_dockerfile = "FROM scratch"
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
        dockerfile="FROM scratch",
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
        ("python.requirements", ["pandas"], "from_pip_requirements read, got list; .*EnvironmentDefinition"),
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


def test_conda_dependencies_can_be_set_and_are_refused_by_name() -> None:
    env = Environment("train")
    env.python.conda_dependencies = ["python=3.11"]
    with pytest.raises(NotSupportedYet, match="conda_dependencies"):
        env.definition()
