"""The package is built from the right folders, stays light to import, and names no registry, host or machine."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"blocks", "cli", "core", "flows", "tasks"}
OTHERS = {".ci", "benchmarks", "docs", "examples", "src", "tests"}


def _python(code: str) -> str:
    """What `code` prints in a fresh interpreter that sees the package as a user does."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _files() -> list[Path]:
    """The files of the repository: tracked ones, and new ones that nothing ignores."""
    files = [path for name in (*FOLDERS, *OTHERS) for path in (ROOT / name).rglob("*")]
    files += [path for path in ROOT.iterdir() if path.name != ".git"]
    if shutil.which("git"):
        listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(listed, capture_output=True, check=False)
        if done.returncode == 0:
            files = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file() and not file.is_symlink() and file.suffix != ".pyc"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"prefect_environments"}
    inside = {name.split("/")[1] for name in names if name.startswith("prefect_environments/")}
    assert inside == {"__init__.py", "__main__.py", "py.typed", *FOLDERS}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_every_module_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = [name for name in archive.namelist() if name.endswith(".py")]
    modules = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    modules |= {"__init__.py", "__main__.py"}
    assert sorted(packed) == sorted({f"prefect_environments/{name}" for name in modules})


def test_the_entry_point_names_the_blocks(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        parsed = configparser.ConfigParser()
        parsed.read_string(archive.read(name).decode())
    assert dict(parsed["prefect.collections"]) == {"prefect_environments": "prefect_environments.blocks"}


def test_importing_the_package_is_light() -> None:
    """Prefect imports collections at each start of a server or worker."""
    heavy = "{'prefect', 'aiohttp', 'pydantic'} & {name.partition('.')[0] for name in sys.modules}"
    assert _python(f"import prefect_environments, sys; print({heavy})") == "set()"


def test_no_module_of_core_imports_prefect() -> None:
    """Every module under core, imported in one process, leaves Prefect unloaded."""
    code = """
import importlib, pkgutil, sys
import prefect_environments.core as core
names = [module.name for module in pkgutil.walk_packages(core.__path__, "prefect_environments.core.")]
for name in names:
    importlib.import_module(name)
print(len(names), sorted(name for name in sys.modules if name.partition(".")[0] == "prefect"))
"""
    count, found = _python(code).split(maxsplit=1)
    assert int(count) > 10
    assert found == "[]"


def test_every_folder_of_core_is_a_package() -> None:
    """A folder without __init__.py would be packed, but its modules skipped by tools that walk packages."""
    folders = {path.parent for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_ci_runs_only_targets_of_the_makefile() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line.startswith("make ")]
    assert lines == ["make lint", "make test"]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "lint", "bench", "clean", "help"} <= targets


def test_constraints_pin_every_requirement_exactly() -> None:
    """Names and exact versions only: no hashes (pip would refuse `-e .`), no addresses, no markers."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9A-Za-z.]+", line), line
        name, _, pins[line.partition("==")[0]] = line.partition("==")
        assert name == canonicalize_name(name)
    assert len(pins) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    for requirement in wanted:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_what_is_installed_beside_the_package_is_pinned() -> None:
    """The project's own virtual environment holds nothing that constraints.txt does not name."""
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not running in the project's .venv, which `make test` makes")
    pins = set((ROOT / "constraints.txt").read_text().splitlines())
    installed = {f"{canonicalize_name(found.metadata['Name'])}=={found.version}" for found in distributions()}
    venvs_own = re.compile(r"(pip|setuptools|prefect-environments)==.*")
    assert {pin for pin in installed - pins if not venvs_own.fullmatch(pin)} == set()


def _package_hosts() -> Iterator[str]:
    """The hosts of package registries, as this machine's own tools know them: this file names none."""
    from pip._internal.models.index import PyPI, TestPyPI

    for index in (PyPI, TestPyPI):
        yield index.netloc
        yield index.file_storage_domain
    apt = Path("/etc/apt")
    for path in (apt / "sources.list", *apt.glob("sources.list.d/*")):
        if path.is_file():
            found = re.findall(r"https?://[^\s\]]+", path.read_text())
            yield from (host for url in found if (host := urlsplit(url).hostname))


def test_no_file_names_a_package_registry_or_this_machine() -> None:
    """A file that named an index would work around the one that the user has configured."""
    forbidden = {host.encode() for host in _package_hosts()}
    assert len(forbidden) >= 2
    if ROOT.parent != Path("/"):
        forbidden.add(str(ROOT).encode() + b"/")
    forbidden.add(b"/" + b"work/shared")
    found = {
        f"{file.relative_to(ROOT)} names {word.decode()}"
        for file in _files()
        for word in forbidden
        if word in file.read_bytes()
    }
    assert found == set()
