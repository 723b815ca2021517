"""`EnvironmentDefinition`: what it refuses, its normal form, and that it is safe to store and to show as a form."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import (
    DefinitionError,
    NameNotAllowed,
    NotSupportedYet,
    RequirementsError,
    SecretError,
)
from prefect_environments.core.secrets import SecretReference, SecretValue

PLANTED = "hunter2-planted"
VALIDATORS: list[Callable[[dict[str, Any]], EnvironmentDefinition]] = [
    lambda fields: EnvironmentDefinition(**fields),
    EnvironmentDefinition.model_validate,
    pydantic.TypeAdapter(EnvironmentDefinition).validate_python,
]


def define(**fields: Any) -> EnvironmentDefinition:
    return EnvironmentDefinition(**{"name": "train", **fields})


def everything(error: BaseException | None) -> str:
    """All text that a traceback of the error would show."""
    texts = []
    while error is not None:
        texts.append(f"{error!r} {error}")
        error = error.__cause__ or error.__context__
    return " ".join(texts)


@pytest.mark.parametrize("validate", VALIDATORS)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "name: Field required"),
        ({"name": 7}, "name: Input should be a valid string"),
        ({"requirements": 7}, "requirements: Input should be a valid tuple"),
        ({"requirements": [7]}, "requirements must be text, got an item of type int"),
        ({"requirements": ["pandas"], "constraints": "numpy<2"}, "constraints: Input should be a valid tuple"),
        ({"requirements": ["pandas"], "pre": "perhaps"}, "pre: Input should be a valid boolean"),
        ({"base_image": ["python:3.12"]}, "base_image: Input should be a valid string"),
        ({"environment_variables": {"THREADS": 4}}, "environment_variables.THREADS: Input should be a valid string"),
        ({"tags": ["a"]}, "tags: Input should be a valid dictionary"),
        ({"base_imgae": "python:3.12"}, "base_imgae: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_type_or_an_unknown_field_is_our_error_by_every_way_in(
    validate: Callable[[dict[str, Any]], EnvironmentDefinition], fields: dict[str, Any], said: str
) -> None:
    """A `DefinitionError` is no `ValueError`, so pydantic lets it through as itself."""
    assert not issubclass(DefinitionError, ValueError)
    with pytest.raises(DefinitionError) as caught:
        validate(fields if fields == {} else {"name": "train", **fields})
    assert said in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "AzureML-x", "a" * 129])
def test_a_name_that_is_not_allowed_is_refused(name: str) -> None:
    with pytest.raises(NameNotAllowed):
        define(name=name)


@pytest.mark.parametrize("platform", ["linux", "windows/amd64", "linux/riscv64"])
def test_an_unknown_platform_is_refused_with_those_that_are_known(platform: str) -> None:
    with pytest.raises(DefinitionError, match="linux/amd64, linux/arm64"):
        define(platform=platform)


def test_several_platforms_are_refused_with_advice() -> None:
    with pytest.raises(NotSupportedYet, match="build each on its own"):
        define(platform="linux/amd64,linux/arm64")


@pytest.mark.parametrize(
    "fields",
    [
        {"base_image_username": "ann", "base_image_password": PLANTED},
        {"index_url": f"https://ann:{PLANTED}@packages.example.com/simple"},
        {"index_url": f"https://{PLANTED}@packages.example.com/simple"},
        {"extra_index_urls": [f"https://ann:{PLANTED}@packages.example.com/simple"]},
        {"find_links": [f"https://packages.example.com/?sig={PLANTED}"]},
        {"requirements": [f"--index-url https://ann:{PLANTED}@packages.example.com/simple"]},
        {"requirements": [f"lib @ https://ann:{PLANTED}@packages.example.com/lib-1.0-py3-none-any.whl"]},
        {"constraints": [f"lib @ git+https://ann:{PLANTED}@git.example.com/lib"]},
        {"base_image": f"https://ann:{PLANTED}@registry.example.com/python:3.12"},
        {"base_image": f"ann:{PLANTED}@registry.example.com/python@sha256:{'0' * 64}"},
        {"environment_variables": {"API_TOKEN": PLANTED}},
        {"environment_variables": {"DATABASE": f"postgresql://ann:{PLANTED}@db.example.com/x"}},
        {"environment_variables": {"A": f"@Microsoft.KeyVault({PLANTED})"}},
        {"base_image_username": "ann", "base_image_password": f"secret:{PLANTED}/"},
        {"unknown_password": PLANTED},
        {"base_image": [PLANTED]},
    ],
)
def test_a_literal_secret_is_refused_and_shown_nowhere(fields: dict[str, Any]) -> None:
    """Not in the message, and not in an error that hangs on it."""
    for validate in VALIDATORS:
        with pytest.raises((DefinitionError, SecretError)) as caught:
            validate({"name": "train", **fields})
        assert PLANTED not in everything(caught.value)


def test_what_pydantic_itself_refuses_shows_no_input() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        EnvironmentDefinition.model_validate_json(f'{{"name": "train", "base_image_password": "{PLANTED}')
    assert PLANTED not in everything(caught.value)


def test_a_user_name_without_a_password_is_refused_and_the_reverse() -> None:
    for lonely in ({"base_image_username": "ann"}, {"base_image_password": "secret:registry"}):
        with pytest.raises(DefinitionError, match="together or not at all"):
            define(**lonely)


def test_references_and_what_only_looks_like_a_secret_on_demand_are_taken() -> None:
    definition = define(
        base_image_username="ann",
        base_image_password="secret:registry",
        environment_variables={"API_TOKEN": "secret:api", "MAX_TOKENS": "64"},
    )
    assert definition.environment_variables["API_TOKEN"] == "secret:api"
    assert define(environment_variables={"API_TOKEN": "none-really"}, allow_literal_secrets=True)


def test_pasted_text_lists_and_options_among_the_lines_have_one_normal_form() -> None:
    pasted = define(
        requirements="""\ufeff# what we train with
            Scikit_Learn >= 1.5,  <2   # not 2
            --index-url https://packages.example.com/simple
            --extra-index-url https://more.example.com/simple
            --pre
            --only-binary Foo.Bar
            PANDAS[Performance]==2.0 ; python_version < '3.13'
            """.replace("\n", "\r\n")
    )
    listed = define(
        requirements=[
            'pandas[performance]==2.0; python_version < "3.13"',
            "scikit-learn<2,>=1.5",
            "pandas[performance]==2.0;python_version<'3.13'",
        ],
        index_url="https://packages.example.com/simple",
        extra_index_urls=["https://more.example.com/simple"],
        pre=True,
        only_binary=["foo-bar"],
    )
    assert pasted == listed
    assert pasted.requirements == ('pandas[performance]==2.0; python_version < "3.13"', "scikit-learn<2,>=1.5")


def test_options_of_lines_join_those_of_fields() -> None:
    definition = define(
        requirements=["--extra-index-url https://b.example.com/", "--pre", "-i https://lines.example.com/", "pip"],
        extra_index_urls=["https://a.example.com/", "https://b.example.com/"],
        index_url="https://field.example.com/",
        only_binary=["numpy"],
    )
    assert definition.extra_index_urls == ("https://a.example.com/", "https://b.example.com/")
    assert (definition.index_url, definition.pre, definition.only_binary) == (
        "https://lines.example.com/",
        True,
        ("numpy",),
    )


def test_a_field_set_to_no_stays_no_beside_requirements() -> None:
    """As a form or a JSON file may send it, in text."""
    assert define(requirements=["pandas"], pre="false").pre is False


@pytest.mark.parametrize("line", ["./wheels/lib.whl", "-r more.txt", "-c limits.txt", "--find-links ../wheels"])
def test_a_line_that_depends_on_a_folder_is_refused(line: str) -> None:
    """A definition has no folder; `Environment.from_pip_requirements` has the file's."""
    with pytest.raises(RequirementsError, match="without a folder"):
        define(requirements=[line])


