"""Choosing one wheel a package for an image: a pure function of the lock document and the target.

The best tag wins (as pip ranks them), then the highest build number, then the file name. The tags are those of the
target, never of the machine that does the work (PEP 425, PEP 600, PEP 656)."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import BuildTag, InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from prefect_environments.core.errors import NoFittingWheel, ResolveError
from prefect_environments.core.lock import urls
from prefect_environments.core.lock.model import Lock, LockedPackage
from prefect_environments.core.lock.pylock import ResolvedPackage, SourcePackage, WheelFile
from prefect_environments.core.lock.target import ARCHITECTURES, Target

_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_OLDEST = {"x86_64": 5, "aarch64": 17}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The wheels that were found, and the packages that have sources only (or no wheel that fits)."""

    packages: tuple[LockedPackage, ...]
    missing: tuple[ResolvedPackage, ...]


def choose(
    resolved: tuple[ResolvedPackage, ...],
    target: Target,
    *,
    preferences: Lock | None = None,
    hashes: Mapping[str, Collection[str]] | None = None,
) -> Chosen:
    """One wheel for each package whose marker holds on the target.

    A file of `preferences` is kept while it is still offered for the same version. `hashes` has the allowed sha256
    digests (hex) by package name. Raises `ResolveError` if a hash rules out every wheel that fits, or if a package
    comes twice.
    """
    wanted = [package for package in resolved if _is_wanted(package, target)]
    names = [package.name for package in wanted]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ResolveError(f"the resolver gave more than one version of {', '.join(twice)} for {describe(target)}")
    kept = {(p.filename, p.sha256) for p in preferences.packages} if preferences else set()
    packages, missing = [], []
    for package in wanted:
        file = _best(package, target, kept, (hashes or {}).get(package.name))
        if file is None:
            missing.append(package)
        else:
            packages.append(file)
    return Chosen(tuple(packages), tuple(missing))


def _is_wanted(package: ResolvedPackage, target: Target) -> bool:
    if package.marker is None:
        return True
    try:
        # No extra is asked of the lock itself: those of the requirements are resolved into packages already.
        return package.marker.evaluate(marker_environment(target) | {"extra": ""}, "lock_file")
    except (UndefinedComparison, UndefinedEnvironmentName) as error:
        raise ResolveError(f"the marker of {package.name} cannot be evaluated: {error}; report it") from error


def _best(
    package: ResolvedPackage, target: Target, kept: Collection[tuple[str, str]], allowed: Collection[str] | None
) -> LockedPackage | None:
    fitting = list(_fitting(package, target))
    if not fitting:
        return None
    if allowed is not None:
        fitting = [item for item in fitting if item[1].sha256 in allowed]
        if not fitting:
            raise ResolveError(
                f"no wheel of {package.name} {package.version} for {describe(target)} has one of the sha256 values "
                f"that its --hash options allow; correct them, or remove them and let the lock pin the file"
            )
    same = [item for item in fitting if (item[1].filename, item[1].sha256) in kept]
    _, file = max(same or fitting, key=lambda item: item[0])
    if file.sha256 is None:
        raise ResolveError(
            f"{file.filename} has no sha256: its index gives none; use an index that does (PEP 503, PEP 691)"
        )
    _, version, _, _ = parse_wheel_filename(file.filename)
    return LockedPackage(package.name, str(version), file.filename, file.sha256, file.size, urls.clean(file.url))


_Rank = tuple[int, BuildTag, str]


def _fitting(package: ResolvedPackage, target: Target) -> Iterator[tuple[_Rank, WheelFile]]:
    ranks = _ranks(target)
    for file in package.wheels:
        try:
            name, _, build, tags = parse_wheel_filename(file.filename)
        except InvalidWheelFilename:
            continue  # indexes hold old files with names that no installer takes
        rank = min((ranks[tag] for tag in tags if tag in ranks), default=None)
        if rank is not None and name == canonicalize_name(package.name):
            # No build tag is `()`, which sorts below any (binary distribution format, "File name convention").
            yield (-rank, build, file.filename), file


