"""Resolving against real channels in folders."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.errors import ResolveError, SpecificationError, StorageError
from prefect_environments.core.lock.conda import CondaRequest, CondaResolver
from prefect_environments.core.lock.model import Lock, LockedBase, LockedCondaPackage
from prefect_environments.core.lock.target import Platform, Target
from tests.support.channel import Channel, CondaPackage, example_packages

PYTHONS = (CondaPackage("python", "3.11.9"), CondaPackage("python", "3.12.4"))


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    """The packages of the standard channel, with two Pythons that are only names."""
    made = Channel(tmp_path / "a channel")
    made.add(*(replace(package, subdir="linux-64") for package in (*PYTHONS, *example_packages("3.11.9"))))
    return made


@pytest.fixture
def resolver(tmp_path: Path) -> CondaResolver:
    return CondaResolver(cache=tmp_path / "cache")


def request(*specs: str, channels: tuple[Channel, ...], **options: Any) -> CondaRequest:
    urls = tuple(channel.url for channel in channels)
    return CondaRequest(specs, urls, **{"platform": Platform(), "libc": "glibc", "libc_version": "2.36", **options})


def chosen(packages: tuple[LockedCondaPackage, ...]) -> dict[str, str]:
    return {package.name: f"{package.version}-{package.build}" for package in packages}


async def test_packages_are_pinned_with_what_the_channel_says_of_them(
    channel: Channel, resolver: CondaResolver
) -> None:
    packages = await resolver.resolve(request("greeter", "python=3.11", channels=(channel,)))
    assert chosen(packages) == {"datafiles": "1.0-0", "greeter": "1.2-py_0", "python": "3.11.9-0"}
    greeter = packages[1]
    told = json.loads((channel.folder / "noarch" / "repodata.json").read_text())["packages.conda"]
    expected = told["greeter-1.2-py_0.conda"]
    assert (greeter.subdir, greeter.sha256, greeter.size) == ("noarch", expected["sha256"], expected["size"])
    assert greeter.url == f"{channel.url}/noarch/greeter-1.2-py_0.conda"
    assert greeter.record["depends"] == ["python >=3.8", "datafiles"]
    target = Target("3.11.9", "/opt/env/bin/python", "glibc", "2.36")
    lock = Lock(LockedBase("base", "sha256:" + "0" * 64), target, (), conda=packages)
    assert Lock.from_pylock(lock.to_pylock()) == lock
    assert tomllib.loads(lock.to_pylock())["tool"]["prefect-environments"]["conda"][1]["record"]["noarch"] == "python"


@pytest.mark.parametrize(
    ("specs", "version"),
    [
        (["numlib"], "2.0-a_0"),
        (["numlib=1"], "1.1-a_0"),
        (["numlib=1.0.*"], "1.0-a_1"),
        (["numlib==1.0"], "1.0-a_1"),
        (["numlib=1.0=a_0"], "1.0-a_0"),
        (["numlib=1.0.*=b*"], "1.0-b_0"),
        (["numlib[version='<2',build=a_0]"], "1.1-a_0"),
        (["numlib<2", "numlib!=1.1"], "1.0-a_1"),
        (["NumLib 1.1"], "1.1-a_0"),
    ],
)
async def test_versions_builds_and_wildcards(
    channel: Channel, resolver: CondaResolver, specs: list[str], version: str
) -> None:
    assert chosen(await resolver.resolve(request(*specs, channels=(channel,))))["numlib"] == version


async def test_the_first_channel_that_has_a_package_is_the_only_one(tmp_path: Path, resolver: CondaResolver) -> None:
    first, second = Channel(tmp_path / "first"), Channel(tmp_path / "second")
    first.add(CondaPackage("lib", "1.0", subdir="linux-64"))
    second.add(
        CondaPackage("lib", "2.0", subdir="linux-64"), CondaPackage("app", depends=("lib >=2",), subdir="linux-64")
    )
    both = (first, second)
    assert chosen(await resolver.resolve(request("lib", channels=both))) == {"lib": "1.0-0"}
    assert chosen(await resolver.resolve(request("lib", channels=both[::-1]))) == {"lib": "2.0-0"}
    for spec in ("lib>=2", "app"):
        with pytest.raises(ResolveError, match="lib"):
            await resolver.resolve(request(spec, channels=both))
    with pytest.raises(ResolveError, match="channel::package"):
        await resolver.resolve(request("app", channels=both))
    pinned = f"{second.url}::lib>=2"
    assert chosen(await resolver.resolve(request(pinned, "app", channels=both))) == {"app": "1.0-0", "lib": "2.0-0"}
    assert chosen(await resolver.resolve(request(pinned, channels=(first,)))) == {"lib": "2.0-0"}
    named = f"lib[channel='{second.folder}']"
    assert chosen(await resolver.resolve(request(named, channels=(first,)))) == {"lib": "2.0-0"}


async def test_names_are_below_the_alias_in_channels_and_in_specs(tmp_path: Path, resolver: CondaResolver) -> None:
    for name, version in (("one", "1.0"), ("two", "2.0")):
        Channel(tmp_path / name).add(CondaPackage("lib", version, subdir="linux-64"))
    asked = CondaRequest(("two::lib",), ("one",), Platform(), "glibc", "2.36", channel_alias=tmp_path.as_uri())
    (package,) = await resolver.resolve(asked)
    assert (package.version, package.url) == ("2.0", f"{tmp_path.as_uri()}/two/linux-64/lib-2.0-0.conda")


async def test_the_members_of_defaults_share_one_priority(tmp_path: Path, resolver: CondaResolver) -> None:
    channels = [Channel(tmp_path / name) for name in ("main", "r")]
    for channel, version in zip(channels, ("1.0", "2.0"), strict=True):
        channel.add(CondaPackage("lib", version, subdir="linux-64"))
    asked = CondaRequest(("lib>=2",), ("defaults",), Platform(), "glibc", "2.36")
    found = await resolver.resolve(replace(asked, default_channels=tuple(channel.url for channel in channels)))
    assert chosen(found) == {"lib": "2.0-0"}


async def test_two_channels_for_one_package_are_refused(channel: Channel, resolver: CondaResolver) -> None:
    with pytest.raises(SpecificationError, match="two conda channels"):
        await resolver.resolve(request(f"{channel.url}::numlib", "/srv/other::numlib", channels=(channel,)))


async def test_virtual_packages_are_those_of_the_image(
    channel: Channel, resolver: CondaResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's own, and conda's variables that override them, do not count."""
    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "12.4")
    monkeypatch.setenv("CONDA_OVERRIDE_GLIBC", "99.1")
    asked = request("cudalib", channels=(channel,))
    with pytest.raises(ResolveError, match=r"image has no __cuda.*__cuda >=12.*CUDA comes with the base image"):
        await resolver.resolve(asked)
    with pytest.raises(ResolveError, match=r"image has __cuda 11\.8"):
        await resolver.resolve(replace(asked, cuda="11.8"))
    assert chosen(await resolver.resolve(replace(asked, cuda="12.4"))) == {"cudalib": "1.0-0"}
    with pytest.raises(ResolveError, match=r"image has __glibc 2\.36"):
        await resolver.resolve(request("libnew", channels=(channel,)))
    with pytest.raises(ResolveError, match="image has no __glibc"):
        await resolver.resolve(request("libold", channels=(channel,), libc="musl", libc_version="1.2"))
    assert chosen(await resolver.resolve(request("libold", channels=(channel,)))) == {"libold": "1.0-0"}