def test_a_definition_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        define().name = "other"


def full(tmp_path: Path) -> EnvironmentDefinition:
    (tmp_path / "requirements.txt").write_text("numpy\n-f .\n./lib-1.0-py3-none-any.whl\n")
    (tmp_path / "lib-1.0-py3-none-any.whl").write_bytes(b"")
    environment = Environment.from_pip_requirements("train", tmp_path / "requirements.txt")
    environment.environment_variables |= {"OMP_NUM_THREADS": "4", "TOKEN": "secret:api"}
    environment.tags["team"] = "vision"
    return environment.definition().model_copy(update={"conda_channels": ("conda-forge",)})


def test_its_json_is_plain_and_reads_back_equal(tmp_path: Path) -> None:
    definition = full(tmp_path)
    text = definition.model_dump_json()
    assert EnvironmentDefinition.model_validate_json(text) == definition
    assert EnvironmentDefinition(**json.loads(text)) == definition
    assert EnvironmentDefinition(**definition.model_dump()) == definition


def test_an_environment_is_taken_where_a_definition_is_wanted(tmp_path: Path) -> None:
    environment = Environment("train")
    environment.docker.base_image = "registry.example.com/python:3.12"
    adapter = pydantic.TypeAdapter(EnvironmentDefinition)
    assert adapter.validate_python(environment) == environment.definition()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"base_image": "python:3.12", "dockerfile": "FROM a"}, "base_image and dockerfile are given"),
        ({"dockerfile": "FROM a", "build_context": "folder"}, "dockerfile and build_context are given"),
        ({"extends": "a:1", "base_image": "python:3.12"}, "base_image and extends are given"),
        ({"dockerfile": "FROM a", "dockerfile_path": "x"}, "dockerfile_path counts only with build_context"),
        ({"build_arguments": {"A": "1"}}, "build_arguments counts only with dockerfile or build_context"),
        ({"mirror": True}, "mirror counts only with user_managed"),
        ({"interpreter_path": "/usr/bin/python3"}, "interpreter_path counts only with user_managed"),
        ({"user_managed": True, "requirements": ["a"]}, "user_managed and requirements exclude each other"),
        ({"user_managed": True, "conda_dependencies": ["a"]}, "nothing is installed into a user-managed image"),
        ({"pylock": "lock-version = '1.0'", "requirements": ["a"]}, "a lock is used as it is"),
        ({"dockerfile": "docker/Dockerfile"}, "holds the text itself"),
        ({"extends": "a"}, "expected name:version"),
        ({"extends": "a:0"}, "expected name:version"),
        ({"extends": "a:" + "9" * 5000}, "expected name:version"),
        ({"extends": "a b:1"}, "a b"),
        ({"dockerfile": "FROM a", "build_secrets": {"t": "hunter2"}}, "literal value for 't'"),
        ({"dockerfile": "FROM a", "build_arguments": {"API_TOKEN": "hunter2"}}, "'API_TOKEN' looks like a secret"),
        ({"dockerfile": "FROM a", "build_arguments": {"A": "secret:a"}}, "'A' looks like a secret"),
        (
            {"dockerfile": "FROM a", "base_image_username": "ann", "base_image_password": "secret:a"},
            "base_image_registry",
        ),
        (
            {"extends": "a:1", "base_image_username": "ann", "base_image_password": "secret:a"},
            "the base image is that of the environment that is extended",
        ),
        ({"conda_channels": ["https://ann:hunter2@conda.example.com/team"]}, "password, token or parameter"),
        ({"conda_channels": ["https://conda.example.com/t/hunter2/team"]}, "password, token or parameter"),
        ({"conda_channels": ["https://conda.example.com/team?key=hunter2"]}, "password, token or parameter"),
        ({"conda_dependencies": ["https://ann:hunter2@conda.example.com/team::a"]}, "password, token or parameter"),
        ({"build_context": f"https://ann:hunter2@git.example.com/a.git#{'0' * 40}"}, "holds credentials"),
        ({"build_context": "https://git.example.com/a.git#main"}, "no full commit id"),
    ],
)
def test_what_would_be_left_out_silently_or_stored_in_clear_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(why)) as caught:
        define(**fields)
    assert "hunter2" not in str(caught.value)


