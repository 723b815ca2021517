"""Defects of Azure ML's SDKs that our users must not meet, by their numbers in our list; each was seen there."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefect_environments import CondaDependencies, Environment
from prefect_environments.core.errors import DefinitionError, NameNotAllowed, SpecificationError

JSON = "azureml_environment.json"


def conda_file(folder: Path, *specs: str) -> Path:
    path = folder / "environment.yml"
    path.write_text("channels: [conda-forge]\ndependencies:\n" + "".join(f"- {spec}\n" for spec in specs))
    return path


def saved(folder: Path) -> Any:
    return json.loads((folder / JSON).read_text())


@pytest.mark.parametrize("mistyped", ["./no/such/Dockerfile", "Dockerfile.dev", "docker/FROM"])
def test_defect_01_a_mistyped_dockerfile_path_is_an_error_and_not_a_dockerfile(mistyped: str, tmp_path: Path) -> None:
    environment = Environment("train")
    for given in (mistyped, tmp_path / mistyped):
        with pytest.raises(SpecificationError, match="no Dockerfile is at"):
            environment.docker.base_dockerfile = given
        with pytest.raises(SpecificationError, match="no Dockerfile is at"):
            Environment.from_dockerfile("train", given)
    assert environment.docker.base_dockerfile is None


def test_defect_01_one_that_was_saved_so_is_refused_when_it_is_defined(tmp_path: Path) -> None:
    """Even where a file of that name is by now in the current folder."""
    (tmp_path / JSON).write_text('{"name": "train", "docker": {"baseImage": null}}')
    (tmp_path / "BaseDockerfile").write_text("./no/such/Dockerfile")
    environment = Environment.load_from_directory(tmp_path)
    with pytest.raises(SpecificationError, match="no Dockerfile; was it the path of one"):
        environment.definition()


@pytest.mark.parametrize("spec", ["python=3.7.*", "python=3.7.10=h12debd9_4", "python>=3.6,<3.9", "python 3.8.*"])
def test_defect_02_pythons_spec_stays_as_it_is_written(spec: str, tmp_path: Path) -> None:
    environment = Environment.from_conda_specification("train", conda_file(tmp_path, "numpy", spec))
    assert environment.definition().conda_dependencies == ("numpy", spec)
    environment.save_to_directory(tmp_path / "saved")
    again = Environment.load_from_directory(tmp_path / "saved")
    assert again.definition().conda_dependencies == ("numpy", spec)


def test_defect_02_no_second_python_is_added(tmp_path: Path) -> None:
    conda = CondaDependencies(conda_file(tmp_path, "conda-forge::python=3.10", "Python-dateutil"))
    conda.add_conda_package("python=3.11")
    assert conda.conda_packages == ("python=3.11", "Python-dateutil")


def test_defect_03_no_python_package_or_variable_is_invented(tmp_path: Path) -> None:
    """On every path: a new environment asks for nothing that its user did not."""
    (tmp_path / "requirements.txt").write_text("pandas\n")
    for conda in (CondaDependencies(), CondaDependencies.create(), CondaDependencies(conda_file(tmp_path, "numpy"))):
        assert conda.get_python_version() is None
        assert conda.pip_packages == ()
    for environment in (
        Environment("train"),
        Environment.from_pip_requirements("train", tmp_path / "requirements.txt"),
        Environment.from_docker_image("train", "python:3.12"),
    ):
        definition = environment.definition()
        assert definition.environment_variables == {}
        assert definition.conda_dependencies == ()
        assert set(definition.requirements) <= {"pandas"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("by", ["pip", "conda"])
def test_defect_04_requirements_are_read_as_pip_reads_them(by: str, encoding: str, tmp_path: Path) -> None:
    """Comments, blanks, nested files, continuations and byte order marks become no packages."""
    (tmp_path / "more.txt").write_text("scipy\n")
    text = f"# ours\n\nNumPy==1.26.4 \\\n  --hash=sha256:{'a' * 64}\n-r more.txt\npandas  # frames\n"
    (tmp_path / "requirements.txt").write_bytes(text.encode(encoding))
    if by == "pip":
        environment = Environment.from_pip_requirements("train", tmp_path / "requirements.txt")
    else:
        path = conda_file(tmp_path, "pip:", "  - '# ours'", "  - ''", "  - -r requirements.txt")
        path.write_text(path.read_text().replace("-   -", "    -"))
        environment = Environment.from_conda_specification("train", path)
    wanted = (f"numpy==1.26.4 --hash=sha256:{'a' * 64}", "pandas", "scipy")
    assert environment.definition().requirements == wanted
    environment.save_to_directory(tmp_path / "saved")
    assert Environment.load_from_directory(tmp_path / "saved").definition().requirements == wanted


def test_defect_05_marker_variants_stay_and_spellings_of_one_name_are_one() -> None:
    conda = CondaDependencies()
    for line in ("numpy<2; python_version<'3.9'", "numpy>=2; python_version>='3.9'", "Scikit_Learn==1.4"):
        conda.add_pip_package(line)
    conda.add_pip_package("scikit-learn==1.5")
    assert conda.requirements().packages == (
        'numpy<2; python_version < "3.9"',
        'numpy>=2; python_version >= "3.9"',
        "scikit-learn==1.5",
    )


def test_defect_05_a_second_extra_index_stands_beside_the_first() -> None:
    conda = CondaDependencies()
    for name in ("a", "b"):
        conda.set_pip_option(f"--extra-index-url https://{name}.example.com/simple")
    environment = Environment("train")
    environment.python.conda_dependencies = conda
    assert environment.definition().extra_index_urls == (
        "https://a.example.com/simple",
        "https://b.example.com/simple",
    )


def test_defect_07_overwriting_leaves_no_stale_dockerfile(tmp_path: Path) -> None:
    environment = Environment.from_dockerfile("train", "FROM python:3.11")
    environment.save_to_directory(tmp_path / "saved")
    with pytest.warns(UserWarning, match="replaces"):
        environment.docker.base_image = "python:3.12"
    environment.save_to_directory(tmp_path / "saved", overwrite=True)
    assert not (tmp_path / "saved" / "BaseDockerfile").exists()
    assert Environment.load_from_directory(tmp_path / "saved").definition() == environment.definition()


def test_defect_07_a_stale_dockerfile_that_sdk_v1_left_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / JSON).write_text('{"name": "train", "docker": {"baseImage": "python:3.12", "baseDockerfile": null}}')
    (tmp_path / "BaseDockerfile").write_text("FROM python:3.11")
    definition = Environment.load_from_directory(tmp_path).definition()
    assert (definition.base_image, definition.dockerfile) == ("python:3.12", "")
    assert "stale" in caplog.text


def test_defect_07_text_is_no_truth_value(tmp_path: Path) -> None:
    (tmp_path / JSON).write_text('{"name": "train", "python": {"userManagedDependencies": "false"}}')
    with pytest.raises(SpecificationError, match=r"userManagedDependencies is the text 'false'.*without quotes"):
        Environment.load_from_directory(tmp_path)
    environment = Environment("train")
    environment.python.user_managed_dependencies = "false"  # type: ignore[assignment]
    for refused in (environment.definition, lambda: environment.save_to_directory(tmp_path / "saved")):
        with pytest.raises(DefinitionError, match="remove the quotes"):
            refused()


def test_defect_07_nulls_load(tmp_path: Path) -> None:
    nulls = dict.fromkeys(("environmentVariables", "python", "docker", "spark", "databricks", "r"))
    (tmp_path / JSON).write_text(json.dumps({"name": "train"} | nulls))
    assert Environment.load_from_directory(tmp_path).definition() == Environment("train").definition()


def test_defect_07_a_stray_comma_after_the_image_is_not_saved_and_a_saved_one_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = Environment("train")
    environment.docker.base_image = ("python:3.12",)
    with pytest.raises(DefinitionError, match="stray comma"):
        environment.save_to_directory(tmp_path / "saved")
    (tmp_path / JSON).write_text('{"name": "train", "docker": {"baseImage": ["python:3.12"]}}')
    assert Environment.load_from_directory(tmp_path).definition().base_image == "python:3.12"
    assert "stray comma" in caplog.text


def test_defect_08_a_registry_password_is_neither_saved_nor_defined(tmp_path: Path) -> None:
    environment = Environment("train")
    environment.docker.base_image = "registry.example.com/python:3.12"
    environment.docker.base_image_registry.username = "ann"
    environment.docker.base_image_registry.password = "planted-password"
    for refused in (environment.definition, lambda: environment.save_to_directory(tmp_path / "saved")):
        with pytest.raises(DefinitionError, match="secret:NAME"):
            refused()
    assert not (tmp_path / "saved").exists()
    environment.docker.base_image_registry.password = "secret:registry"
    environment.save_to_directory(tmp_path / "saved")
    assert saved(tmp_path / "saved")["docker"]["baseImageRegistry"]["password"] == "secret:registry"


@pytest.mark.parametrize("name", [None, "", " ", "a b", "a/b", "-a", "a" * 129, "AzureML-mine", "microsoft", "ä"])
def test_defect_11_names_are_checked_by_every_constructor(name: Any, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("pandas\n")
    constructors: list[Any] = [
        lambda: Environment(name),
        lambda: Environment.from_pip_requirements(name, tmp_path / "requirements.txt"),
        lambda: Environment.from_conda_specification(name, conda_file(tmp_path, "numpy")),
        lambda: Environment.from_docker_image(name, "python:3.12"),
        lambda: Environment.from_dockerfile(name, "FROM python:3.12"),
        lambda: Environment.from_docker_build_context(name, None),  # type: ignore[arg-type]
        lambda: Environment("train").clone(name),
    ]
    for make in constructors:
        with pytest.raises(NameNotAllowed):
            make()
