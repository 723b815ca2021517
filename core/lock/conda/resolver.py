"""Resolving with rattler's solver.

**Channels** have strict priority as conda's `channel_priority: strict`: a package comes from the first channel that
has it in any version. rattler's gateway would drop the versions that a requested spec doesn't match before it looks
for the first channel, so that a lower channel could serve what the higher one has in other versions only. Therefore
the solver is asked for names, and the specs are constraints. `channel::package` is exempt, as in conda.

**The machine** that resolves has no part in the answer: virtual packages are the image's, `.condarc`, rattler's
configuration and stored credentials are not read, `channel_relations` (CEP 42) of channels are not followed.

**The cache** holds repodata only, below the folder that is given; what a channel says of freshness is obeyed.
"""

import asyncio
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_environments.core.errors import ResolveError, SpecificationError
from prefect_environments.core.files import storage
from prefect_environments.core.lock import urls
from prefect_environments.core.lock.conda import channels, explain, network, preferences, virtual
from prefect_environments.core.lock.conda.request import CondaRequest
from prefect_environments.core.lock.conda.specs import Spec, read_all
from prefect_environments.core.lock.model import LockedCondaPackage

if TYPE_CHECKING:
    from rattler import Channel, Gateway, GenericVirtualPackage, MultiSource, RepoDataRecord

logger = logging.getLogger(__name__)

_PAUSE = 0.02
_PLACES = ("url", "fn", "channel")


