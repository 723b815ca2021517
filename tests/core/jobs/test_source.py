"""What of a source folder goes to a job."""

import shutil
import subprocess
from pathlib import Path

import pytest

from prefect_environments import ScriptRunConfig
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.jobs.source import check_source, source_entries, stage

FILES = ["train.py", "data/a.csv", "data/keep.csv", "lib/data/b.csv", "notes.log", "lib/x.log", "build/out.o"]
FILES += [".git/config", "__pycache__/train.pyc", "outputs/model.bin", "#odd"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "source"


def committed(folder: Path) -> str:
    """The id of a first commit of all that is in a folder."""
    shutil.rmtree(folder / ".git")
    git = ["git", "-C", str(folder), "-c", "user.name=ann", "-c", "user.email=ann@example.com"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def found(folder: Path) -> set[str]:
    return {e.path for e in source_entries(folder) if e.place.is_file() and not e.path.startswith(".")}


def test_version_control_and_caches_are_left_out(source: Path) -> None:
    assert found(source) == set(FILES) - {".git/config", "__pycache__/train.pyc"}


def test_gitignore_leaves_out_what_git_would(source: Path) -> None:
    """The listing of git itself is the measure."""
    (source / ".gitignore").write_text("# c\n/data/*\n!/data/keep.csv\n*.log\nbuild/\n\\#odd\noutputs\n")
    for name in (".git", "__pycache__"):
        shutil.rmtree(source / name)
    subprocess.run(["git", "init", "-q", str(source)], check=True)
    listed = ["git", "-C", str(source), "ls-files", "--others", "--exclude-standard", "-z"]
    by_git = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    assert found(source) == {name for name in by_git if name and not name.startswith(".")}
    assert found(source) == {"train.py", "data/keep.csv", "lib/data/b.csv"}


def test_amlignore_counts_alone_where_it_is(source: Path) -> None:
    (source / ".gitignore").write_text("*\n")
    (source / ".dockerignore").write_text("*\n")
    (source / ".amlignore").write_text("data\n")
    assert {"train.py", "notes.log"} <= found(source)
    assert not any("data/" in name for name in found(source))
    (source / ".amlignore").unlink()
    assert found(source) == set()


async def test_the_copy_is_the_jobs_own(source: Path, tmp_path: Path) -> None:
    """Modes and links stay, former outputs stay behind, and a change of it reaches nobody."""
    (source / "train.py").chmod(0o755)
    (source / "link").symlink_to("train.py")
    place = tmp_path / "job"
    place.mkdir()
    copy = await stage(ScriptRunConfig(source_directory=str(source), script="train.py"), place)
    assert (copy / "train.py").stat().st_mode & 0o777 == 0o755
    assert (copy / "link").readlink() == Path("train.py")
    assert not (copy / "outputs").exists()
    (copy / "train.py").write_text("changed")
    assert (source / "train.py").read_text() == "train.py"


async def test_a_git_source_is_one_commit(source: Path, tmp_path: Path) -> None:
    commit = committed(source)
    (source / "train.py").write_text("later")
    config = ScriptRunConfig(source_directory=f"{source.as_uri()}#{commit}:lib", command="true")
    check_source(config)
    place = tmp_path / "job"
    place.mkdir()
    assert sorted(path.name for path in (await stage(config, place)).iterdir()) == ["data", "x.log"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"source_directory": "nowhere", "script": "train.py"}, "no folder"),
        ({"script": "missing.py"}, "is not there"),
        ({"script": "notes.log"}, "left out by an ignore file"),
        ({"script": "train.py", "bootstrap": "bootstrap.sh"}, "bootstrap 'bootstrap.sh' is not there"),
    ],
)
def test_a_missing_script_is_told_before_any_work(fields: dict[str, str], why: str, source: Path) -> None:
    (source / ".gitignore").write_text("*.log\n")
    with pytest.raises(DefinitionError, match=why):
        check_source(ScriptRunConfig(**{"source_directory": str(source), **fields}))
