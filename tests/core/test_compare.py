"""What differs between two locks and two versions, in words that a reader takes in at a glance."""

import hashlib
import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from prefect_environments.core.compare import LayerShare, compare_locks, compare_records
from prefect_environments.core.lock.model import Lock, LockedBase, LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.target import Target
from prefect_environments.core.oci.descriptor import IMAGE_CONFIG, LAYER_GZIP, Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.versions import VersionRecord

BASE = LockedBase("registry.example.com/python:3.12", f"sha256:{'a' * 64}")
TARGET = Target("3.12.7", "/usr/bin/python3.12", "glibc", "2.36")


def wheel(name: str, version: str, sha: str = "", size: int = 10) -> LockedPackage:
    sha256 = sha * 64 if sha else hashlib.sha256(f"{name} {version}".encode()).hexdigest()
    return LockedPackage(name, version, f"{name}-{version}-py3-none-any.whl", sha256, size)


def conda(name: str, version: str, build: str, sha: str = "c") -> LockedCondaPackage:
    return LockedCondaPackage(name, version, build, "linux-64", f"{name}-{version}-{build}.conda", sha * 64, 5)


OLD = Lock(BASE, TARGET, (wheel("pandas", "2.2.2"), wheel("six", "1.16"), wheel("pip", "26.1")))
NEW = replace(OLD, packages=(wheel("pandas", "2.2.3"), wheel("numpy", "2.1.0"), wheel("pip", "26.1")))


def test_packages_that_came_went_and_moved_are_a_line_each() -> None:
    found = compare_locks(OLD, NEW)
    assert found.to_text() == "+ numpy 2.1.0\n~ pandas 2.2.2 → 2.2.3\n- six 1.16"
    assert found.to_markdown() == f"```diff\n{found}\n```" == found._repr_markdown_()
    assert not found.equal and found.archive_bytes == (30, 30)
    with pytest.raises(FrozenInstanceError):
        found.packages = ()  # type: ignore[misc]


def test_equal_locks_have_no_difference_whatever_mirror_they_were_resolved_from() -> None:
    elsewhere = replace(OLD, packages=tuple(replace(p, url="https://mirror.example.com/x") for p in OLD.packages))
    found = compare_locks(OLD, elsewhere)
    assert found.equal and found.changes == () and found.to_text() == "no difference"


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (replace(OLD, base=replace(BASE, digest=f"sha256:{'b' * 64}")), f"~ base digest {BASE.digest} → sha256:bbb"),
        (replace(OLD, base=replace(BASE, name="registry.example.com/python:3.13")), "~ base registry.example.com/pyt"),
        (replace(OLD, target=replace(TARGET, python="3.12.8")), "~ Python 3.12.7 → 3.12.8"),
        (replace(OLD, target=replace(TARGET, libc_version="2.41")), "~ libc glibc 2.36 → glibc 2.41"),
        (replace(OLD, bytecode="3.12.7"), "~ bytecode of Python none → 3.12.7"),
        (replace(OLD, managed=False), "~ packages managed → as the image has them"),
        (replace(OLD, packages=(wheel("pandas", "2.2.2", "f"), *OLD.packages[1:])), "~ pandas 2.2.2 (another file)"),
    ],
)
def test_all_that_a_lock_holds_is_compared(new: Lock, says: str) -> None:
    assert compare_locks(OLD, new).to_text().startswith(says)


def test_condas_packages_are_told_with_their_builds_and_apart_from_pips() -> None:
    old = replace(OLD, conda=(conda("openssl", "3.1", "h1_0"), conda("six", "1.15", "py_0"), conda("zlib", "1", "h_0")))
    new = replace(OLD, conda=(conda("openssl", "3.1", "h1_1"), conda("zlib", "1", "h_0", "d")))
    assert compare_locks(old, new).to_text().splitlines() == [
        "~ openssl 3.1=h1_0 → 3.1=h1_1 (conda)",
        "- six 1.15=py_0 (conda)",
        "~ zlib 1=h_0 (conda) (another file)",
    ]


_versions = some.dictionaries(some.sampled_from("abcdef"), some.sampled_from(["1.0", "2.0", "2.1"]))


