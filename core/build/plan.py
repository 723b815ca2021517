"""Which packages share a layer, and in which order layers lie: pure functions of the lock.

One layer a package while the budget lasts. Past it, big packages stay alone and small ones share bins by the hash
of their names, so that an added package changes its own bin and a few more small ones at most.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from packaging.utils import canonicalize_name

from prefect_environments.core import canonical
from prefect_environments.core.build import recipe
from prefect_environments.core.errors import BaseImageError
from prefect_environments.core.lock.model import Lock, LockedCondaPackage, LockedPackage
from prefect_environments.core.oci import digest as digests

BUDGET = 100
"""Layers of an image, base included. Engines stop at 127; jobs add a few of their own."""

BIN_MAX = 10 * 1000 * 1000
"""What one added package may make us send again beside itself, in bytes. A goal that `group` is tested to keep for
hundreds of packages of the usual sizes; where even the smallest branches are larger, so are the bins."""

_LIGHTEST = 4 * 1024
_SIZE_UNKNOWN = 1024 * 1024  # counted for a wheel whose index does not tell its size


_P = TypeVar("_P", LockedPackage, LockedCondaPackage)


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """A layer to be: its key (what its bytes depend on), a title for readers, and what is in it, by name.

    It is of wheels or of conda packages, never of both.
    """

    key: str
    title: str
    packages: tuple[LockedPackage, ...] = ()
    conda: tuple[LockedCondaPackage, ...] = ()
    replaced: frozenset[str] = frozenset()
    """Names of the conda packages whose Python distribution pip's replaces."""

    @property
    def contents(self) -> tuple[LockedPackage | LockedCondaPackage, ...]:
        return (*self.packages, *self.conda)


def plan_layers(lock: Lock, base_layers: int) -> list[PlannedLayer]:
    """The package layers of a lock above `base_layers` of the base and the one of the empty environment."""
    room, needed = BUDGET - base_layers - 1, 2 if lock.conda and lock.packages else 1
    if room < needed:
        raise BaseImageError(
            f"the base image {lock.base.name} has {base_layers} layers; at most {BUDGET - 1 - needed} leave room for "
            "packages. Flatten it (docker build --squash, docker export and import) or choose another base"
        )
    for_conda, for_pip = share(len(lock.conda), len(lock.packages), room)
    conda = [_planned_conda(packages, lock) for packages in _biggest_first(group(lock.conda, for_conda))]
    return conda + [_planned(packages, lock) for packages in _biggest_first(group(lock.packages, for_pip))]


def share(conda: int, pip: int, room: int) -> tuple[int, int]:
    """Layers for this many conda and pip packages: half of the room each, and what the one leaves is the other's.

    Nothing else counts, so that a package more on one side moves the other side's layers by one bin at most.
    """
    half = room // 2
    for_conda = min(conda, max(half, room - pip))
    return for_conda, min(pip, room - for_conda)


def group(packages: Sequence[_P], room: int) -> list[tuple[_P, ...]]:
    """Packages in at most `room` groups: each alone where that fits, else the small ones share bins.

    The packages are the leaves of a tree whose shape depends on nothing but names and size classes; the branches with
    the fewest bytes become bins, just as many as it takes. One package more is one leaf more: its own bin changes, and
    the next smallest branches become bins in turn. No bin changes for any other reason.
    """
    branches: list[_Node[_P]] = []
    root = _by_class(packages, branches)
    branches.sort(key=lambda node: (node.weight, node.packages[0].name))
    # a branch weighs more than the branches in it, so whatever is below a bin comes before it here
    bins = {id(node) for node in branches[: max(0, len(packages) - room)]}
    return _cut(root, bins) if root else []


def _biggest_first(groups: list[tuple[_P, ...]]) -> list[tuple[_P, ...]]:
    return sorted(groups, key=lambda packages: (-sum(map(size_of, packages)), packages[0].name))


def size_of(package: LockedPackage | LockedCondaPackage) -> int:
    """The archive's size in bytes, or a fixed guess where it is not known."""
    return _SIZE_UNKNOWN if package.size is None else package.size


