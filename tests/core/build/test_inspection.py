"""What an inspection finds in an image, and what it says does not work without what is missing."""

import json
from pathlib import Path

import pytest

from prefect_environments.core.build.base import load_base
from prefect_environments.core.build.inspection import Capability, ImageReport, inspect_image
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.oci.layout import Layout
from tests.core.build.parts import put_image, tar_of
from tests.core.build.test_inspect import DEBIAN, Entries
from tests.support.base import BaseLayout

STATUS = b"""Package: libfuse2
Status: install ok installed
Version: 2.9.9-6+b1

Package: openmpi-bin
Status: install ok installed
Version: 4.1.4-3

Package: libibverbs1
Status: deinstall ok config-files
Version: 44.0-2
"""


async def look(tmp_path: Path, layers: list[Entries], environment: list[str] | None = None) -> ImageReport:
    base = await put_image(tmp_path / "layout", [tar_of(layer) for layer in layers], environment or [])
    return await inspect_image(base, tmp_path / "scratch")


def found(report: ImageReport) -> dict[str, Capability]:
    return {item.name: item for item in report.capabilities}


async def test_the_system_its_libc_and_every_python(tmp_path: Path) -> None:
    release: Entries = {"usr/lib/os-release": b'NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'}
    report = await look(tmp_path, [DEBIAN, release], ["CUDNN_VERSION=9.1", "API_TOKEN=hunter2"])
    assert report.system == "Debian GNU/Linux 12 (bookworm)"
    assert report.libc == "glibc 2.36"
    assert [(p.path, p.version) for p in report.interpreters] == [("/usr/bin/python3.11", "3.11.2")]
    assert report.environment == {"CUDNN_VERSION": "9.1"}
    assert "hunter2" not in json.dumps(report.to_json())
    assert report.platform == "linux/amd64" and report.layers == 2


async def test_a_bare_image_lacks_everything_and_each_gap_says_what_fails(tmp_path: Path) -> None:
    report = await look(tmp_path, [DEBIAN])
    assert [item.name for item in report.capabilities] == ["conda", "libfuse", "Open MPI", "CUDA", "Mellanox OFED"]
    assert not any(item.found for item in report.capabilities)
    assert all(len(item.without) > 20 for item in report.capabilities)
    assert "InfiniBand" in found(report)["Mellanox OFED"].without


async def test_the_package_managers_list_tells_versions_and_removed_packages_don_t_count(tmp_path: Path) -> None:
    report = await look(tmp_path, [DEBIAN, {"var/lib/dpkg/status": STATUS}])
    assert found(report)["libfuse"] == Capability("libfuse", True, "2.9.9", "package libfuse2 2.9.9-6+b1")
    assert found(report)["Open MPI"].version == "4.1.4"
    assert not found(report)["Mellanox OFED"].found


async def test_alpines_list_is_read_too(tmp_path: Path) -> None:
    text = b"C:Q1x\nP:fuse3\nV:3.16.2-r0\nA:x86_64\n\nC:Q1y\nP:openmpi\nA:x86_64\nV:5.0.3-r1\n"
    report = await look(tmp_path, [DEBIAN, {"lib/apk/db/installed": text}])
    assert (found(report)["libfuse"].version, found(report)["Open MPI"].version) == ("3.16.2", "5.0.3")


@pytest.mark.parametrize(
    ("name", "files", "variables", "version", "where"),
    [
        ("conda", {"opt/miniconda/conda-meta/conda-23.5.2-py310_0.json": b"{}"}, [], "23.5.2", "/opt/miniconda/"),
        (
            "libfuse",
            {"usr/lib/libfuse.so.2": "libfuse.so.2.9.9", "usr/lib/libfuse.so.2.9.9": b"x"},
            [],
            "2.9.9",
            "/usr",
        ),
        ("Open MPI", {"usr/local/lib/pkgconfig/ompi.pc": b"Name: x\nVersion: 4.1.0\n"}, [], "4.1.0", "/usr/local"),
        ("CUDA", {"usr/local/cuda-12.4/version.json": b'{"cuda": {"version": "12.4.1"}}'}, [], "12.4.1", "/usr/local"),
        ("CUDA", {"usr/local/cuda/version.txt": b"CUDA Version 10.2.89\n"}, [], "10.2.89", "/usr/local"),
        ("CUDA", {}, ["CUDA_VERSION=12.1.0"], "12.1.0", "variable CUDA_VERSION"),
        ("CUDA", {"usr/local/cuda/version.json": b"not json"}, ["CUDA_VERSION=11.8.0"], "11.8.0", "variable"),
        (
            "Mellanox OFED",
            {"usr/bin/ofed_info": b"#!/bin/bash\necho MLNX_OFED_LINUX-5.4-3.6.8.1 (OFED-5.4-3.6.8):\n"},
            [],
            "5.4-3.6.8.1",
            "/usr/bin/ofed_info",
        ),
    ],
)
async def test_files_and_variables_tell_what_no_package_manager_knows(
    *, name: str, files: Entries, variables: list[str], version: str, where: str, tmp_path: Path
) -> None:
    item = found(await look(tmp_path, [DEBIAN, files], variables))[name]
    assert (item.found, item.version) == (True, version)
    assert item.where.startswith(where)


async def test_what_an_upper_layer_removed_is_missing(tmp_path: Path) -> None:
    lower: Entries = {"opt/conda/conda-meta/conda-23.5.2-py310_0.json": b"{}"}
    assert not found(await look(tmp_path, [DEBIAN, lower, {"opt/.wh.conda": b""}]))["conda"].found


async def test_a_report_reads_back_equal(tmp_path: Path) -> None:
    report = await look(tmp_path, [DEBIAN, {"var/lib/dpkg/status": STATUS}])
    assert ImageReport.from_json(json.loads(json.dumps(report.to_json()))) == report


async def test_a_real_image_is_what_debian_says_it_is(base_layout: BaseLayout, tmp_path: Path) -> None:
    base = await load_base(Layout(base_layout.folder).repository(""), "base", "base", Platform())
    report = await inspect_image(base, tmp_path)
    assert report.system.startswith("Debian GNU/Linux") and report.libc.startswith("glibc 2.")
    assert any(python.path.startswith("/usr/bin/python3.") for python in report.interpreters)
    assert not found(report)["CUDA"].found