def test_the_version_that_is_extended_is_read_as_a_number() -> None:
    assert define(extends="iris:007").base_version() == ("iris", 7)


def test_only_a_user_managed_image_that_is_not_copied_stays_where_it_is() -> None:
    assert define(user_managed=True, base_image="a:1").stays_where_it_is
    assert not define(user_managed=True, base_image="a:1", mirror=True).stays_where_it_is
    assert not define(user_managed=True, dockerfile="FROM a").stays_where_it_is
    assert not define(base_image="a:1").stays_where_it_is


def test_the_schema_makes_a_form_without_choices_of_type() -> None:
    """Prefect's form shows a plain input for one type; only the name must be filled in; every field says what it is.

    Requirements have two inputs: a text to paste into, which is in front, and rows."""
    schema = EnvironmentDefinition.model_json_schema()
    assert schema["required"] == ["name"]
    assert schema["additionalProperties"] is False
    assert "$defs" not in schema
    requirements = schema["properties"].pop("requirements")
    assert [found["type"] for found in requirements["anyOf"]] == ["string", "array"]
    assert requirements["default"] == "" and EnvironmentDefinition(name="a", requirements="").requirements == ()
    for name, field in schema["properties"].items():
        assert field["type"] in ("string", "boolean", "array", "object"), name
        assert field["description"].endswith((".", "…", "}.", "NAME.")) or name == "requirements", name
        assert field.get("items", {"type": "string"}) == {"type": "string"}, name