class CondaResolver:
    """Resolves match specs with rattler; see the module's docstring for what it decides.

    `cache` is a folder for repodata. `timeout` is in seconds, for reading channels and solving together.
    """

    def __init__(self, *, cache: Path, timeout: float = 900) -> None:
        self._cache = cache
        self._timeout = timeout

    async def resolve(self, request: CondaRequest) -> tuple[LockedCondaPackage, ...]:
        """The packages, sorted by name.

        Raises `SpecificationError` for a spec or channel that cannot be used, before any network; `ResolveError` with
        the solver's explanation if nothing satisfies the request, if a channel cannot be read, if the time is over, or
        for a package without a sha256; `StorageError` if the cache cannot be written.
        """
        plan = _plan(request)
        from rattler.exceptions import FetchRepoDataError, GatewayError, IoError, SolverError  # noqa: PLC0415  # only where conda is asked for

        try:
            with storage("the cache of conda's channels", self._cache):
                self._cache.mkdir(parents=True, exist_ok=True)
                async with asyncio.timeout(self._timeout):
                    records = await self._solve(plan)
        except SolverError as error:
            if "has been cancelled" in str(error):
                raise _too_slow(self._timeout) from None
            raise explain.unsolved(request, str(error), plan.virtual) from None
        except (GatewayError, FetchRepoDataError, IoError) as error:
            raise explain.unreadable(request, str(error)) from None
        except TimeoutError:
            raise _too_slow(self._timeout) from None
        return tuple(sorted((_locked(record) for record in records), key=lambda package: package.name))

    async def _solve(self, plan: "_Plan") -> list["RepoDataRecord"]:
        import rattler  # noqa: PLC0415

        gateway = rattler.Gateway(
            cache_dir=self._cache, client=network.client(plan.urls(), plan.request.credentials), show_progress=False
        )
        try:
            return await rattler.solve(
                sources=plan.sources(),
                specs=[rattler.MatchSpec(_rooted(spec, plan)) for spec in plan.specs],
                constraints=[rattler.MatchSpec(spec.canonical()) for spec in plan.specs],
                gateway=gateway,
                platforms=[rattler.Subdir(plan.request.subdir), rattler.Subdir("noarch")],
                locked_packages=await self._kept(plan, gateway),
                virtual_packages=plan.offered,
                timeout=timedelta(seconds=self._timeout),
                channel_priority=rattler.ChannelPriority.Strict,
                exclude_newer=plan.newest,
                timestamp_policy="allow-missing" if plan.request.allow_undated else "require-timestamp",
                channel_relations="disabled",
            )
        finally:
            # rattler's threads let go of their Python objects a moment after the answer is there; an interpreter that
            # ends in that moment is aborted
            await asyncio.sleep(_PAUSE)

    async def _kept(self, plan: "_Plan", gateway: "Gateway") -> list["RepoDataRecord"]:
        request = plan.request
        if request.upgrade or not request.preferences:
            return []
        kept = await preferences.kept(request.preferences, plan.tiers, plan.pins, gateway, request.subdir)
        logger.info("%d of %d earlier conda packages are still there", len(kept), len(request.preferences))
        return kept


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request that was read. `pins` are channel URLs by package name."""

    request: CondaRequest
    specs: tuple[Spec, ...]
    tiers: tuple[channels.Tier, ...]
    pins: dict[str, str]
    virtual: dict[str, tuple[str, str]]
    offered: list["GenericVirtualPackage"]
    newest: datetime | None

    def urls(self) -> list[str]:
        return [url for tier in self.tiers for url in tier.urls]

    def sources(self) -> list["Channel | MultiSource"]:
        import rattler  # noqa: PLC0415

        found: list[Channel | MultiSource] = []
        for tier in self.tiers:
            members = [rattler.Channel(url) for url in tier.urls]
            found.append(members[0] if len(members) == 1 else rattler.MultiSource("defaults", members))
        return found


def _plan(request: CondaRequest) -> _Plan:
    specs = read_all(request.specs)
    if not specs:
        raise SpecificationError("conda is asked for no package: name at least one")
    pins = _pins(specs, request.channel_alias)
    tiers = channels.tiers(
        request.channels,
        (spec.channel for spec in specs if spec.channel),
        alias=request.channel_alias,
        defaults=request.default_channels,
    )
    network.headers((url for tier in tiers for url in tier.urls), request.credentials)
    has = virtual.virtual_packages(request)
    return _Plan(request, specs, tiers, pins, has, virtual.to_rattler(has), _newest(request.exclude_newer))


def _pins(specs: Iterable[Spec], alias: str) -> dict[str, str]:
    pins: dict[str, str] = {}
    for spec in specs:
        url = channels.url_of(spec.channel, alias) if spec.channel else ""
        if url and pins.setdefault(spec.name, url) != url:
            raise SpecificationError(f"{spec.name} is asked for from two conda channels: leave one of them")
    return pins


def _rooted(spec: Spec, plan: _Plan) -> str:
    """The spec's name, with the channel that it has to come from."""
    url = plan.pins.get(spec.name)
    return f'{spec.name}[channel="{url}"]' if url else spec.name


def _newest(text: str | None) -> datetime | None:
    """The last moment of a date, or a time; raises `SpecificationError`."""
    if text is None:
        return None
    try:
        if len(text) == len("2026-01-31"):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, 23, 59, 59, 999_000, tzinfo=UTC)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except ValueError:
        pass
    raise SpecificationError(
        f"exclude_newer is {text!r:.60}: write a date (2026-01-31) or a time (2026-01-31T12:00:00Z)"
    )


def _locked(record: "RepoDataRecord") -> LockedCondaPackage:
    said: dict[str, Any] = json.loads(record.to_json())
    url = urls.clean(record.url)
    if record.sha256 is None:
        raise ResolveError(
            f"the conda package {record.file_name} has no sha256 in its channel's repodata ({url}), and cannot be "
            "pinned: index the channel again with a tool that writes it, or choose another version"
        )
    return LockedCondaPackage(
        name=record.name.normalized,
        version=str(said["version"]),
        build=str(said["build"]),
        subdir=record.subdir,
        filename=record.file_name,
        sha256=record.sha256.hex(),
        size=record.size,
        url=url,
        record={key: value for key, value in said.items() if key not in _PLACES},
    )


def _too_slow(seconds: float) -> ResolveError:
    return ResolveError(
        f"reading conda's channels and solving took more than {seconds:g} seconds: name fewer channels, or narrow the "
        "versions"
    )
