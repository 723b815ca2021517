"""Which packages share a layer: pure, within the budget, and one change moves little."""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_environments.core.build.plan import (
    BIN_MAX,
    BUDGET,
    group,
    layer_key,
    plan_layers,
    size_of,
    skeleton_key,
)
from prefect_environments.core.errors import BaseImageError
from prefect_environments.core.lock.model import Lock, LockedBase, LockedPackage
from tests.core.build.parts import TARGET

ROOM = 90


def _package(name: str, size: int | None, version: str = "1") -> LockedPackage:
    filename = f"{name}-{version}-py3-none-any.whl"
    return LockedPackage(name, version, filename, hashlib.sha256(filename.encode()).hexdigest(), size)


def _lock(packages: Sequence[LockedPackage]) -> Lock:
    return Lock(LockedBase("example.com/base:1", "sha256:" + "0" * 64), TARGET, tuple(packages))


def _usual(choose: random.Random, count: int) -> list[LockedPackage]:
    """Sizes as in real environments: half under 120 kB, some of hundreds of megabytes."""
    sizes = [int(min(2e9, max(2e3, choose.lognormvariate(math.log(120e3), 2)))) for _ in range(count)]
    return [_package(f"p{choose.randrange(10**9)}", size) for size in sizes]


def _sent_again(before: Sequence[LockedPackage], after: Sequence[LockedPackage], new: LockedPackage) -> int:
    """Bytes of layers that `after` has and `before` has not, beside the new package's own."""
    known = set(group(before, ROOM))
    return sum(map(size_of, (p for bin in group(after, ROOM) if bin not in known for p in bin if p != new)))


_PACKAGES = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}[0-9]{0,3}", fullmatch=True),
    st.one_of(st.none(), st.integers(0, 10**6), st.integers(0, 3 * 10**9)),
    max_size=60,
).map(lambda sizes: [_package(name, size) for name, size in sizes.items()])


@settings(deadline=None)
@given(_PACKAGES, st.integers(1, 50))
def test_every_package_is_in_exactly_one_group_and_there_is_room(packages: list[LockedPackage], room: int) -> None:
    groups = group(packages, room)
    assert sorted(p.name for g in groups for p in g) == sorted(p.name for p in packages)
    assert len(groups) == min(room, len(packages))
    assert all(list(g) == sorted(g, key=lambda p: p.name) for g in groups)


@settings(deadline=None)
@given(_PACKAGES, st.integers(1, 50), st.randoms())
def test_the_order_of_the_input_does_not_count(packages: list[LockedPackage], room: int, choose: random.Random) -> None:
    mixed = choose.sample(packages, len(packages))
    assert set(group(packages, room)) == set(group(mixed, room))
    assert plan_layers(_lock(packages), BUDGET - 1 - room) == plan_layers(_lock(mixed), BUDGET - 1 - room)


@pytest.mark.parametrize("count", [ROOM - 1, ROOM, ROOM + 1, 100, 130, 180, 250, 400])
def test_an_added_package_sends_at_most_a_bins_bytes_again(count: int) -> None:
    choose = random.Random(count)
    costs = []
    for _ in range(15):
        packages, new = _usual(choose, count), _usual(choose, 1)[0]
        costs.append(_sent_again(packages, [*packages, new], new))
    assert max(costs) <= BIN_MAX, "bytes"
    assert sorted(costs)[7] <= BIN_MAX / 4, "the usual cost is far below"


@pytest.mark.parametrize("count", [ROOM, 100, 150, 250])
def test_a_new_version_sends_at_most_a_bins_bytes_again(count: int) -> None:
    choose = random.Random(count)
    for _ in range(15):
        packages = _usual(choose, count)
        at = choose.randrange(count)
        new = _package(packages[at].name, int(size_of(packages[at]) * choose.uniform(0.9, 1.1)), "2")
        assert _sent_again(packages, [*packages[:at], new, *packages[at + 1 :]], new) <= BIN_MAX


def test_a_package_too_many_costs_little_also_where_all_are_of_one_size() -> None:
    """No limit jumps: with one package too many, one pair shares a layer and all others stay alone."""
    for size in (50_000, 2_000_000, 50_000_000):
        packages = [_package(f"p{n}", size) for n in range(ROOM + 1)]
        shared = [g for g in group(packages, ROOM) if len(g) > 1]
        assert [len(g) for g in shared] == [2]


def test_growing_one_by_one_never_changes_more_than_a_few_groups() -> None:
    choose = random.Random(3)
    packages = _usual(choose, 300)
    before: set[tuple[LockedPackage, ...]] = set()
    for count in range(1, 301):
        after = set(group(packages[:count], ROOM))
        assert len(after - before) <= 12, count
        before = after


def test_while_there_is_room_each_package_is_alone() -> None:
    packages = _usual(random.Random(1), ROOM)
    assert set(group(packages, ROOM)) == {(package,) for package in packages}


def test_big_packages_stay_alone() -> None:
    packages = _usual(random.Random(2), 300)
    biggest = sorted(packages, key=size_of)[-40:]
    assert {(package,) for package in biggest} <= set(group(packages, ROOM))


def test_the_biggest_layer_comes_first_then_the_name_decides() -> None:
    packages = [_package("b", 5), _package("a", 5), _package("z", 900), _package("unknown", None)]
    assert [layer.packages[0].name for layer in plan_layers(_lock(packages), 3)] == ["unknown", "z", "a", "b"]


def test_titles_name_the_packages() -> None:
    packages = [_package(f"p{n}", 10) for n in range(6)]
    assert plan_layers(_lock(packages[:1]), 3)[0].title == "p0 1"
    (layer,) = plan_layers(_lock(packages), BUDGET - 2)
    assert layer.title == "6 packages: p0, p1, p2, p3, …"


@pytest.mark.parametrize("layers", [BUDGET - 1, BUDGET, 126])
def test_a_base_with_too_many_layers_is_refused_with_advice(layers: int) -> None:
    with pytest.raises(BaseImageError, match=f"has {layers} layers; at most 98 .* Flatten it"):
        plan_layers(_lock([_package("a", 1)]), layers)


def test_the_budget_holds_with_the_base_and_the_empty_environment() -> None:
    packages = _usual(random.Random(4), 200)
    for base in (1, 5, 50, 98):
        assert base + 1 + len(plan_layers(_lock(packages), base)) == BUDGET


def test_a_layer_key_depends_on_packages_and_python_minor_alone() -> None:
    packages = (_package("a", 10), _package("b", 20))
    lock = _lock(packages)
    key = layer_key(packages, lock)
    assert len(key) == 64 and int(key, 16)
    moved = tuple(replace(package, url="https://mirror.example.com/x", size=None) for package in packages)
    assert layer_key(moved, lock) == key
    patch = replace(
        lock, target=replace(TARGET, python="3.11.9"), base=LockedBase("example.com/o", "sha256:" + "1" * 64)
    )
    assert layer_key(packages, patch) == key
    assert layer_key(packages, replace(lock, target=replace(TARGET, python="3.12.1"))) != key
    assert layer_key((packages[0], _package("b", 20, "2")), lock) != key
    assert layer_key(packages[:1], lock) != key


def test_the_empty_environments_key_depends_on_python_and_its_place() -> None:
    lock = _lock([])
    for target in (replace(TARGET, python="3.11.9"), replace(TARGET, interpreter="/usr/local/bin/python3.11")):
        assert skeleton_key(replace(lock, target=target)) != skeleton_key(lock)
    assert skeleton_key(_lock([_package("a", 1)])) == skeleton_key(lock)
