"""How long packages must have been published before they are taken in.

**Indexes** tell when each file was uploaded (PEP 700, `upload-time`). uv leaves out younger files, and those without a
time: an index that tells none has nothing to offer, which is an error that names the packages, or with `allow_undated`
is no obstacle. Folders and pages of links (`find_links`), direct addresses and a given lock are taken as they are.

**Channels** tell when a package was indexed, or else built; the builder writes the latter.

**What is registered** was chosen before and must not go back because a limit is there now: packages of `settled` stay
at their version, whatever their age, if they would go back otherwise. rattler has no such exception, for preferred
and for pinned packages neither: an environment with such conda packages waits until they are old enough.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.lock.model import Lock, LockedCondaPackage, LockedPackage

_UNDATED = re.compile(r"`([^`]+)` is missing an upload date")
_LONGEST = 3650  # days


@dataclass(frozen=True, slots=True)
class AgeLimit:
    """Only what was published before `moment` is taken in. It is an option of resolving: no definition, lock or hash
    tells of it."""

    moment: datetime
    allow_undated: bool = False
    """Take files without an upload time, too, as if they were old enough."""

    @classmethod
    def of_days(cls, days: int, *, allow_undated: bool = False) -> "AgeLimit | None":
        """The limit of so many days before now, to the second; `None` for 0. Raises `DefinitionError`."""
        if isinstance(days, bool) or not 0 <= days <= _LONGEST:
            raise DefinitionError(f"exclude_newer_days is {days}; give 0 (no limit) to {_LONGEST} days")
        if days == 0:
            return None
        return cls((datetime.now(UTC) - timedelta(days=days)).replace(microsecond=0), allow_undated)

    def is_too_young(self, package: LockedCondaPackage) -> bool:
        """Whether a conda package is from after the limit, by its record (milliseconds since 1970)."""
        told = package.record.get("indexed_timestamp") or package.record.get("timestamp")
        return isinstance(told, int) and told > self.moment.timestamp() * 1000

    def __str__(self) -> str:
        """RFC 3339, as uv and rattler are told."""
        return self.moment.astimezone(UTC).isoformat().replace("+00:00", "Z")

    def is_before(self, created: str) -> bool:
        """Whether a version that was registered then (ISO 8601) may hold packages that are too young; a time that
        cannot be read may be any."""
        try:
            return self.moment < datetime.fromisoformat(created)
        except (ValueError, TypeError):
            return True


def gone_back(old: Lock, new: Lock) -> tuple[LockedPackage | LockedCondaPackage, ...]:
    """Packages of `old` that `new` lacks or has in an earlier version."""
    wheels = {package.name: package.version for package in new.packages}
    conda = {package.name: package.version for package in new.conda}
    return (
        *(p for p in old.packages if _is_earlier(wheels.get(p.name, conda.get(p.name)), p.version)),
        *(p for p in old.conda if _is_earlier(conda.get(p.name, wheels.get(p.name)), p.version)),
    )


def _is_earlier(version: str | None, than: str) -> bool:
    if version is None:
        return True
    try:
        return Version(version) < Version(than)
    except InvalidVersion:  # conda has others; a wrong guess costs one more resolution
        return version != than


def uv_options(limit: str | None, settled: Iterable[LockedPackage], undated: Iterable[str]) -> list[str]:
    """The command-line options; `undated` are packages whose files are taken without an upload time."""
    if limit is None:
        return []
    free = sorted({*(package.name for package in settled), *undated})
    return ["--exclude-newer", limit, *(f"--exclude-newer-package={name}=false" for name in free)]


def constraints(settled: Iterable[LockedPackage]) -> tuple[str, ...]:
    """Lines that hold the packages at their version. Not by `==` where that can be, which would allow yanked files."""
    return tuple(
        f"{p.name}=={p.version}" if "+" in p.version else f"{p.name}>={p.version},<={p.version}" for p in settled
    )


def undated(said: str) -> dict[str, str]:
    """A file of each package that uv found without an upload time, by the package's name."""
    found: dict[str, str] = {}
    for filename in _UNDATED.findall(said):
        try:
            name = parse_wheel_filename(filename)[0]
        except InvalidWheelFilename:
            try:
                name = parse_sdist_filename(filename)[0]
            except InvalidSdistFilename:
                continue
        found.setdefault(canonicalize_name(name), filename)
    return found
