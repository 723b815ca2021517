"""An assembled image runs in a real engine: isolated, complete, with the settings of its base."""

from pathlib import Path

import pytest

from tests.images.conftest import Define
from tests.images.parts import PYTHON, Team, build
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.registry import Registry

IMPORTABLE = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))
"""
FILES = """
import importlib.metadata as m, json
gone = [str(f) for d in m.distributions() for f in d.files or [] if not f.locate().exists()]
known = sorted(d.name for d in m.distributions())
print(json.dumps([known, gone]))
"""


@pytest.fixture(scope="module")
def image(pushed: str, docker_engine: DockerEngine) -> str:
    docker_engine.pull(pushed)
    return pushed


def test_installed_packages_are_imported(image: str, docker_engine: DockerEngine) -> None:
    run = docker_engine.run(image, "python", "-c", "import alpha, sys; alpha.main(); print(sys.executable, sys.prefix)")
    assert run.split("\n")[:2] == ["alpha says 1.0", f"{PYTHON} /opt/env"]


def test_console_scripts_run_with_the_environments_python(image: str, docker_engine: DockerEngine) -> None:
    """Of entry points and of .data/scripts: both begin with the interpreter of the environment."""
    said = docker_engine.run(
        image, "sh", "-c", "alpha-say; alpha-script; head -qn1 /opt/env/bin/alpha-say /opt/env/bin/alpha-script"
    )
    assert said.split("\n")[:4] == ["alpha says 1.0", "script of /opt/env", f"#!{PYTHON}", f"#!{PYTHON}"]


def test_pip_knows_what_is_installed(image: str, docker_engine: DockerEngine) -> None:
    """`pip list` has the packages of the lock and no more, `pip check` is content."""
    listed = docker_engine.run(image, "pip", "list", "--format=freeze", "--disable-pip-version-check").split()
    assert [line.partition("==")[0] for line in listed] == ["alpha", "beta", "pip"]
    assert "No broken requirements" in docker_engine.run(image, "pip", "check", "--disable-pip-version-check")


def test_every_file_that_pip_lists_is_there(image: str, docker_engine: DockerEngine) -> None:
    shown = docker_engine.run(image, "pip", "show", "-f", "alpha", "--disable-pip-version-check")
    listed = {line.strip() for line in shown.partition("Files:\n")[2].splitlines()}
    assert {"alpha/__init__.py", "../../../bin/alpha-say", "../../../share/alpha/notes.txt"} <= listed
    known, gone = eval(docker_engine.run(image, "python", "-c", FILES))
    assert (known, gone) == (["alpha", "beta", "pip"], [])


def test_packages_of_the_base_are_invisible(image: str, dressed: str, docker_engine: DockerEngine) -> None:
    """The base's own Python sees them; the environment's does not, on sys.path or by PYTHONPATH."""
    names = ("alpha", "of_the_base", "from_pythonpath")
    docker_engine.pull(dressed)
    assert eval(docker_engine.run(dressed, "python3", "-c", IMPORTABLE, *names)) == ["of_the_base", "from_pythonpath"]
    assert eval(docker_engine.run(image, "python", "-c", IMPORTABLE, *names)) == ["alpha"]


def test_the_bases_settings_are_kept_and_its_pythons_are_not(image: str, docker_engine: DockerEngine) -> None:
    """Variables, user, label, entry point, command and working directory stay; PATH comes first, PYTHON… go."""
    show = "import os, json; print(json.dumps([dict(os.environ), os.getuid(), os.getgid(), os.getcwd()]))"
    variables, *rest = eval(docker_engine.run(image, "python", "-c", show))
    assert rest == [1234, 1234, "/tmp"]
    assert variables["PATH"] == "/opt/env/bin:/usr/local/bin:/usr/bin:/bin"
    assert (variables["VIRTUAL_ENV"], variables["KEPT"], variables["ENTRY"]) == ("/opt/env", "yes", "yes")
    assert not {"PYTHONPATH", "PYTHONHOME"} & variables.keys()
    assert docker_engine.run(image) == "cmd yes\n"
    assert docker_engine.docker("inspect", "--format", "{{.Config.Labels.kept}}", image) == "label\n"


@pytest.mark.network
async def test_a_scientific_set_from_the_public_index_works(
    team: Team,
    define: Define,
    open_registry: Registry,
    base_layout: BaseLayout,
    docker_engine: DockerEngine,
    tmp_path: Path,
) -> None:
    """scikit-learn and pandas, with the compiled libraries that they bring, fit a model in the container."""
    reference = base_layout.push(open_registry.repository_url("images/base-for-compiled:1"))
    lines = (Path(__file__).parents[2] / "examples/iris/requirements.txt").read_text().splitlines()
    wanted = define(*lines, name="iris", base_image=reference, find_links=(), no_index=False)
    built = await build(team, wanted, tmp_path / "cache")
    docker_engine.pull(built.ready.reference)
    fit = (
        "import pandas; from sklearn.datasets import load_iris; from sklearn.linear_model import LogisticRegression;"
        "x, y = load_iris(return_X_y=True, as_frame=True); assert isinstance(x, pandas.DataFrame);"
        "print(LogisticRegression(max_iter=500).fit(x, y).score(x, y) > 0.9)"
    )
    assert docker_engine.run(built.ready.reference, "python", "-c", fit) == "True\n"
    assert "No broken" in docker_engine.run(built.ready.reference, "python", "-m", "pip", "check")
