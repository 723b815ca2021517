"""`CondaDependencies`: the methods of SDK v1, with nothing invented and nothing lost."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.conda_dependencies import CondaDependencies
from prefect_environments.core.errors import DefinitionError, RequirementsError, SpecificationError
from prefect_environments.core.formats import conda as conda_format
from prefect_environments.core.formats import pip_section
from prefect_environments.core.formats import requirements as requirements_format


def test_the_lists_and_texts_of_v1_are_there() -> None:
    conda = CondaDependencies.create(
        pip_indexurl="https://packages.example.com/simple",
        pip_packages=["pandas", "scikit-learn>=1"],
        conda_packages=["numpy=1.26"],
        python_version="3.11",
        pin_sdk_version=False,
    )
    conda.add_channel("pytorch")
    assert list(conda.conda_channels) == ["conda-forge", "pytorch"]
    assert list(conda.conda_packages) == ["python=3.11", "numpy=1.26"]
    assert list(conda.pip_packages) == ["pandas", "scikit-learn>=1"]
    assert list(conda.pip_options) == ["--index-url https://packages.example.com/simple"]
    assert conda.get_python_version() == "3.11"
    assert conda.as_dict() == {
        "name": "project_environment",
        "dependencies": ["python=3.11", "numpy=1.26", {"pip": [*conda.pip_options, *conda.pip_packages]}],
        "channels": ["conda-forge", "pytorch"],
    }
    assert conda_format.parse(conda.serialize_to_string(), "text") == conda.specification()


def test_a_file_is_read_edited_and_saved(tmp_path: Path) -> None:
    file = tmp_path / "environment.yml"
    file.write_text("name: ours\ndependencies: [python=3.10, pip: [pandas]]\nvariables: {A: '1'}\n")
    conda = CondaDependencies(conda_dependencies_file_path=str(file))
    assert tuple(conda.conda_channels) == ()
    conda.remove_conda_package("python")
    conda.add_pip_package("numpy")
    assert conda.save_to_file(tmp_path / "out", "sub/conda.yml") == "sub/conda.yml"
    again = CondaDependencies(tmp_path / "out" / "sub" / "conda.yml")
    assert again == conda
    assert (again.pip_packages, again.variables) == (("pandas", "numpy"), {"A": "1"})
    assert Path(conda.save(tmp_path / "here.yml")).read_text() == conda.serialize_to_string()
    assert not list(tmp_path.glob("tmp-*"))


def test_a_conda_package_of_the_same_name_is_replaced_in_its_place() -> None:
    conda = CondaDependencies.create(conda_packages=["python=3.10", "numpy", "scipy"])
    conda.add_conda_package("conda-forge::NumPy  >=1.26")
    assert tuple(conda.conda_packages) == ("python=3.10", "conda-forge::NumPy >=1.26", "scipy")
    conda.set_python_version("3.12")
    conda.remove_conda_package("numpy=9")
    conda.remove_conda_package("never-there")
    assert tuple(conda.conda_packages) == ("python=3.12", "scipy")


def test_channels_keep_their_order_and_are_there_once() -> None:
    conda = CondaDependencies()
    for channel in ("pytorch", "conda-forge", " pytorch "):
        conda.add_channel(channel)
    assert tuple(conda.conda_channels) == ("conda-forge", "pytorch")
    conda.remove_channel("conda-forge")
    conda.remove_channel("never-there")
    assert tuple(conda.conda_channels) == ("pytorch",)


def test_pip_packages_are_replaced_and_removed_by_name_and_marker() -> None:
    conda = CondaDependencies()
    for line in ("Foo_Bar==1", "numpy<2; python_version < '3.9'", "numpy>=2; python_version >= '3.9'", "foo.bar[x]==2"):
        conda.add_pip_package(line)
    assert tuple(conda.pip_packages) == (
        "foo.bar[x]==2",
        "numpy<2; python_version < '3.9'",
        "numpy>=2; python_version >= '3.9'",
    )
    conda.remove_pip_package("numpy; python_version<'3.9'")
    assert tuple(conda.pip_packages[1:]) == ("numpy>=2; python_version >= '3.9'",)
    conda.remove_pip_package("NumPy")
    conda.remove_pip_package("azureml-defaults")
    assert tuple(conda.pip_packages) == ("foo.bar[x]==2",)


def test_direct_references_and_editables_are_packages_too(tmp_path: Path) -> None:
    (tmp_path / "tools-1.0-py3-none-any.whl").touch()
    conda = CondaDependencies()
    conda.add_pip_package(str(tmp_path / "tools-1.0-py3-none-any.whl"))
    conda.add_pip_package("-e git+https://git.example.com/team/app@main#egg=app")
    assert tuple(conda.pip_packages) == (
        f"tools @ {(tmp_path / 'tools-1.0-py3-none-any.whl').as_uri()}",
        "-e git+https://git.example.com/team/app@main#egg=app",
    )
    conda.remove_pip_package("tools")
    assert len(conda.pip_packages) == 1


def test_pip_options_are_set_and_removed() -> None:
    conda = CondaDependencies.create(pip_indexurl="https://a.example.com/s")
    conda.set_pip_index_url("https://b.example.com/s")
    conda.set_pip_option("--extra-index-url https://c.example.com/s")
    conda.set_pip_option("--extra-index-url=https://d.example.com/s")
    found = conda.requirements()
    assert found.index_url == "https://b.example.com/s"
    assert found.extra_index_urls == ("https://c.example.com/s", "https://d.example.com/s")
    conda.remove_pip_option("--extra-index-url https://d.example.com/s")
    assert conda.requirements().extra_index_urls == ("https://c.example.com/s",)
    conda.remove_pip_option("--index-url")
    assert conda.requirements().index_url is None
    conda.set_pip_requirements(["pandas", "--pre"])
    assert (conda.pip_packages, conda.pip_options) == (("pandas",), ("--pre",))


def test_nested_files_count_from_the_current_folder_and_are_read_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my list.txt").write_text("pandas\n")
    conda = CondaDependencies()
    conda.add_pip_package("-r 'my list.txt'")
    monkeypatch.chdir("/")
    (tmp_path / "my list.txt").write_text("pandas\nnumpy\n")
    assert conda.requirements().packages == ("numpy", "pandas")


@pytest.mark.parametrize(
    ("method", "value", "said"),
    [
        ("set_python_version", 3.1, r"as text, such as '3.11', got 3.1"),
        ("set_python_version", "newest", "a version as text"),
        ("add_conda_package", 3.1, "takes text, got float"),
        ("add_conda_package", "", "is empty"),
        ("add_conda_package", "--index-url https://x.example.com", "written for pip"),
        ("add_conda_package", "git+https://x.example.com/y", "written for pip"),
        ("add_channel", "two words", "without white space"),
        ("add_channel", "https://x.example.com/t/planted-token/c", "holds a token"),
        ("add_channel", "https://ann:planted-word@x.example.com/c", "user name, password or token"),
        ("add_pip_package", ["pandas"], "one requirement as text, got list"),
        ("add_pip_package", "a b c", "add_pip_package:1: cannot read 'a b c'"),
        ("add_pip_package", "--extra-index-url https://ann:planted-word@x.example.com/s", "holds a user name"),
        ("set_pip_option", "pandas", "an option of pip"),
        ("set_pip_requirements", "pandas", "is a list of text"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once_and_changes_nothing(method: str, value: Any, said: str) -> None:
    conda = CondaDependencies()
    with pytest.raises((DefinitionError, RequirementsError, SpecificationError), match=said) as caught:
        getattr(conda, method)(value)
    assert "planted" not in str(caught.value)
    if method != "set_pip_requirements":
        assert conda == CondaDependencies()


NAMES = st.from_regex(r"[a-z]{1,3}", fullmatch=True)
MARKERS = st.sampled_from(["", "; python_version < '3.9'", "; python_version >= '3.9'"])
LINES = st.lists(st.tuples(NAMES, st.sampled_from(["", "==1", ">=2"]), MARKERS), max_size=8)


@given(LINES)
def test_each_name_and_marker_is_there_once_with_what_was_said_last(lines: list[tuple[str, str, str]]) -> None:
    conda = CondaDependencies()
    for name, version, marker in lines:
        conda.add_pip_package(f"{name}{version}{marker}")
    wanted = {(name, marker): f"{name}{version}{marker}" for name, version, marker in lines}
    assert sorted(conda.pip_packages) == sorted(wanted.values())


OPTIONS = st.lists(
    st.sampled_from(
        [
            "--index-url https://a.example.com/s",
            "--extra-index-url https://b.example.com/s",
            "--find-links https://c.example.com/links",
            "--no-index",
            "--pre",
            "--only-binary numpy",
            "--only-binary :all:",
            "--require-hashes",
            f"x==1 --hash=sha256:{'a' * 64}",
        ]
    )
)


@given(LINES, OPTIONS)
def test_requirements_written_as_lines_read_back_equal(lines: list[tuple[str, str, str]], options: list[str]) -> None:
    found = requirements_format.parse(["".join(line) for line in lines] + options)
    assert pip_section.expand(pip_section.lines_of(found), "lines") == found
