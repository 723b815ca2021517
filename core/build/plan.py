"""Which packages share a layer, and in which order layers lie: pure functions of the lock.

One layer a package while the budget lasts. Past it, big packages stay alone and small ones share bins by the hash
of their names, so that an added package changes only its own bin.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_environments.core import canonical
from prefect_environments.core.build import recipe
from prefect_environments.core.errors import BaseImageError
from prefect_environments.core.lock.model import Lock, LockedPackage
from prefect_environments.core.oci import digest as digests

BUDGET = 100
"""Layers of an image, base included. Engines stop at 127; jobs add a few of their own."""

BIN_MAX = 10 * 1000 * 1000
"""Bytes of wheels in one shared layer, at most: what one added package may cost to send."""

_SMALLEST_ALONE = 64 * 1024
_SIZE_UNKNOWN = 1024 * 1024  # counted for a wheel whose index does not tell its size


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """A layer to be: its key (what its bytes depend on), a title for readers, and the wheels in it, by name."""

    key: str
    title: str
    packages: tuple[LockedPackage, ...]


def plan_layers(lock: Lock, base_layers: int) -> list[PlannedLayer]:
    """The package layers of a lock above `base_layers` of the base and the one of the empty environment."""
    room = BUDGET - base_layers - 1
    if room < 1:
        raise BaseImageError(
            f"the base image {lock.base.name} has {base_layers} layers; at most {BUDGET - 2} leave room for packages. "
            "Flatten it (docker build --squash, docker export and import) or choose another base"
        )
    groups = group(lock.packages, room)
    groups.sort(key=lambda packages: (-sum(map(size_of, packages)), packages[0].name))
    return [_planned(packages, lock) for packages in groups]


def group(packages: Sequence[LockedPackage], room: int) -> list[tuple[LockedPackage, ...]]:
    """Packages in at most `room` groups; each alone where that fits, else small ones in bins.

    The limits (from which size a package is alone, how big a bin may be) go up in powers of two, so that a change
    of one package hardly ever moves them, and with them the other bins.
    """
    if len(packages) <= room:
        return [(package,) for package in packages]
    alone_from, bin_max = _SMALLEST_ALONE, BIN_MAX
    while True:
        alone = [(p,) for p in packages if size_of(p) >= alone_from]
        small = [p for p in packages if size_of(p) < alone_from]
        groups = alone + _bins(small, bin_max)
        if len(groups) <= room:
            return groups
        if alone_from < bin_max:
            alone_from *= 2
        else:
            alone_from, bin_max = alone_from * 2, bin_max * 2


def size_of(package: LockedPackage) -> int:
    """The wheel's size in bytes, or a fixed guess where it is not known."""
    return _SIZE_UNKNOWN if package.size is None else package.size


def _bins(packages: Sequence[LockedPackage], limit: int, depth: int = 0) -> list[tuple[LockedPackage, ...]]:
    """Split by the bits of the names' hashes until every bin fits: a bin that overflows leaves the others alone."""
    if not packages:
        return []
    if len(packages) == 1 or sum(map(size_of, packages)) <= limit or depth > 255:
        return [tuple(sorted(packages, key=lambda p: p.name))]
    halves: tuple[list[LockedPackage], list[LockedPackage]] = ([], [])
    for package in packages:
        halves[_bit(package.name, depth)].append(package)
    return _bins(halves[0], limit, depth + 1) + _bins(halves[1], limit, depth + 1)


def _bit(name: str, index: int) -> int:
    return hashlib.sha256(name.encode()).digest()[index // 8] >> (7 - index % 8) & 1


def _planned(packages: tuple[LockedPackage, ...], lock: Lock) -> PlannedLayer:
    if len(packages) == 1:
        title = f"{packages[0].name} {packages[0].version}"
    else:
        title = f"{len(packages)} packages: {', '.join(p.name for p in packages[:4])}{', …' * (len(packages) > 4)}"
    return PlannedLayer(layer_key(packages, lock), title, packages)


def layer_key(packages: tuple[LockedPackage, ...], lock: Lock) -> str:
    """64 hex digits that name a layer by what its bytes depend on: packages, prefix, Python minor, recipe."""
    return digests.hex_of(canonical.digest(recipe.layer_inputs(packages, lock.target)))


def skeleton_key(lock: Lock) -> str:
    """The key of the layer that holds the empty environment."""
    return digests.hex_of(canonical.digest(recipe.skeleton_inputs(lock.target)))