async def test_every_virtual_package_of_an_image(tmp_path: Path, resolver: CondaResolver) -> None:
    channel = Channel(tmp_path / "virtual")
    needs = ("__unix", "__linux >=4.18", "__archspec 1 x86_64", "__musl >=1.2")
    channel.add(CondaPackage("app", depends=needs, subdir="linux-64"))
    asked = request("app", channels=(channel,), libc="musl", libc_version="1.2")
    assert chosen(await resolver.resolve(asked)) == {"app": "1.0-0"}


async def test_the_platform_is_the_image_s(tmp_path: Path, resolver: CondaResolver) -> None:
    channel = Channel(tmp_path / "arm")
    arm = CondaPackage("app", subdir="linux-aarch64", depends=("__archspec 1 aarch64", "data"))
    channel.add(arm, CondaPackage("data", noarch="generic"))
    found = await resolver.resolve(request("app", channels=(channel,), platform=Platform("arm64")))
    assert [package.subdir for package in found] == ["linux-aarch64", "noarch"]
    with pytest.raises(ResolveError, match="linux-64"):
        await resolver.resolve(request("app", channels=(channel,)))


async def test_adding_a_package_moves_no_other_and_upgrading_does(channel: Channel, resolver: CondaResolver) -> None:
    before = await resolver.resolve(request("numlib=1.0=a_0", "python=3.11", channels=(channel,)))
    asked = request("numlib", "python", "greeter", channels=(channel,), preferences=before)
    assert chosen(await resolver.resolve(asked)).items() >= chosen(before).items()
    upgraded = chosen(await resolver.resolve(replace(asked, upgrade=True)))
    assert (upgraded["numlib"], upgraded["python"]) == ("2.0-a_0", "3.12.4-0")
    moved = chosen(await resolver.resolve(replace(asked, specs=("numlib>=2", "python"))))
    assert moved == {"numlib": "2.0-a_0", "python": "3.11.9-0"}