@dataclass(frozen=True, slots=True)
class _Node(Generic[_P]):
    """A package, or a branch of two nodes. `packages` are all below it, by name; `weight` the sum of theirs."""

    packages: tuple[_P, ...]
    weight: int
    halves: tuple["_Node[_P]", ...] = ()


def _by_class(packages: Sequence[_P], branches: list[_Node[_P]]) -> _Node[_P] | None:
    """The tree of all packages: one tree a size class, joined from the smallest class up."""
    root = None
    for weight in sorted({_weight(package) for package in packages}):
        tree = _by_name([package for package in packages if _weight(package) == weight], branches)
        root = _branch(root, tree, branches) if root else tree
    return root


def _by_name(packages: Sequence[_P], branches: list[_Node[_P]], depth: int = 0) -> _Node[_P]:
    """The tree of one size class, split by the bits of the names' hashes: who joins leaves the others' places alone."""
    if len(packages) == 1 or depth > 255:  # as many bits as a hash has
        return _Node(_sorted(packages), sum(map(_weight, packages)))
    halves: tuple[list[_P], list[_P]] = ([], [])
    for package in packages:
        halves[_bit(package.name, depth)].append(package)
    if not halves[0] or not halves[1]:
        return _by_name(packages, branches, depth + 1)
    return _branch(_by_name(halves[0], branches, depth + 1), _by_name(halves[1], branches, depth + 1), branches)


def _branch(first: _Node[_P], second: _Node[_P], branches: list[_Node[_P]]) -> _Node[_P]:
    node = _Node(_sorted(first.packages + second.packages), first.weight + second.weight, (first, second))
    branches.append(node)
    return node


def _cut(node: _Node[_P], bins: set[int]) -> list[tuple[_P, ...]]:
    if not node.halves or id(node) in bins:
        return [node.packages]
    return [group for half in node.halves for group in _cut(half, bins)]


def _weight(package: LockedPackage | LockedCondaPackage) -> int:
    """The size up to the next power of two: a new version of about the same size keeps its class and its weight."""
    return max(_LIGHTEST, 1 << (max(1, size_of(package)) - 1).bit_length())


def _sorted(packages: Sequence[_P]) -> tuple[_P, ...]:
    return tuple(sorted(packages, key=lambda package: (package.name, package.filename)))


def _bit(name: str, index: int) -> int:
    return hashlib.sha256(name.encode()).digest()[index // 8] >> (7 - index % 8) & 1


def _planned(packages: tuple[LockedPackage, ...], lock: Lock) -> PlannedLayer:
    title = f"{packages[0].name} {packages[0].version}" if len(packages) == 1 else _names("packages", packages)
    return PlannedLayer(layer_key(packages, lock), title, packages)


def _planned_conda(packages: tuple[LockedCondaPackage, ...], lock: Lock) -> PlannedLayer:
    from_pip = {package.name for package in lock.packages}
    replaced = frozenset(package.name for package in packages if canonicalize_name(package.name) in from_pip)
    first = packages[0]
    alone = f"{first.name}={first.version}={first.build}"
    title = alone if len(packages) == 1 else _names("conda packages", packages)
    key = digests.hex_of(canonical.digest(recipe.conda_inputs(packages, lock.target.python_minor, replaced)))
    return PlannedLayer(key, title, conda=packages, replaced=replaced)


def _names(kind: str, packages: Sequence[LockedPackage | LockedCondaPackage]) -> str:
    return f"{len(packages)} {kind}: {', '.join(p.name for p in packages[:4])}{', …' * (len(packages) > 4)}"


def layer_key(packages: tuple[LockedPackage, ...], lock: Lock) -> str:
    """64 hex digits that name a layer by what its bytes depend on: packages, prefix, Python, bytecode, recipe."""
    return digests.hex_of(canonical.digest(recipe.layer_inputs(packages, lock.target, lock.bytecode)))


def skeleton_key(lock: Lock) -> str:
    """The key of the layer that holds the empty environment."""
    inputs = recipe.conda_skeleton_inputs() if lock.conda else recipe.skeleton_inputs(lock.target)
    return digests.hex_of(canonical.digest(inputs))
