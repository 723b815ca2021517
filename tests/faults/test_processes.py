"""Builds whose process is killed, that meet a full disk, or each other."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_environments.core import files
from prefect_environments.core.build import converters
from prefect_environments.core.errors import StorageError
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.registry_settings import RegistrySettings
from tests.faults.builder import MARK
from tests.faults.parts import NAME, Plan, leftovers, push, settled_leftovers, team
from tests.support.jobs import until
from tests.support.registry import Registry as Running
from tests.support.session import missing

ROOT = Path(__file__).parents[2]


def run(work: dict[str, Any], plan: Plan, folder: Path) -> Any:
    """What the builder prints for a work of this plan."""
    given = {"base": plan.definition.base_image, "lock": plan.lock.to_pylock(), "prefix": "environments", **work}
    file = folder / f"work-{uuid4().hex}.json"
    file.write_text(json.dumps({**given, "folder": str(folder / "builds")}))
    command = [sys.executable, "-m", "tests.faults.builder", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def processes_of(builds: Path) -> list[str]:
    """The processes of builds in a folder, by command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            if f"{MARK}={builds}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
    return found


async def check_layout(folder: Path) -> None:
    """Every blob of a layout is what its name says, and there is no other file among them."""
    for path in sorted((folder / "blobs").rglob("*")):
        if path.is_file():
            assert f"sha256:{path.name}" == digests.of_file(path), path
    assert await settled_leftovers(folder) == []


async def test_builds_into_a_layout_that_are_killed_anywhere_complete_when_run_again(
    plan: Plan, tmp_path: Path
) -> None:
    """30 kills at random points: the next run gives the same image, and sweeps what the dead process left."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    results = run({"do": "kill", "times": 30, "seed": seed, "images": ""}, plan, tmp_path)
    assert [result.get("digest", result) for result in results] == [plan.digest] * 31
    assert sum(result.get("killed", False) for result in results) > 5
    for result in results[1:]:
        folder = Path(result["folder"])
        await check_layout(folder / "images")
        assert leftovers(folder) == []
        assert [path.name for path in (folder / "versions").rglob("*.json")] == ["1.json"]


async def test_builds_into_a_registry_that_are_killed_anywhere_complete_when_run_again(
    plan: Plan, open_registry: Running, tmp_path: Path
) -> None:
    """20 kills at random points of builds that convert in processes: the next run gives the same image, no version is
    there without it, and no process goes on."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    work = {"do": "kill", "times": 20, "seed": seed, "images": open_registry.address, "prefix": f"k/{uuid4().hex[:8]}"}
    results = run({**work, "by processes": True}, plan, tmp_path)
    assert [result.get("digest", result) for result in results] == [plan.digest] * 21
    await until(lambda: processes_of(tmp_path / "builds") == [])
    assert sum(result.get("killed", False) for result in results) > 3
    for result in results[1:]:
        assert leftovers(Path(result["folder"])) == []
        assert [path.name for path in Path(result["folder"], "versions").rglob("*.json")] == ["1.json"]


async def test_two_processes_build_the_same_into_the_same_place(plan: Plan, tmp_path: Path) -> None:
    results = run({"do": "at once", "times": 6, "images": ""}, plan, tmp_path)
    assert results == [{"digest": plan.digest, "version": 1}] * 12
    for folder in (tmp_path / "builds").iterdir():
        await check_layout(folder / "images")
        index = json.loads((folder / "images" / "index.json").read_text())
        tags = [entry.get("annotations", {}).get("org.opencontainers.image.ref.name") for entry in index["manifests"]]
        assert len(tags) == len(set(filter(None, tags))) + tags.count(None)


def test_a_sweep_takes_what_the_dead_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        with files.temporary_file(tmp_path) as file:
            file.write(b"half")
            file.flush()
            os._exit(0)  # as abruptly as a kill: nothing is cleaned up
    os.waitpid(child, 0)
    assert len(leftovers(tmp_path)) == 1
    with files.temporary_file(tmp_path) as file:
        files.sweep(tmp_path)
        assert leftovers(tmp_path) == [file.name]
    assert leftovers(tmp_path) == []


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own with little room."""
    if os.geteuid() != 0:
        missing("only root can mount a small disk")
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        missing(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(
    ("full", "worth_it"), [("cache", converters.WORTH_IT), ("cache", 0), ("images", 0), ("versions", 0)]
)
async def test_a_full_disk_is_told_and_the_rest_is_intact_and_completes_later(
    full: str, worth_it: int, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether threads convert or, for work of `worth_it` bytes and more, processes."""
    monkeypatch.setattr(converters, "WORTH_IT", worth_it)
    places = {name: tmp_path / name for name in ("cache", "images", "versions")}
    with small_disk(tmp_path / "small", "12m") as small:
        places[full] = small / full
        ballast = small / "ballast"
        room = 0 if full == "versions" else 700_000
        with ballast.open("wb") as file:
            file.write(b"x" * (12 * 1024 * 1024 - room - 16384))
            file.flush()
        if full == "versions":
            (small / "rest").write_bytes(b"")
            _fill(small / "rest")
        workspace = team(RegistrySettings(f"oci:{places['images']}"), places["versions"])
        with pytest.raises(Exception, match="No space left on device") as caught:
            await push(plan, workspace, places["cache"])
        if full != "versions":
            assert isinstance(caught.value, StorageError)
            assert "disk is not full" in str(caught.value) and str(small) in str(caught.value)
        assert await workspace.versions.versions(NAME) == []
        if places["images"].exists():
            await check_layout(places["images"])
        assert await settled_leftovers(tmp_path) == []
        ballast.unlink()
        (small / "rest").unlink(missing_ok=True)
        record = await push(plan, workspace, places["cache"])
        assert (record.digest, record.version) == (plan.digest, 1)
        await check_layout(places["images"])


def _fill(path: Path) -> None:
    """Write until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return