def test_hash_checking_mode_follows_from_one_hash() -> None:
    line = f"six==1.17.0 --hash=sha256:{'0' * 64}"
    assert EnvironmentDefinition(name="a", requirements=[line, "idna"]).require_hashes
    assert EnvironmentDefinition(name="a", requirements=["--require-hashes", "idna"]).require_hashes
    assert not EnvironmentDefinition(name="a", requirements=["idna"]).require_hashes


@pytest.mark.parametrize("name", [name for name in EnvironmentDefinition.model_fields if name != "name"])
def test_null_and_blanks_of_a_form_count_as_not_given(name: str) -> None:
    """The UI sends null for a field that was cleared, and a blank row for one that was added and left empty."""
    plain = define(base_image="python:3.12-slim")
    default = EnvironmentDefinition.model_fields[name].get_default(call_default_factory=True)
    blanks: list[Any] = [None]
    blanks += [["", " "]] if default == () else []
    blanks += ["", " "] if isinstance(default, str) and name not in ("base_image", "dockerfile", "pylock") else []
    for blank in blanks:
        if name == "base_image":
            assert define(base_image=blank) == define()
        elif name not in ("build_context", "dockerfile_path", "description") or blank != " ":
            assert define(**{"base_image": "python:3.12-slim", name: blank}) == plain, blank


def test_blanks_around_a_pasted_value_do_not_count() -> None:
    given = define(base_image=" python:3.12-slim\n", index_url=" https://packages.example.com/simple ")
    assert (given.base_image, given.index_url) == ("python:3.12-slim", "https://packages.example.com/simple")


def test_a_row_that_is_null_is_our_error() -> None:
    for name in ("requirements", "conda_dependencies", "constraints"):
        with pytest.raises(DefinitionError):
            define(**{name: [None]})


@pytest.mark.parametrize("field", ["environment_variables", "build_secrets", "build_arguments", "tags"])
@pytest.mark.parametrize("make", VALIDATORS)
def test_a_value_from_a_store_never_stands_in_a_definition(
    field: str, make: Callable[[dict[str, Any]], EnvironmentDefinition]
) -> None:
    """Its reference does, or it is refused: build arguments stay in the image's history."""
    secret = SecretValue(PLANTED, SecretReference.parse("secret:registry"))
    given = {"name": "train", "dockerfile": "FROM a\nRUN b\n", field: {"A": secret}}
    if field == "build_arguments":
        with pytest.raises(DefinitionError, match="Use build_secrets") as caught:
            make(given)
        assert PLANTED not in everything(caught.value)
    else:
        assert make(given).model_dump()[field] == {"A": "secret:registry"}