async def test_a_preferred_package_that_left_the_channel_or_changed_is_not_chosen(
    tmp_path: Path, channel: Channel, resolver: CondaResolver
) -> None:
    before = await resolver.resolve(request("numlib=1.1", channels=(channel,)))
    asked = request("numlib", channels=(channel,), preferences=before)
    assert chosen(await resolver.resolve(asked)) == {"numlib": "1.1-a_0"}
    rebuilt = replace(asked, preferences=tuple(replace(package, sha256="0" * 64) for package in before))
    assert chosen(await resolver.resolve(rebuilt)) == {"numlib": "2.0-a_0"}
    other = Channel(tmp_path / "other")
    other.add(CondaPackage("numlib", "3.0", subdir="linux-64"))
    assert chosen(await resolver.resolve(replace(asked, channels=(other.url,)))) == {"numlib": "3.0-0"}


async def test_a_preference_does_not_break_the_priority_of_channels(
    tmp_path: Path, channel: Channel, resolver: CondaResolver
) -> None:
    before = await resolver.resolve(request("numlib=1.1", channels=(channel,)))
    first = Channel(tmp_path / "first")
    first.add(CondaPackage("unrelated", subdir="linux-64"))
    asked = request("numlib", channels=(first, channel), preferences=before)
    assert chosen(await resolver.resolve(asked)) == {"numlib": "1.1-a_0"}
    first.add(CondaPackage("numlib", "0.1", subdir="linux-64"))
    assert chosen(await resolver.resolve(asked)) == {"numlib": "0.1-0"}
    pinned = replace(asked, specs=(f"{first.url}::numlib",), channels=(channel.url,))
    assert chosen(await resolver.resolve(pinned)) == {"numlib": "0.1-0"}


