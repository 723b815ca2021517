"""How old packages must be: what a limit says, and what stays whatever its age."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock import age
from prefect_environments.core.lock.age import AgeLimit, gone_back
from prefect_environments.core.lock.conda.request import CondaRequest
from prefect_environments.core.lock.conda.resolver import CondaResolver
from prefect_environments.core.lock.model import Lock, LockedBase, LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.target import Platform, Target
from tests.support.channel import Channel, CondaPackage

DAY = 86_400_000  # milliseconds
START = 1_704_067_200_000  # 2024-01-01T00:00:00Z


def lock(**versions: str) -> Lock:
    """With a wheel for each name; a version that starts with `conda:` is conda's."""
    wheels = [LockedPackage(n, v, f"{n}-{v}-py3-none-any.whl", "0" * 64) for n, v in versions.items() if v[0] != "c"]
    conda = [
        LockedCondaPackage(n, v[6:], "0", "noarch", f"{n}.conda", "0" * 64) for n, v in versions.items() if v[0] == "c"
    ]
    target = Target("3.12.1", "/usr/bin/python3", "glibc", "2.36")
    return Lock(LockedBase("base", f"sha256:{'0' * 64}"), target, tuple(wheels), conda=tuple(conda))


@given(st.integers(1, 3650))
def test_a_limit_is_so_many_days_before_now_in_rfc_3339(days: int) -> None:
    limit = AgeLimit.of_days(days)
    assert limit is not None and str(limit).endswith("Z")
    assert datetime.fromisoformat(str(limit)) == limit.moment
    assert timedelta() <= datetime.now(UTC) - limit.moment - timedelta(days=days) < timedelta(hours=1)


def test_what_is_missing_or_earlier_went_back_whoever_brings_it() -> None:
    old = lock(same="1.0", up="1.9", down="1.10", gone="1.0", moved="conda:2.0", odd="conda:9e")
    new = lock(same="1.0", up="1.10", down="1.9", new="1.0", moved="2.0", odd="conda:9f")
    assert {package.name for package in gone_back(old, new)} == {"down", "gone", "odd"}


def test_what_stays_is_held_without_allowing_yanked_files() -> None:
    """A `==` would (PEP 592); local versions have no other way."""
    settled = (*lock(a="1.0").packages, *lock(b="1.0+cpu").packages)
    assert age.constraints(settled) == ("a>=1.0,<=1.0", "b==1.0+cpu")
    assert age.uv_options(None, settled, ()) == []
    options = age.uv_options("2026-01-01T00:00:00Z", settled, ("c",))
    assert options[2:] == [f"--exclude-newer-package={name}=false" for name in "abc"]


@pytest.mark.parametrize("said", ["", "warning: `notes.txt` is missing an upload date", "`a` is missing"])
def test_other_words_of_uv_name_no_undated_package(said: str) -> None:
    assert age.undated(said) == {}


async def test_conda_packages_tell_their_age_and_undated_ones_need_a_switch(tmp_path: Path) -> None:
    channel = Channel(tmp_path / "channel")
    for version, day in (("1.0", 0), ("2.0", 10)):
        channel.add(CondaPackage("lib", version, subdir="linux-64", timestamp=START + day * DAY))
    request = CondaRequest(("lib",), (channel.url,), Platform(), "glibc", "2.36", upgrade=True)
    resolver = CondaResolver(cache=tmp_path / "cache")
    limit = AgeLimit(datetime(2024, 1, 5, tzinfo=UTC))
    (young,) = await resolver.resolve(request)
    (old,) = await resolver.resolve(replace(request, exclude_newer=str(limit)))
    assert (young.version, old.version) == ("2.0", "1.0")
    assert limit.is_too_young(young) and not limit.is_too_young(old)
    assert not limit.is_too_young(replace(young, record={}))
    for folder in channel.folder.iterdir():
        for file in folder.glob("repodata.json"):
            told = re.sub(r'"timestamp": *[0-9]+,? *', "", file.read_text())
            file.write_text(told)
    undated = replace(request, exclude_newer=str(limit))
    fresh = CondaResolver(cache=tmp_path / "fresh")
    with pytest.raises(ResolveError):
        await fresh.resolve(undated)
    (found,) = await fresh.resolve(replace(undated, allow_undated=True))
    assert found.version == "2.0"
