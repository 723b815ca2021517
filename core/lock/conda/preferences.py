"""Which packages of the previous lock are preferred: those that could be chosen today.

rattler takes a preferred record as it comes, whatever channel it is from: one that has left the channels, or that the
order of the channels hides, would come back.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect_environments.core.lock.conda.channels import Tier
from prefect_environments.core.lock.model import LockedCondaPackage

if TYPE_CHECKING:
    from rattler import Gateway, MatchSpec, RepoDataRecord


async def kept(
    packages: Sequence[LockedCondaPackage],
    tiers: Sequence[Tier],
    pins: dict[str, str],
    gateway: "Gateway",
    subdir: str,
) -> list["RepoDataRecord"]:
    """The channels' records of `packages`, by subdir, file name and sha256. `pins` are channels by package name."""
    import rattler  # noqa: PLC0415  # only where conda is asked for

    async def query(specs: list["MatchSpec"]) -> list["RepoDataRecord"]:
        channels = [rattler.Channel(url) for tier in tiers for url in tier.urls]
        found = await gateway.query(
            channels, [rattler.Subdir(subdir), rattler.Subdir("noarch")], specs, False, channel_relations="disabled"
        )
        return [record for records in found for record in records]

    rank = {url: number for number, tier in enumerate(tiers) for url in tier.urls}
    wanted = {package.identity() for package in packages}
    specs = [rattler.MatchSpec(_exactly(package)) for package in packages]
    chosen: dict[str, RepoDataRecord] = {}
    for record in await query(specs) if specs else ():
        name, channel = record.name.normalized, str(record.channel)
        sha256 = record.sha256.hex() if record.sha256 else ""
        if (record.subdir, record.file_name, sha256) not in wanted or pins.get(name, channel) != channel:
            continue
        if name not in chosen or rank[channel] < rank[str(chosen[name].channel)]:
            chosen[name] = record
    lower = [name for name, record in chosen.items() if name not in pins and rank[str(record.channel)] > 0]
    if lower:
        for record in await query([rattler.MatchSpec(name) for name in lower]):
            name = record.name.normalized
            if name in chosen and rank[str(record.channel)] < rank[str(chosen[name].channel)]:
                del chosen[name]  # a channel of higher priority has the package now, in whatever version
    return [chosen[name] for name in sorted(chosen)]


def _exactly(package: LockedCondaPackage) -> str:
    return f'{package.name}[version="=={package.version}",build="{package.build}"]'
