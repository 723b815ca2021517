"""Memory stays bounded, whatever the size of layers and wheels: measured in a process of its own, above idle."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from prefect_environments.core.oci.layout import Layout
from tests.faults.parts import lock_of, write_base
from tests.support.registry import Registry as Running

ROOT = Path(__file__).parents[2]
LIMIT = 100 * 1024 * 1024
MEGABYTE = 1024 * 1024

PUSH = """
import asyncio, resource, sys
from pathlib import Path
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.oci.descriptor import LAYER_TAR, Descriptor
import prefect_environments.core.steps

address, file, digest = sys.argv[1:]
async def main():
    async with Registry(address) as registry:
        assert await registry.repository("big/one").write_blob(
            Descriptor(LAYER_TAR, digest, Path(file).stat().st_size), Path(file))
        assert await registry.repository("big/one").has_blob(digest)
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
asyncio.run(main())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) * 1024)
"""

ASSEMBLE = """
import json, resource, sys
from pathlib import Path
import prefect_environments.core.steps
from benchmarks.ours import peak_of
from prefect_environments.core.build.converters import Converters
from tests.faults.builder import build

converting, close = [0.0], Converters.close
def noted(self):
    converting.append(sum(peak_of(pid) for pid in self.pids))
    close(self)
Converters.close = noted
work = json.loads(Path(sys.argv[1]).read_text())
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = build(work, work["images"], Path(work["folder"]))
assert done.get("version") == 1, done
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle
print(used * 1024 + int(max(converting) * 2**20))  # processes that convert count from nothing
"""


def measure(script: str, *arguments: str) -> int:
    """Peak memory of a script above its idle size, in bytes."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_pushing_a_layer_of_one_gibibyte_takes_less_than_100_mib(fresh_registry: Running, tmp_path: Path) -> None:
    file = tmp_path / "layer"
    with file.open("wb") as sparse:
        sparse.truncate(1024 * MEGABYTE)
    with file.open("rb") as sparse:
        digest = f"sha256:{hashlib.file_digest(sparse, 'sha256').hexdigest()}"
    try:
        assert measure(PUSH, fresh_registry.address, str(file), digest) < LIMIT
    finally:
        shutil.rmtree(fresh_registry.folder)


def make_big_wheel(folder: Path) -> Path:
    """A wheel of 200 MB that unpacks to 700 MB: one half does not shrink, the other does."""
    path = folder / "big-1.0-py3-none-any.whl"
    info = "big-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(zipfile.ZipInfo("big/noise.bin"), "w", force_zip64=True) as member:  # stored
            for _ in range(197):
                member.write(os.urandom(MEGABYTE))
        entry = zipfile.ZipInfo("big/zeros.bin")
        entry.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(entry, "w") as member:
            for _ in range(503):
                member.write(bytes(MEGABYTE))
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.2\nName: big\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow
async def test_assembling_a_wheel_of_200_mb_that_unpacks_to_700_takes_less_than_100_mib(tmp_path: Path) -> None:
    locked = await write_base(Layout(tmp_path / "base").repository(""))
    wheel = make_big_wheel(tmp_path)
    work = {"base": f"oci:{tmp_path / 'base'}:1", "lock": lock_of([wheel], locked).to_pylock()}
    file = tmp_path / "work.json"
    file.write_text(json.dumps({**work, "images": f"oci:{tmp_path / 'images'}", "folder": str(tmp_path / "build")}))
    try:
        assert measure(ASSEMBLE, str(file)) < LIMIT
    finally:
        for place in ("images", "build"):
            shutil.rmtree(tmp_path / place, ignore_errors=True)
        wheel.unlink()