def fits(filename: str, target: Target) -> bool:
    """Whether a wheel of this name can be installed in the image."""
    try:
        tags = parse_wheel_filename(filename)[3]
    except InvalidWheelFilename:
        return False
    return any(tag in _ranks(target) for tag in tags)


def tags(target: Target) -> Iterator[Tag]:
    """The tags that the image's interpreter accepts, best first."""
    version = tuple(int(part) for part in target.python_minor.split("."))
    interpreter = f"cp{version[0]}{version[1]}"
    names = list(platforms(target))
    # Without `abis`, packaging would ask the interpreter that runs this.
    yield from cpython_tags(version, abis=[interpreter], platforms=names)
    yield from compatible_tags(version, interpreter=interpreter, platforms=names)


@lru_cache(maxsize=64)
def _ranks(target: Target) -> dict[Tag, int]:
    ranks: dict[Tag, int] = {}
    for rank, tag in enumerate(tags(target)):
        ranks.setdefault(tag, rank)
    return ranks


def platforms(target: Target) -> Iterator[str]:
    """Platform tags of the image's libc and architecture, the newest first (PEP 600, PEP 656)."""
    machine = ARCHITECTURES[target.platform.architecture]
    major, minor = libc_version(target)
    if target.libc == "musl":
        yield from (f"musllinux_{major}_{n}_{machine}" for n in range(minor, -1, -1))
    else:
        for n in range(minor, _OLDEST[machine] - 1, -1):
            yield f"manylinux_{major}_{n}_{machine}"
            if n in _LEGACY:
                yield f"{_LEGACY[n]}_{machine}"
    yield f"linux_{machine}"


def libc_version(target: Target) -> tuple[int, int]:
    """`(2, 36)` of `2.36`; raises `ResolveError` for anything that is no libc version."""
    try:
        major, minor = (int(part) for part in target.libc_version.split(".")[:2])
    except ValueError:
        raise ResolveError(f"{target.libc} version {target.libc_version!r} is not two numbers") from None
    if target.libc not in ("glibc", "musl"):
        raise ResolveError(f"libc {target.libc!r} is not known; expected glibc or musl")
    return major, minor


def marker_environment(target: Target) -> dict[str, str]:
    """The target's values of all environment markers (PEP 508); the kernel's release and version are unknown."""
    return {
        "implementation_name": "cpython",
        "implementation_version": target.python,
        "os_name": "posix",
        "platform_machine": ARCHITECTURES[target.platform.architecture],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": target.python,
        "python_version": target.python_minor,
        "sys_platform": "linux",
    }


def describe(target: Target) -> str:
    """`Python 3.12.7, glibc 2.36, linux/amd64`."""
    return f"Python {target.python}, {target.libc} {target.libc_version}, {target.platform}"


def no_fitting_wheel(missing: tuple[ResolvedPackage, ...], target: Target, *, builds: bool) -> NoFittingWheel:
    """The error that names each package, what there is of it, what the image offers, and the ways out."""
    lines = [f"no wheel fits the image ({describe(target)}) for these packages; what there is instead:"]
    lines += [f"  {package.name} {package.version or ''}".rstrip() + f": {_offer(package)}" for package in missing]
    lines.append(f"the image takes, best first: {', '.join(str(tag) for tag in islice(tags(target), 4))}, …")
    if builds:
        lines.append("choose a base image with another Python, pin a version that has a wheel, or use a Dockerfile")
    else:
        lines.append(
            "choose a base image with another Python, pin a version that has a wheel, set allow_source_builds for "
            "pure-Python sources (their build code then runs here), or use a Dockerfile for compiled ones"
        )
    return NoFittingWheel("\n".join(lines))


def _offer(package: ResolvedPackage) -> str:
    found = sorted({file.filename.removesuffix(".whl").split("-", 2)[-1] for file in package.wheels})
    # uv leaves out most wheels that cannot fit; so nothing is said about there being none.
    offers = [f"wheels for {', '.join(found[:8])}{' …' if len(found) > 8 else ''}"] if found else []
    if package.source is not None:
        offers.append(_kind(package.source))
    return " and ".join(offers) or "no files"


def _kind(source: SourcePackage) -> str:
    if source.sha256 is not None:
        return "a source distribution"
    return f"git commit {source.commit}" if source.commit else "a source directory"
