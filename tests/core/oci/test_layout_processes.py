"""A layout between processes, on bad disks, and with other tools."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefect_environments.core import files
from prefect_environments.core.errors import StorageError
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.validate import validate
from tests.core.oci.parts import LAYERS, config_of, put_blob, put_image
from tests.support.base import BaseLayout
from tests.support.session import missing, need

_ROOT = Path(__file__).parents[3]

_TAG = """
import asyncio, sys
from pathlib import Path
from prefect_environments.core.oci.layout import Layout
from tests.core.oci.parts import put_image
async def main(folder, name):
    for number in range(50):
        await put_image(folder, tag=f"{name}-{number}")
asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""

_WRITE = """
import asyncio, os, sys
from pathlib import Path
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.layout import Layout
async def main(folder):
    repository = Layout(folder).repository("a")
    while True:
        content = os.urandom(3_000_000)
        await repository.write_blob(Descriptor("x", digests.of(content), len(content)), content)
        print("one", flush=True)
asyncio.run(main(Path(sys.argv[1])))
"""

_HOLD = """
import sys, time
from pathlib import Path
from prefect_environments.core import files
with files.temporary_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print(file.name, flush=True)
    time.sleep(600)
"""


def _start(program: str, *arguments: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_two_processes_that_tag_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    started = [_start(_TAG, folder, name) for name in ("a", "b")]
    assert [process.wait() for process in started] == [0, 0]
    tags = await Layout(folder).repository("team/image").tags()
    assert sorted(tags) == sorted(f"{name}-{number}" for name in "ab" for number in range(50))
    await validate(Layout(folder).repository("team/image"), "b-49", tmp_path / "scratch")


def test_a_killed_writer_leaves_no_blob_that_is_half_written(tmp_path: Path) -> None:
    for _ in range(3):
        writer = _start(_WRITE, tmp_path)
        assert writer.stdout is not None
        for _ in range(4):
            assert writer.stdout.readline() == "one\n"
        writer.kill()
        writer.wait()
        writer.stdout.close()
    blobs = list((tmp_path / "blobs" / "sha256").iterdir())
    assert len(blobs) >= 12
    assert all(hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name for blob in blobs)


async def test_a_killed_writer_s_temporary_file_is_swept_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.create()
    dead, living = _start(_HOLD, layout.scratch), _start(_HOLD, layout.scratch)
    try:
        assert dead.stdout is not None and living.stdout is not None
        left, held = Path(dead.stdout.readline().strip()), Path(living.stdout.readline().strip())
        dead.kill()
        dead.wait()
        assert left.exists() and held.exists()
        hour_ago = time.time() - 3600
        os.utime(left, (hour_ago, hour_ago))
        os.utime(held, (hour_ago, hour_ago))
        await put_image(tmp_path)
        assert not left.exists() and held.exists()
    finally:
        for process in (dead, living):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def _small_disk(folder: Path, options: str) -> Iterator[None]:
    if os.geteuid() != 0:
        missing("only root can mount a small disk")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"a small disk cannot be mounted here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def _make_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


async def test_a_full_disk_is_a_storage_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    blob = Descriptor(types.LAYER_GZIP, digests.of(content), len(content))
    (tmp_path / "file").write_bytes(content)
    with _small_disk(tmp_path / "disk", "size=1m"):
        repository = await put_image(tmp_path / "disk" / "layout")
        for given in (content, tmp_path / "file"):
            with pytest.raises(StorageError, match=r"No space left on device\. Check that the folder is writable"):
                await repository.write_blob(blob, given)
            assert not await repository.has_blob(blob.digest)
            assert list(repository.layout.scratch.iterdir()) == []
        await validate(repository, "latest", tmp_path / "scratch")


async def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk", "size=1m"):
        repository = await put_image(tmp_path / "disk" / "layout")
        _make_read_only(tmp_path / "disk")
        with pytest.raises(StorageError, match=r"Read-only file system"):
            await put_blob(repository, b"new")
        with pytest.raises(StorageError, match=r"Read-only file system"):
            await Layout(tmp_path / "disk" / "other").repository("a").write_blob(LAYERS[0].descriptor, b"new")
        await validate(repository, "latest", tmp_path / "scratch")


async def test_a_file_in_the_folder_s_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="image layout at"):
            await put_blob(Layout(folder).repository("a"), b"new")


def _skopeo(*arguments: str) -> bytes:
    need("skopeo")
    return subprocess.run(["skopeo", *arguments], check=True, capture_output=True).stdout


async def test_skopeo_reads_what_we_write(tmp_path: Path) -> None:
    repository = await put_image(tmp_path / "ours")
    _skopeo("copy", "--quiet", f"oci:{tmp_path}/ours:team/image:latest", f"oci:{tmp_path}/theirs:copy")
    copied = await Layout(tmp_path / "theirs").repository("").get_manifest("copy")
    assert copied == await repository.get_manifest("latest")
    told = json.loads(_skopeo("inspect", "--config", f"oci:{tmp_path}/ours:team/image:latest"))
    assert told["rootfs"] == config_of(LAYERS)["rootfs"]


async def test_we_read_what_skopeo_writes(base_layout: BaseLayout, tmp_path: Path) -> None:
    _skopeo("copy", "--quiet", base_layout.reference, f"oci:{tmp_path}/layout:team/base:v1")
    repository = Layout(tmp_path / "layout").repository("team/base")
    assert await repository.tags() == ["v1"]
    assert (await repository.get_manifest("v1")).descriptor.digest == base_layout.digest
    await put_image(tmp_path / "layout")  # ours beside theirs
    assert await repository.tags() == ["v1"]
    assert (await validate(repository, "v1", tmp_path / "scratch")).layers


def test_a_lock_is_held_against_other_threads_and_processes(tmp_path: Path) -> None:
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with files.locked(tmp_path / "lock"):
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
