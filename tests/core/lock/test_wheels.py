"""Choosing a wheel is a pure function: no index, no uv."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import Marker
from packaging.tags import Tag

from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock.model import Lock, LockedPackage
from prefect_environments.core.lock.pylock import ResolvedPackage, SourcePackage, WheelFile
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.lock.wheels import choose, fits, marker_environment, no_fitting_wheel, platforms, tags
from tests.core.lock.conftest import BASE, TARGET

MUSL = replace(TARGET, libc="musl", libc_version="1.2")
ARM = replace(TARGET, platform=Platform("arm64"))


def package(*names: str, marker: str | None = None, source: SourcePackage | None = None) -> ResolvedPackage:
    wheels = tuple(WheelFile(name, f"https://files.example.com/{name}", f"{n:064x}") for n, name in enumerate(names))
    return ResolvedPackage("demo", "1.0", Marker(marker) if marker else None, wheels, source)


def chosen(resolved: ResolvedPackage, target: Target = TARGET) -> str | None:
    found = choose((resolved,), target)
    return found.packages[0].filename if found.packages else None


ORDER = [
    "demo-1.0-cp312-cp312-manylinux_2_36_x86_64.whl",
    "demo-1.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "demo-1.0-cp312-cp312-manylinux1_x86_64.whl",
    "demo-1.0-cp312-cp312-linux_x86_64.whl",
    "demo-1.0-cp312-abi3-manylinux_2_28_x86_64.whl",
    "demo-1.0-cp38-abi3-manylinux_2_28_x86_64.whl",
    "demo-1.0-py3-none-manylinux_2_28_x86_64.whl",
    "demo-1.0-cp312-none-any.whl",
    "demo-1.0-py3-none-any.whl",
]


@given(st.permutations(ORDER), st.integers(1, len(ORDER)))
def test_the_most_specific_tag_wins_whatever_the_order(names: list[str], count: int) -> None:
    assert chosen(package(*names[:count])) == min(names[:count], key=ORDER.index)


def test_the_highest_build_number_wins_among_equal_tags() -> None:
    """Build numbers compare as numbers, and no number is below any."""
    names = [f"demo-1.0{build}-py3-none-any.whl" for build in ("", "-9", "-10", "-10b")]
    assert chosen(package(*names)) == names[3]
    assert chosen(package(*names[:3])) == names[2]


@pytest.mark.parametrize(
    "name",
    [
        "demo-1.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "demo-1.0-cp313-abi3-manylinux_2_28_x86_64.whl",
        "demo-1.0-cp312-cp312t-manylinux_2_28_x86_64.whl",
        "demo-1.0-cp312-cp312d-manylinux_2_28_x86_64.whl",
        "demo-1.0-cp312-cp312-manylinux_2_37_x86_64.whl",
        "demo-1.0-cp312-cp312-manylinux_2_28_aarch64.whl",
        "demo-1.0-cp312-cp312-musllinux_1_2_x86_64.whl",
        "demo-1.0-cp312-cp312-win_amd64.whl",
        "demo-1.0-py2-none-any.whl",
        "demo-1.0.zip",
        "other-1.0-py3-none-any.whl",
    ],
)
def test_a_wheel_for_something_else_is_not_taken(name: str) -> None:
    assert chosen(package(name)) is None


def test_musl_and_arm_images_take_their_own_wheels() -> None:
    names = [f"demo-1.0-cp312-cp312-{p}.whl" for p in ("manylinux_2_28_x86_64", "musllinux_1_1_x86_64")]
    arm = "demo-1.0-cp312-cp312-manylinux2014_aarch64.whl"
    assert chosen(package(*names, arm), MUSL) == names[1]
    assert chosen(package(*names, arm), ARM) == arm
    assert not fits("demo-1.0-cp312-cp312-musllinux_1_2_x86_64.whl", replace(MUSL, libc_version="1.1"))


def test_tags_are_those_of_the_image_with_legacy_names() -> None:
    found = list(tags(TARGET))
    assert found[0] == Tag("cp312", "cp312", "manylinux_2_36_x86_64")
    assert found[-1] == Tag("py30", "none", "any")
    assert len(found) == len(set(found))
    names = list(platforms(TARGET))
    assert names[names.index("manylinux2014_x86_64") - 1] == "manylinux_2_17_x86_64"
    assert {"manylinux2010_x86_64", "manylinux1_x86_64", "manylinux_2_5_x86_64"} <= set(names)
    assert "manylinux2010_aarch64" not in set(platforms(ARM))


@pytest.mark.parametrize(
    ("marker", "holds"),
    [
        ("python_version == '3.12' and python_full_version == '3.12.7'", True),
        ("sys_platform == 'linux' and platform_system == 'Linux' and os_name == 'posix'", True),
        ("platform_machine == 'x86_64' and implementation_name == 'cpython'", True),
        ("platform_machine == 'aarch64'", False),
        ("sys_platform == 'win32'", False),
        ("extra == 'never'", False),
        ("'dev' in dependency_groups", False),
    ],
)
def test_packages_whose_marker_does_not_hold_on_the_image_are_left_out(marker: str, holds: bool) -> None:
    assert (chosen(package("demo-1.0-py3-none-any.whl", marker=marker)) is not None) == holds


def test_the_marker_environment_has_every_variable_of_pep_508() -> None:
    assert len(marker_environment(TARGET)) == 11


def test_the_previous_locks_file_is_kept_while_it_is_offered_and_fits() -> None:
    better, plain = "demo-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", "demo-1.0-py3-none-any.whl"
    resolved = package(better, plain)
    kept = Lock(BASE, TARGET, (LockedPackage("demo", "1.0", plain, f"{1:064x}"),))
    changed = Lock(BASE, TARGET, (LockedPackage("demo", "1.0", plain, "f" * 64),))
    assert choose((resolved,), TARGET, preferences=kept).packages[0].filename == plain
    assert choose((resolved,), TARGET, preferences=changed).packages[0].filename == better


def test_hashes_choose_among_fitting_wheels_only() -> None:
    resolved = package("demo-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", "demo-1.0-py3-none-any.whl")
    found = choose((resolved,), TARGET, hashes={"demo": {f"{1:064x}"}})
    assert found.packages[0].filename == "demo-1.0-py3-none-any.whl"
    with pytest.raises(ResolveError, match="demo 1"):
        choose((resolved,), TARGET, hashes={"demo": {"e" * 64}})


def test_a_wheel_without_a_hash_is_refused() -> None:
    resolved = package("demo-1.0-py3-none-any.whl")
    bare = replace(resolved, wheels=(replace(resolved.wheels[0], sha256=None),))
    with pytest.raises(ResolveError, match="no sha256"):
        choose((bare,), TARGET)


def test_a_package_in_two_versions_is_refused() -> None:
    with pytest.raises(ResolveError, match="more than one version of demo"):
        choose((package("demo-1.0-py3-none-any.whl"), package("demo-2.0-py3-none-any.whl")), TARGET)


def test_the_version_and_address_of_a_local_version_are_decoded_and_clean() -> None:
    name = "demo-2.1+cu121-py3-none-any.whl"
    file = WheelFile(
        name, "https://u:p@download.example.com/demo-2.1%2Bcu121-py3-none-any.whl?sig=x#sha256=1", "1" * 64
    )
    (locked,) = choose((ResolvedPackage("demo", "2.1+cu121", None, (file,), None),), TARGET).packages
    assert (locked.version, locked.url) == (
        "2.1+cu121",
        "https://download.example.com/demo-2.1%2Bcu121-py3-none-any.whl",
    )


def test_the_error_names_each_package_what_there_is_and_the_ways_out() -> None:
    source = SourcePackage("demo", "https://files.example.com/demo-1.0.tar.gz", "1.0", "1" * 64)
    other = SourcePackage("other", "https://git.example.com/other", None, None, "c0ffee")
    missing = (
        package("demo-1.0-cp39-cp39-win_amd64.whl", source=source),
        ResolvedPackage("other", None, None, (), other),
    )
    text = str(no_fitting_wheel(missing, MUSL, builds=False))
    assert "demo 1.0: wheels for cp39-cp39-win_amd64 and a source distribution" in text
    assert "other: git commit c0ffee" in text
    assert "cp312-cp312-musllinux_1_2_x86_64" in text and "allow_source_builds" in text and "Dockerfile" in text
    assert "allow_source_builds" not in str(no_fitting_wheel(missing, MUSL, builds=True))


@pytest.mark.parametrize(("libc", "version"), [("glibc", "new"), ("bionic", "2.36"), ("glibc", "2")])
def test_an_unknown_libc_is_an_error_of_ours(libc: str, version: str) -> None:
    with pytest.raises(ResolveError, match="libc"):
        choose((package("demo-1.0-py3-none-any.whl"),), replace(TARGET, libc=libc, libc_version=version))
