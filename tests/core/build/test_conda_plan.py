"""Layers of environments with conda packages: keys, order, a fair share of the room, and variables."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_environments.core.build.assemble import environment
from prefect_environments.core.build.plan import BUDGET, plan_layers, share, skeleton_key
from prefect_environments.core.build.skeleton import write_skeleton
from prefect_environments.core.errors import BaseImageError
from prefect_environments.core.lock.model import Lock, LockedBase, LockedCondaPackage, LockedPackage
from tests.core.build.parts import TARGET, put_image


def conda(name: str, size: int = 1000, subdir: str = "linux-64", url: str = "") -> LockedCondaPackage:
    filename = f"{name}-1-0.conda"
    return LockedCondaPackage(name, "1", "0", subdir, filename, hashlib.sha256(name.encode()).hexdigest(), size, url)


def wheel(name: str, size: int = 1000) -> LockedPackage:
    return LockedPackage.of_file(
        f"{name.replace('-', '_')}-1-py3-none-any.whl", hashlib.sha256(name.encode()).hexdigest(), size
    )


def lock(*packages: LockedCondaPackage | LockedPackage, python: str = TARGET.python) -> Lock:
    return Lock(
        LockedBase("example.com/base:1", "sha256:" + "0" * 64),
        replace(TARGET, python=python),
        tuple(p for p in packages if isinstance(p, LockedPackage)),
        conda=tuple(p for p in packages if isinstance(p, LockedCondaPackage)),
    )


_COUNTS = st.integers(0, 300)


@given(_COUNTS, _COUNTS, st.integers(2, 98))
def test_the_room_is_used_up_and_shared_fairly(of_conda: int, of_pip: int, room: int) -> None:
    """Nobody gets less than half of it while they need it, and none is left free that somebody needs."""
    for_conda, for_pip = share(of_conda, of_pip, room)
    assert for_conda + for_pip == min(of_conda + of_pip, room)
    assert for_conda >= min(of_conda, room // 2) and for_pip >= min(of_pip, room // 2)
    assert for_conda <= of_conda and for_pip <= of_pip


@given(_COUNTS, _COUNTS, st.integers(2, 98))
def test_a_package_more_moves_the_others_share_by_one_at_most(of_conda: int, of_pip: int, room: int) -> None:
    before = share(of_conda, of_pip, room)
    assert abs(share(of_conda + 1, of_pip, room)[1] - before[1]) <= 1
    assert abs(share(of_conda, of_pip + 1, room)[0] - before[0]) <= 1


@settings(max_examples=15, deadline=None)
@given(_COUNTS, _COUNTS, st.integers(1, 90), st.randoms())
def test_layers_stay_in_the_budget_with_condas_below_pips(
    of_conda: int, of_pip: int, base: int, choose: Random
) -> None:
    packages: list[LockedCondaPackage | LockedPackage] = [conda(f"c{n}") for n in range(of_conda)]
    packages += [wheel(f"p{n}") for n in range(of_pip)]
    planned = plan_layers(lock(*packages), base)
    assert len(planned) <= BUDGET - base - 1
    kinds = [bool(layer.conda) for layer in planned]
    assert kinds == sorted(kinds, reverse=True) and not any(layer.conda and layer.packages for layer in planned)
    assert sorted(p.name for layer in planned for p in layer.contents) == sorted(p.name for p in packages)
    mixed = choose.sample(packages, len(packages))
    assert plan_layers(lock(*mixed), base) == planned
    assert len({layer.key for layer in planned}) == len(planned)


def test_a_base_that_leaves_one_layer_is_refused_for_two_kinds_of_packages() -> None:
    assert len(plan_layers(lock(conda("a"), conda("b")), BUDGET - 2)) == 1
    with pytest.raises(BaseImageError, match=f"at most {BUDGET - 3} leave room"):
        plan_layers(lock(conda("a"), wheel("b")), BUDGET - 2)


def key(package: LockedCondaPackage, *others: LockedPackage, python: str = "3.11.4") -> str:
    return next(layer.key for layer in plan_layers(lock(package, *others, python=python), 1) if layer.conda)


def test_a_layers_key_is_what_its_bytes_depend_on() -> None:
    """Not where the package was seen; Python's minor only for packages that are made for any Python."""
    native, module = conda("a"), conda("a", subdir="noarch")
    assert key(native) == key(replace(native, url="https://example.com/a", size=7)) == key(native, python="3.12.0")
    assert key(module) == key(module, python="3.11.9") != key(module, python="3.12.0")
    assert len({key(native), key(module), key(conda("b")), key(replace(native, sha256="0" * 64))}) == 4


def test_a_conda_package_that_pip_replaces_has_another_layer() -> None:
    package = conda("Typing_Extensions")
    planned = plan_layers(lock(package, wheel("typing-extensions"), conda("other")), 1)
    assert [layer.replaced for layer in planned if layer.conda] == [frozenset({"Typing_Extensions"}), frozenset()]
    assert key(package) != key(package, wheel("typing-extensions")) and key(package) == key(package, wheel("b"))


def test_the_empty_conda_environment_hides_the_bases_and_has_a_history() -> None:
    out = io.BytesIO()
    write_skeleton(TARGET, out, conda=True)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        names = [member.name for member in archive if not member.isdir()]
    assert names == ["opt/env/.wh..wh..opq", "opt/env/conda-meta/history"]
    assert skeleton_key(lock(conda("a"))) == skeleton_key(lock(conda("b"), python="3.12.1")) != skeleton_key(lock())


async def test_a_conda_environment_is_the_active_one(tmp_path: Path) -> None:
    given = ["PATH=/usr/bin:/opt/env/bin", "VIRTUAL_ENV=/venv", "CONDA_PREFIX=/opt/conda", "PYTHONPATH=/x", "KEPT=1"]
    base = await put_image(tmp_path, [], given)
    found = {name: value for name, value in environment(base, conda=True).items() if value is not None}
    assert found == {"PATH": "/opt/env/bin:/usr/bin", "CONDA_PREFIX": "/opt/env", "CONDA_DEFAULT_ENV": "/opt/env"}
    assert environment(base, conda=True)["VIRTUAL_ENV"] is None and environment(base)["VIRTUAL_ENV"] == "/opt/env"