@given(_versions, _versions)
def test_a_diff_applied_to_the_old_lock_gives_the_new_one(before: dict[str, str], after: dict[str, str]) -> None:
    """Nothing is left out, nothing is told twice, and what is told of equal image hashes is nothing."""
    old, new = (Lock(BASE, TARGET, tuple(wheel(*item) for item in side.items())) for side in (before, after))
    found = compare_locks(old, new)
    versions = {package.name: package.version for package in old.packages}
    for change in found.packages:
        assert versions.get(change.name, "") == change.old
        versions[change.name] = change.new
        if change.sign == "-":
            del versions[change.name]
    assert versions == {package.name: package.version for package in new.packages}
    assert found.equal == (not found.changes) == (old.packages == new.packages)
    back = compare_locks(new, old)
    assert [(c.name, c.old, c.new) for c in back.packages] == [(c.name, c.new, c.old) for c in found.packages]


def manifest(*layers: str) -> ImageManifest:
    config = Descriptor(IMAGE_CONFIG, f"sha256:{'0' * 64}", 7)
    return ImageManifest(config, tuple(Descriptor(LAYER_GZIP, f"sha256:{x * 64}", int(x) * 1000) for x in layers))


A = VersionRecord(
    "team",
    "iris",
    1,
    "registry.example.com/iris@sha256:1",
    digest="sha256:1",
    image_hash="sha256:2",
    environment_variables={"SAME": "s", "GONE": "value-of-gone", "TOKEN": "value-1"},
    tags={"team": "a"},
    python_path="python",
    size=2_000_000,
)
B = replace(
    A,
    version=2,
    digest="sha256:3",
    image_hash="sha256:4",
    environment_variables={"SAME": "s", "NEW": "value-of-new", "TOKEN": "value-2"},
    description="better",
    tags={"team": "b"},
    size=3_000_000,
)


def test_versions_are_compared_by_packages_variables_size_and_layers() -> None:
    found = compare_records(A, B, (OLD, NEW), (manifest("1", "2", "2"), manifest("2", "3", "4")))
    assert found.layers == LayerShare(1, 2000, 1, 1000, 2, 7000)
    assert found.to_text().splitlines() == [
        "iris 1 → 2",
        "+ numpy 2.1.0",
        "~ pandas 2.2.2 → 2.2.3",
        "- six 1.16",
        "- variable GONE",
        "+ variable NEW",
        "~ variable TOKEN",
        "~ description",
        "~ tag team",
        "size: 2.0 MB → 3.0 MB",
        "layers shared: 1 (2.0 kB)",
        "layers only in 1: 1 (1.0 kB)",
        "layers only in 2: 2 (7.0 kB)",
        "image hash: differs",
        "image digest: differs",
    ]
    assert "| layers only in 2 | 2 (7.0 kB) |" in found._repr_markdown_()
    assert str(found) == found.to_text()


def test_no_value_of_a_variable_is_told() -> None:
    """A value may be a secret of a kind that nobody recognised; names are what a reader needs."""
    found = compare_records(A, B, (OLD, NEW), (None, None))
    for text in (found.to_text(), found.to_markdown(), json.dumps(found.to_dict()), repr(found)):
        assert "TOKEN" in text and "value-" not in text


def test_what_cannot_be_read_is_a_note_and_never_no_difference() -> None:
    found = compare_records(A, replace(A, version=2), (OLD, None), (manifest("1"), None), ["the lock is gone"])
    assert found.lock is None and found.layers is None
    assert found.to_text().splitlines()[1:2] == ["no difference in what could be read"]
    assert "the lock is gone" in found.to_text() and "- the lock is gone" in found.to_markdown()


def test_the_diff_as_json_holds_plain_values_only() -> None:
    found = compare_records(A, B, (OLD, NEW), (manifest("1"), manifest("2"))).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["lock"]["packages"][0] == {
        "sign": "+", "kind": "pip", "name": "numpy", "old": "", "new": "2.1.0", "detail": ""
    }  # fmt: skip
    assert found["lock"]["equal"] is False and found["sizes"] == [2_000_000, 3_000_000]