async def test_packages_that_are_newer_than_asked_are_left_out(tmp_path: Path, resolver: CondaResolver) -> None:
    channel = Channel(tmp_path / "dated")
    day = 1_704_067_200_000  # 2024-01-01T00:00:00Z
    for version, hours in (("1.0", 0), ("2.0", 23), ("3.0", 25)):
        channel.add(CondaPackage("lib", version, subdir="linux-64", timestamp=day + hours * 3_600_000))
    asked = request("lib", channels=(channel,))
    for moment, version in {
        "2024-01-01": "2.0",
        "2024-01-01T00:00:00Z": "1.0",
        "2024-01-02T03:30:00+02:00": "3.0",
        "2024-01-02T02:30:00+02:00": "2.0",
    }.items():
        assert chosen(await resolver.resolve(replace(asked, exclude_newer=moment))) == {"lib": f"{version}-0"}
    with pytest.raises(ResolveError, match="choose a later time"):
        await resolver.resolve(replace(asked, exclude_newer="2020-01-01"))
    for wrong in ("yesterday", "2024-01-01T00:00:00", "2024-13-01"):
        with pytest.raises(SpecificationError, match="exclude_newer"):
            await resolver.resolve(replace(asked, exclude_newer=wrong))


async def test_a_package_without_sha256_is_refused_by_name(tmp_path: Path, resolver: CondaResolver) -> None:
    channel = Channel(tmp_path / "old")
    channel.add(CondaPackage("lib", subdir="linux-64"), sha256=None)
    with pytest.raises(ResolveError, match=r"lib-1\.0-0\.conda has no sha256"):
        await resolver.resolve(request("lib", channels=(channel,)))


async def test_the_whole_explanation_is_told(channel: Channel, resolver: CondaResolver) -> None:
    channel.add(CondaPackage("needy", subdir="linux-64", depends=("numlib >=2", "ghost >=1")))
    with pytest.raises(
        ResolveError, match=r"needy 1\.0 would require\n.*ghost >=1.*\nNone of the channels has ghost >=1 for linux-64"
    ):
        await resolver.resolve(request("needy", channels=(channel,)))
    with pytest.raises(ResolveError, match=r"None of the channels has nothing \* for linux-64"):
        await resolver.resolve(request("nothing", channels=(channel,)))
    channel.add(CondaPackage("strict", subdir="linux-64", depends=("numlib >=2",)))
    with pytest.raises(
        ResolveError, match=r"(?s)satisfies strict, numlib<2.*strict 1\.0.*constraint numlib <2.*Loosen"
    ):
        await resolver.resolve(request("strict", "numlib<2", channels=(channel,)))


async def test_a_channel_that_cannot_be_read_is_told_as_such(tmp_path: Path, resolver: CondaResolver) -> None:
    damaged = Channel(tmp_path / "damaged")
    (damaged.folder / "noarch" / "repodata.json").write_text("{")
    for folder, why in ((tmp_path / "absent", "check the channel's name"), (damaged.folder, "failed to parse")):
        with pytest.raises(ResolveError, match=f"(?s)channel cannot be read.*{folder.name}.*{why}"):
            await resolver.resolve(CondaRequest(("lib",), (str(folder),), Platform(), "glibc", "2.36"))


async def test_bad_input_is_refused_before_a_channel_is_read(tmp_path: Path, resolver: CondaResolver) -> None:
    nowhere = Channel(tmp_path / "channel")
    for asked in (
        request(channels=(nowhere,)),
        request("a b c d", channels=(nowhere,)),
        request("lib", channels=()),
        request("lib", channels=(nowhere,), cuda="twelve!"),
    ):
        with pytest.raises(SpecificationError):
            await resolver.resolve(asked)
    assert not (tmp_path / "cache").exists()


async def test_the_time_is_limited(channel: Channel, tmp_path: Path) -> None:
    with pytest.raises(ResolveError, match="took more than 1e-06 seconds"):
        await CondaResolver(cache=tmp_path / "cache", timeout=1e-6).resolve(request("numlib", channels=(channel,)))


async def test_a_cache_that_cannot_be_written_is_told(channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cache of conda's channels"):
        await CondaResolver(cache=tmp_path / "file" / "cache").resolve(request("numlib", channels=(channel,)))
