"""The checks: each row that Azure ML's service documents, and what differs here. No network."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.checks import Finding, Sections, check, check_environment
from prefect_environments.core.checks.docker import DOCKERFILE_LIMIT, DOCKERFILE_LONG
from prefect_environments.core.checks.support import PYTHON_END_OF_LIFE, UBUNTU_END_OF_SUPPORT
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment

TODAY = date(2026, 1, 15)
IMAGE = "registry.example.com/base/python:3.12"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLANTED = "hunter2-planted"
ONLY_HERE = "this works here, but not in Azure ML"

SOUND: dict[str, Any] = {
    "name": "train",
    "base_image": IMAGE,
    "conda_channels": ("conda-forge",),
    "conda_dependencies": ("python=3.12", "pip=25.0"),
    "requirements": ("pandas==2.3.0",),
}


def found(today: date = TODAY, /, **changes: Any) -> tuple[Finding, ...]:
    """The findings about a sound definition with some changes; `None` takes a field away."""
    given = {name: value for name, value in (SOUND | changes).items() if value is not None}
    return check(given, today=today)


def only(findings: tuple[Finding, ...], level: str, field: str, said: str) -> Finding:
    """The one finding, which has this level, field and text."""
    (finding,) = findings
    assert (finding.level, finding.field) == (level, field), finding
    assert said in finding.message, finding
    assert finding.advice
    return finding


def test_a_sound_definition_has_no_findings() -> None:
    assert check(EnvironmentDefinition(**SOUND), today=TODAY) == ()


@pytest.mark.parametrize("name", ["Microsoft-x", "AzureML-x", "azureml.x"])
def test_reserved_names(name: str) -> None:
    only(found(name=name), "error", "name", "reserved")


def test_a_name_that_is_too_long() -> None:
    only(found(name="a" * 256), "error", "name", "1 to 128")


def test_no_image_dockerfile_or_context_is_the_workspaces_default_image_here() -> None:
    only(found(base_image=None), "warning", "base_image", ONLY_HERE)


def test_more_than_one_of_image_dockerfile_and_context() -> None:
    only(found(dockerfile=f"FROM {IMAGE}"), "error", "base_image", "an environment has one base")


@pytest.mark.parametrize("given", [{"base_image_username": "ann"}, {"base_image_password": "secret:x"}])
def test_a_registrys_user_name_without_password_or_the_reverse(given: dict[str, str]) -> None:
    only(found(**given), "error", "base_image_username", "given together or not at all")


def test_a_secret_for_the_base_images_registry_is_a_reference_here() -> None:
    findings = found(base_image_username="ann", base_image_password="secret:registry")
    only(findings, "warning", "base_image_password", ONLY_HERE)
    literal = found(base_image_username="ann", base_image_password=PLANTED)
    only(literal, "error", "base_image_password", "must be a secret reference")
    assert PLANTED not in str(literal)


def test_two_sets_of_credentials_for_a_registry() -> None:
    both = check(SOUND, sections=Sections(has_credentials=True, registry_identity={"clientId": "x"}), today=TODAY)
    only(both, "error", "docker.base_image_registry", "two sets of credentials")
    alone = check(SOUND, sections=Sections(registry_identity={"clientId": "x"}), today=TODAY)
    only(alone, "warning", "docker.base_image_registry", "no meaning here")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("enabled", True),
        ("arguments", ["--cap-add", "SYS_ADMIN"]),
        ("shared_volumes", False),
        ("gpu_support", True),
        ("shm_size", "8g"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_deprecated_docker_attributes(attribute: str, value: object) -> None:
    environment = sound_environment()
    setattr(environment.docker, attribute, value)
    only(check_environment(environment, today=TODAY), "warning", f"docker.{attribute}", "deprecated")


@pytest.mark.parametrize(("size", "level"), [(DOCKERFILE_LONG, ""), (DOCKERFILE_LONG + 1, "warning")])
def test_a_dockerfile_that_is_long_for_one_page_of_the_documentation(size: int, level: str, tmp_path: Path) -> None:
    text = f"FROM {IMAGE}\n".ljust(size, "#")
    (tmp_path / "Dockerfile").write_text(text)
    for given in ({"dockerfile": text}, {"build_context": str(tmp_path), **NOTHING_INSTALLED}):
        findings = found(base_image=None, **given)
        assert [finding.level for finding in findings] == [level] * bool(level)
        assert all("bytes" in finding.message and ONLY_HERE in finding.message for finding in findings)


NOTHING_INSTALLED: dict[str, Any] = {
    "conda_channels": None,
    "conda_dependencies": None,
    "requirements": None,
    "user_managed": True,
}


def test_a_dockerfile_that_is_too_long(tmp_path: Path) -> None:
    text = f"FROM {IMAGE}\n".ljust(DOCKERFILE_LIMIT + 1, "#")
    (tmp_path / "Dockerfile").write_text(text)
    for field, given in (("dockerfile", text), ("build_context", str(tmp_path))):
        findings = found(base_image=None, **NOTHING_INSTALLED, **{field: given})
        assert {(finding.level, finding.field) for finding in findings} == {("error", field)}


def test_a_dockerfile_that_is_none() -> None:
    only(found(base_image=None, dockerfile="RUN true\n"), "error", "dockerfile", "FROM")


@pytest.fixture
def context(tmp_path: Path) -> Iterator[dict[str, Any]]:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\n")
    yield {"base_image": None, "build_context": str(tmp_path), **NOTHING_INSTALLED}


def test_a_build_context_is_sound(context: dict[str, Any]) -> None:
    assert found(**context) == ()


def test_a_build_context_without_location() -> None:
    environment = Environment("train")
    sections = Sections(context_given=True)
    assert check_environment(environment, today=TODAY) != ()
    only(check(SOUND, sections=sections, today=TODAY), "error", "docker.build_context", "no location")


def test_a_folder_that_is_not_there(context: dict[str, Any]) -> None:
    only(found(**context | {"build_context": "/nowhere/at/all"}), "error", "build_context", "there is no folder")


def test_a_dockerfile_that_is_not_in_the_context(context: dict[str, Any]) -> None:
    only(found(**context, dockerfile_path="x/Dockerfile"), "error", "dockerfile_path", "no file 'x/Dockerfile'")
    Path(context["build_context"], "Dockerfile").unlink()
    only(found(**context), "error", "build_context", "no file 'Dockerfile'")


def test_what_azure_ml_refuses_beside_a_build_context(context: dict[str, Any]) -> None:
    beside = {name: SOUND[name] for name in ("conda_channels", "conda_dependencies", "requirements")}
    findings = found(**context | beside | {"user_managed": None, "environment_variables": {"A": "1"}})
    assert {finding.field for finding in findings} == {"environment_variables", "conda_dependencies", "requirements"}
    assert all(ONLY_HERE in finding.message for finding in findings)
    for section in ("r", "spark"):
        sections = Sections(others={section: {"packages": ["x"]}})
        given = {name: value for name, value in (SOUND | context).items() if value is not None}
        only(check(given, sections=sections, today=TODAY), "warning", section, "beside a build context")


def test_a_git_context_is_built_here_only(context: dict[str, Any]) -> None:
    url = f"https://git.example.com/team/images.git#{COMMIT}:train"
    only(found(**context | {"build_context": url}), "warning", "build_context", ONLY_HERE)


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.com/team/images.git",
        "https://git.example.com/team/images.git#main",
        f"https://ann:{PLANTED}@git.example.com/a.git#{COMMIT}",
        "https://x.blob.example.net/container/path",
        "https://",
        "ftp://files.example.com/a",
    ],
)
def test_an_invalid_context_url(context: dict[str, Any], url: str) -> None:
    findings = found(**context | {"build_context": url})
    assert {(finding.level, finding.field) for finding in findings} == {("error", "build_context")}
    assert PLANTED not in str(findings)


def test_an_unknown_location_type() -> None:
    sections = Sections(context_given=True, context_location="x", context_location_type="ftp")
    finding = only(check(SOUND, sections=sections, today=TODAY), "error", "docker.build_context.location_type", "'ftp'")
    assert "storageaccount" in finding.advice


@pytest.mark.parametrize(
    "path",
    [
        "azureml/base:0.1",
        "azureml/base-gpu:0.1",
        "azureml/base-lite:0.1",
        "azureml/o16n-base/python-slim:1",
        "azureml/intelmpi2018.3-ubuntu16.04:1",
        "azureml/intelmpi2018.3-cuda10.0-cudnn7-ubuntu16.04:1",
        "azureml/openmpi3.1.2-ubuntu18.04:1",
        "azureml/openmpi3.1.2-cuda10.2-cudnn8-ubuntu18.04:1",
        "azureml/openmpi4.1.0-cuda11.0.3-cudnn8-ubuntu18.04:1",
    ],
)
def test_deprecated_base_images(path: str) -> None:
    only(found(base_image=f"registry.example.com/{path}"), "warning", "base_image", "is deprecated")
    dockerfile = f"FROM registry.example.com/{path} AS base\nFROM base\n"
    only(found(base_image=None, dockerfile=dockerfile), "warning", "dockerfile", "is deprecated")


def test_a_base_image_whose_ubuntu_is_out_of_support() -> None:
    image = "registry.example.com/azureml/openmpi4.1.0-ubuntu22.04:2"
    assert found(base_image=image) == ()
    later = date(UBUNTU_END_OF_SUPPORT["22.04"].year + 1, 1, 1)
    only(
        found(later, base_image=image, conda_dependencies=("python=3.14", "pip=25.0")), "warning", "base_image", "22.04"
    )


@pytest.mark.parametrize(
    "base_image", ["registry.example.com/team/azureml/base:1", "registry.example.com/azureml/based:1"]
)
def test_other_images_are_not_taken_for_deprecated_ones(base_image: str) -> None:
    assert found(base_image=base_image) == ()


def test_a_base_image_without_tag_or_digest() -> None:
    only(found(base_image="registry.example.com/base/python"), "warning", "base_image", "neither tag nor digest")
    only(found(base_image=None, dockerfile="FROM python"), "warning", "dockerfile", "neither tag nor digest")
    assert found(base_image="registry.example.com/base/python@sha256:" + "a" * 64) == ()


def test_environment_variables_in_a_definition() -> None:
    only(found(environment_variables={"A": "1"}), "warning", "environment_variables", "set when a job runs")


@pytest.mark.parametrize("section", ["docker", "python"])
def test_a_section_that_is_missing(section: str) -> None:
    environment: Any = sound_environment()
    setattr(environment, section, None)
    only(check_environment(environment, today=TODAY), "error", section, f"the {section} section is missing")


@pytest.mark.parametrize("specs", [("pip=25.0",), ("python", "pip=25.0")])
def test_no_version_of_python(specs: tuple[str, ...]) -> None:
    findings = [f for f in found(conda_dependencies=specs) if "Python" in f.message]
    only(tuple(findings), "warning", "conda_dependencies", ONLY_HERE)


def test_more_than_one_version_of_python() -> None:
    findings = found(conda_dependencies=("python=3.11", "conda-forge::python=3.12", "pip=25.0"))
    only(findings, "error", "conda_dependencies", "2 times: python=3.11, conda-forge::python=3.12")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("python=3.8", "support of Python 3.8 ended on 2024-10-07"),
        ("python==3.7.10", "support of Python 3.7 ended"),
        ("python=3.7.*", "support of Python 3.7 ended"),
        ("python=3.7.10=h12debd9_4", "support of Python 3.7 ended"),
        ("python>=3.6,<3.9", "support of Python 3.8 ended"),
        ("python<=2.7.18", "support of Python 2.7 ended"),
    ],
)
def test_a_python_whose_support_ended(spec: str, said: str) -> None:
    finding = only(found(conda_dependencies=(spec, "pip=25.0")), "warning", "conda_dependencies", said)
    assert ONLY_HERE in finding.message


def test_a_python_whose_support_ends_soon() -> None:
    end = PYTHON_END_OF_LIFE["3.10"]
    specs = ("python=3.10", "pip=25.0")
    assert found(date(end.year, 3, 1), conda_dependencies=specs) == ()
    soon = only(found(end, conda_dependencies=specs), "warning", "conda_dependencies", "ends on")
    assert ONLY_HERE not in soon.message


@pytest.mark.parametrize("spec", ["python>=3.8", "python=3.12", "python>=3.9,<3.13", "python=3.20", "python=3.8|3.13"])
def test_a_python_that_may_be_a_supported_one_is_none_of_these(spec: str) -> None:
    assert not any("support" in finding.message for finding in found(conda_dependencies=(spec, "pip=25.0")))


@pytest.mark.parametrize("spec", ["python=abc", "python==3.x.y.", "python>=", "python=3..1"])
def test_a_version_of_python_that_cannot_be_read(spec: str) -> None:
    errors = [f for f in found(conda_dependencies=(spec, "pip=25.0")) if f.level == "error"]
    finding = only(tuple(errors), "error", "conda_dependencies", spec)
    assert "python=3.12" in finding.advice


@pytest.mark.parametrize("spec", ["numpy==1.x.y.", "numpy>=", "git+https://git.example.com/a"])
def test_malformed_conda_dependencies(spec: str) -> None:
    errors = [f for f in found(conda_dependencies=("python=3.12", "pip=25.0", spec)) if f.level == "error"]
    only(tuple(errors), "error", "conda_dependencies", spec)


def test_a_managed_environment_with_nothing_to_install() -> None:
    empty = dict.fromkeys(("conda_channels", "conda_dependencies", "requirements"))
    only(found(**empty), "warning", "conda_dependencies", ONLY_HERE)
    assert found(**NOTHING_INSTALLED) == ()


def test_no_channels() -> None:
    only(found(conda_channels=None), "warning", "conda_channels", "no channel")
    named = ("conda-forge::python=3.12", "conda-forge::pip=25.0")
    assert found(conda_channels=None, conda_dependencies=named) == ()


def test_a_base_conda_environment() -> None:
    environment = sound_environment()
    environment.python.base_conda_environment = "base"
    only(check_environment(environment, today=TODAY), "error", "python.base_conda_environment", "in place")


@pytest.mark.parametrize("spec", ["scipy", "scipy>=1.11", "scipy!=1.11.*"])
def test_an_unpinned_dependency(spec: str) -> None:
    specs = ("python=3.12", "pip=25.0", spec)
    only(found(conda_dependencies=specs), "warning", "conda_dependencies", "no version is pinned of scipy")
    requirement = spec.replace("1.11.*", "1.11.1")
    only(found(requirements=(requirement,)), "warning", "requirements", "no version is pinned of scipy")


def test_what_counts_as_pinned() -> None:
    conda = ("python=3.12", "pip=25.0", "a=1", "b==1.2", "c=1.2.*", "d=1=py_0", "e>=1,<2")
    pip = ("f==1", "g~=1.2", "h @ https://files.example.com/h-1-py3-none-any.whl", "i>=1,<2", "j===1")
    assert found(conda_dependencies=conda, requirements=pip) == ()


def test_many_unpinned_dependencies_are_one_finding() -> None:
    names = tuple(f"p{number:02}" for number in range(30))
    only(
        found(requirements=names),
        "warning",
        "requirements",
        "p00, p01, p02, p03, p04, p05, p06, p07, p08, p09 and 20 more",
    )


def test_a_pip_section_without_pip_as_conda_dependency() -> None:
    only(found(conda_dependencies=("python=3.12",)), "warning", "conda_dependencies", "pip is not among the conda")


def test_pip_without_a_version() -> None:
    only(found(conda_dependencies=("python=3.12", "pip")), "warning", "conda_dependencies", "pinned of pip")
    only(found(requirements=("pip", "pandas==2.3.0")), "warning", "requirements", "pinned of pip")


@pytest.mark.parametrize("section", ["r", "spark", "databricks"])
def test_sections_that_are_ignored(section: str) -> None:
    environment = sound_environment()
    setattr(environment, section, {"packages": [], "precachePackages": True})
    assert check_environment(environment, today=TODAY) == ()
    setattr(environment, section, {"packages": ["x"]})
    only(check_environment(environment, today=TODAY), "warning", section, "ignored here")


@pytest.mark.parametrize("given", [{"extends": "base:latest"}, {"extends": "base"}])
def test_a_reference_to_an_environment_needs_a_number(given: dict[str, Any]) -> None:
    finding = only(check({"name": "train", **given}, today=TODAY), "error", "extends", given["extends"])
    assert "name:version" in finding.advice


@pytest.mark.parametrize("image", ["azureml:sklearn:1", "azureml:sklearn:latest", "azureml:sklearn@latest"])
def test_a_reference_to_an_environment_of_azure_ml_is_no_image(image: str) -> None:
    finding = next(finding for finding in found(base_image=image) if finding.level == "error")
    assert finding.field == "base_image"
    assert ("NAME@latest" in finding.message) == (":latest" in image)


def sound_environment() -> Environment:
    environment = Environment("train")
    environment.docker.base_image = IMAGE
    conda: Any = environment.python.conda_dependencies
    conda.add_conda_package("python=3.12")
    conda.add_conda_package("pip=25.0")
    conda.add_pip_package("pandas==2.3.0")
    return environment


def test_a_v1_environment_is_checked_as_its_definition() -> None:
    environment = sound_environment()
    assert check_environment(environment, today=TODAY) == ()
    environment.docker.base_image = "registry.example.com/azureml/base:1"
    only(check_environment(environment, today=TODAY), "warning", "base_image", "deprecated")


def test_a_v1_environment_that_makes_no_definition_is_an_error_and_no_exception() -> None:
    environment = sound_environment()
    environment.docker.base_image_registry.username = "ann"
    environment.docker.base_image_registry.password = PLANTED
    environment.r = {"packages": ["x"]}
    findings = check_environment(environment, today=TODAY)
    assert {finding.level for finding in findings} == {"error", "warning"}
    assert PLANTED not in str(findings)


def test_errors_come_first_and_each_finding_reads_as_one_line() -> None:
    findings = found(conda_channels=None, conda_dependencies=("python=abc", "pip"))
    assert [finding.level for finding in findings] == ["error", "warning", "warning"]
    assert all(str(finding).startswith(f"{finding.level}: {finding.field}: ") for finding in findings)
    assert not any("\n" in str(finding) for finding in findings)
