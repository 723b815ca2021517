"""The image in a layout folder is the one in a registry, and independent tools take it from there."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.layout import Layout
from tests.images.conftest import Define
from tests.images.parts import Outcome, Team, build, push_with_skopeo, read_image, tool
from tests.support.engine import DockerEngine
from tests.support.registry import Registry
from tests.support.session import need

NOBODY = 65534


@pytest.fixture
async def built(define: Define, tmp_path: Path) -> Outcome:
    return await build(Team.on(tmp_path / "images", tmp_path / "versions"), define("alpha"), tmp_path / "cache")


@pytest.fixture
def image(built: Outcome, tmp_path: Path) -> str:
    """The image as skopeo names it: by the tag that is the image hash."""
    return f"oci:{tmp_path / 'images'}:environments/demo:{digests.hex_of(built.ready.image_hash)}"


def test_docker_loads_and_runs_the_layouts_image(image: str, docker_engine: DockerEngine, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    tool("skopeo", "copy", "-q", image, f"docker-archive:{archive}:from-layout:1")
    docker_engine.docker("load", "--quiet", "--input", archive)
    assert docker_engine.run("from-layout:1", "alpha-say") == "alpha says 1.0\n"


def test_skopeo_brings_the_layouts_image_into_a_registry(
    built: Outcome, image: str, open_registry: Registry, docker_engine: DockerEngine
) -> None:
    """The digest stays, and the engine pulls by it."""
    pushed = push_with_skopeo(image, open_registry.repository_url("images/from-layout:1"))
    assert pushed.endswith(f"@{built.ready.digest}")
    docker_engine.pull(pushed)
    assert docker_engine.run(pushed, "alpha-say") == "alpha says 1.0\n"


@pytest.mark.parametrize("reader", ["pigz", "gzip", "igzip"])
def test_every_gzip_reads_each_layer(built: Outcome, tmp_path: Path, reader: str) -> None:
    """A layer is many gzip members in a row (RFC 1952, 2.2): all of them are read, and give the diff ids."""
    if reader == "igzip" and not shutil.which(reader):
        pytest.skip("igzip is not installed (Debian's package isal)")
    need(reader)
    layout = Layout(tmp_path / "images")
    manifest, config = asyncio.run(read_image(layout.repository("environments/demo"), built.ready.digest))
    assert len(manifest.layers) == 5  # base, empty environment, pip, alpha, beta
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        unpacked = subprocess.run([reader, "-dc", layout.blob_path(layer.digest)], check=True, capture_output=True)
        assert f"sha256:{hashlib.sha256(unpacked.stdout).hexdigest()}" == diff_id


def test_umoci_unpacks_it_for_root_and_for_nobody(image: str, tmp_path: Path) -> None:
    """With owners as root, and rootless as a user without rights; both trees have the files of the packages."""
    need("umoci")
    if os.geteuid() == 0:
        tool("umoci", "unpack", "--image", image.removeprefix("oci:"), tmp_path / "root")
        assert (tmp_path / "root/rootfs/opt/env/share/alpha/notes.txt").read_text() == "notes\n"
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        tool("skopeo", "copy", "-q", image, f"oci:{folder / 'images'}:image")
        tool("chmod", "-R", "a+rwX", folder)
        command = ["umoci", "unpack", "--rootless", "--image", f"{folder / 'images'}:image", str(folder / "bundle")]
        nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        done = subprocess.run(command, capture_output=True, text=True, check=False, **nobody)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr
        unpacked = folder / "bundle/rootfs/opt/env/bin/alpha-say"
        assert unpacked.stat().st_mode & 0o777 == 0o755
        assert (unpacked.stat().st_uid == NOBODY) == (os.geteuid() == 0)


def test_skopeo_names_what_the_image_was_made_of(built: Outcome, image: str, define: Define) -> None:
    """Annotations tell the base by digest, and nothing of this machine or of the environment's name."""
    need("skopeo")
    raw = json.loads(tool("skopeo", "inspect", "--raw", image))
    assert built.lock is not None
    assert raw["annotations"]["org.opencontainers.image.base.digest"] == built.lock.base.digest
    assert raw["annotations"]["org.opencontainers.image.base.name"] == "base"
    assert "demo" not in json.dumps(raw) and "/tmp" not in json.dumps(raw)
