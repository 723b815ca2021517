"""Projects as inputs: the dependencies that they list, or the lock beside them."""

import subprocess
from pathlib import Path

import pytest
from uv import find_uv_bin

from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.formats import pylock, pyproject
from prefect_environments.core.lock.target import Target
from tests.support.wheels import make_wheel

PROJECT = """
[project]
name = "demo"
version = "1.0"
requires-python = ">=3.11"
dependencies = ["alpha>=1", "Beta ; python_version < '3.13'"]
[project.optional-dependencies]
gpu = ["gamma"]
[dependency-groups]
train = ["delta", {include-group = "log"}]
log = ["epsilon"]
"""


def project(folder: Path, text: str = PROJECT) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(text)
    return folder / "pyproject.toml"


def test_the_dependencies_of_a_project_with_the_extras_and_groups_that_are_asked_for(tmp_path: Path) -> None:
    path = project(tmp_path)
    assert pyproject.read(path).requirements == ("alpha>=1", 'beta; python_version < "3.13"')
    assert pyproject.read(tmp_path).requires_python == ">=3.11"
    found = pyproject.read(path, extras=["GPU"], groups=["train"]).requirements
    assert set(found) == {"alpha>=1", 'beta; python_version < "3.13"', "gamma", "delta", "epsilon"}


@pytest.mark.parametrize(
    ("text", "options", "why"),
    [
        ("[project", {}, "not TOML"),
        ("[tool.ruff]\n", {}, r"no \[project\] table"),
        ("[tool.poetry]\nname = 'a'\n", {}, "poetry export"),
        ("[project]\nname = 'a'\ndynamic = ['dependencies']\n", {}, "dynamic"),
        ("[project]\nname = 'a'\ndependencies = 'numpy'\n", {}, "no list of text"),
        (PROJECT, {"extras": ["none"]}, "no extra 'none'; it has gpu"),
        (PROJECT, {"groups": ["none"]}, "no dependency group 'none'; it has log, train"),
        (PROJECT + 'a = [{include-group = "b"}]\nb = [{include-group = "a"}]\n', {"groups": ["a"]}, "circle"),
        ("[project]\nname = 'a'\ndependencies = ['a[gpu]']\n", {}, "extras of itself"),
        ("project = 5\n", {"extras": ["a"]}, "table"),
        ("tool = 5\n", {}, "'tool' that is no table"),
        ("[project]\nname = 'a'\ndynamic = 5\n", {}, "'dynamic' that is no list"),
        ("dependency-groups = 5\n" + PROJECT.partition("[dep")[0], {"groups": ["a"]}, "that is no table"),
        ("[project]\nname = 'a'\noptional-dependencies = ['a']\n", {"extras": ["a"]}, "that is no table"),
        (PROJECT + 'a = [{include-group = "none"}]\n', {"groups": ["a"]}, "includes the dependency group 'none'"),
        (PROJECT + "a = [{include-group = 5}]\n", {"groups": ["a"]}, "includes the dependency group 5"),
        (PROJECT + "a = 5\n", {"groups": ["a"]}, "'a' that is no list"),
        ("a = " + "[" * 20_000, {}, "not TOML"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(
    text: str, options: dict[str, list[str]], why: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecificationError, match=why):
        pyproject.read(project(tmp_path, text), **options)


def test_a_missing_project_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match="cannot be read"):
        pyproject.read(tmp_path)


def test_the_lock_beside_the_project_is_what_counts_and_nothing_is_resolved_again(tmp_path: Path) -> None:
    """A newer release that appears after locking is not taken in; the project itself is not a package of it."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name in ("alpha", "beta", "gamma", "delta", "epsilon"):
        make_wheel(shelf, name, "1.0")
    path = project(tmp_path / "demo")
    command = [find_uv_bin(), "lock", "--no-index", "--find-links", str(shelf), "--project", str(path.parent), "-q"]
    subprocess.run(command, check=True)
    make_wheel(shelf, "alpha", "2.0")
    found = pyproject.read(path, extras=["gpu"])
    assert found.requirements == ()
    packages = pylock.packages_for(found.pylock, Target("3.12.7", "/usr/bin/python3", "glibc", "2.36"))
    assert [(p.name, p.version) for p in packages] == [("alpha", "1.0"), ("beta", "1.0"), ("gamma", "1.0")]
    (path.parent / "uv.lock").write_text("version = 99")
    with pytest.raises(SpecificationError, match="cannot be exported"):
        pyproject.read(path)
