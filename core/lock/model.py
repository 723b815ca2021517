"""The lock: everything that decides an image's bytes, pinned. Written as PEP 751 `pylock.toml`."""

import tomllib
from dataclasses import dataclass, field, replace
from typing import Any

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock.target import Target
from prefect_environments.core.oci import digest as digests

TOOL = "prefect-environments"


@dataclass(frozen=True, slots=True)
class LockedBase:
    """The base image by digest. `name` is its reference without digest (never a folder's path)."""

    name: str
    digest: str

    @property
    def of_dockerfile(self) -> bool:
        """Whether it was built from a Dockerfile: its name is then `dockerfile:` and the hash of what went into it."""
        return self.name.startswith("dockerfile:")


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One wheel. Only `filename`, `version` and `sha256` count for hashes; `url` says where it was seen."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int | None = None
    url: str | None = field(default=None, compare=False)

    @classmethod
    def of_file(cls, filename: str, sha256: str, size: int | None) -> "LockedPackage":
        """A package by its wheel's file name; raises `ValueError` for one that is none."""
        name, version, _, _ = parse_wheel_filename(filename)
        return cls(str(name), str(version), filename, sha256, size)

    def identity(self) -> tuple[str, str, str]:
        return (self.filename, self.version, self.sha256)


@dataclass(frozen=True, slots=True)
class LockedCondaPackage:
    """One conda package (`.conda` or `.tar.bz2`). Only `subdir`, `filename` and `sha256` count for hashes.

    `url` holds no credentials. `record` is what the channel's repodata said of it, for resolving again.
    """

    name: str
    version: str
    build: str
    subdir: str
    filename: str
    sha256: str
    size: int | None = None
    url: str | None = field(default=None, compare=False)
    record: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def identity(self) -> tuple[str, str, str]:
        return (self.subdir, self.filename, self.sha256)


@dataclass(frozen=True, slots=True)
class Lock:
    """A resolved environment: base image, what it offers, and the packages for it, sorted by name."""

    base: LockedBase
    target: Target
    """The interpreter that the packages are for: the base image's, or conda's where `conda` holds one."""
    packages: tuple[LockedPackage, ...]
    requested: tuple[str, ...] = field(default=(), compare=False)
    """The definition's own requirement lines, for readers; not part of any hash."""
    conda: tuple[LockedCondaPackage, ...] = ()
    managed: bool = True
    """False: a user-managed image. Nothing is installed, the image is the base as it is."""
    bytecode: str = ""
    """Full version of the Python that compiles the packages' bytecode; empty: none is compiled."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "packages", tuple(sorted(self.packages, key=lambda p: p.name)))
        object.__setattr__(self, "conda", tuple(sorted(self.conda, key=lambda p: p.name)))

    def to_pylock(self) -> str:
        """The lock as PEP 751 text; `[tool.prefect-environments]` holds base and target."""
        import tomli_w  # noqa: PLC0415  # a found image needs no lock to be written

        own: dict[str, Any] = {
            "base": {"name": self.base.name, "digest": self.base.digest},
            "target": self.target.to_json(),
            "requested": list(self.requested),
        }
        if not self.managed:
            own["managed"] = False
        if self.bytecode:
            own["bytecode"] = self.bytecode
        if self.conda:
            own["conda"] = [_conda_table(package) for package in self.conda]
        document: dict[str, Any] = {
            "lock-version": "1.0",
            "created-by": TOOL,
            "packages": [_package_table(package) for package in self.packages],
            "tool": {TOOL: own},
        }
        if self.target.python:
            document["requires-python"] = f"=={self.target.python_minor}.*"
        return tomli_w.dumps(document)

    @classmethod
    def from_pylock(cls, text: str) -> "Lock":
        """Read what `to_pylock` wrote; raises `ResolveError` for anything else."""
        try:
            document = tomllib.loads(text)
            own = document["tool"][TOOL]
            base = LockedBase(own["base"]["name"], digests.check(own["base"]["digest"]))
            packages = tuple(_package(table) for table in document["packages"])
            return cls(
                base,
                Target.from_json(own["target"]),
                packages,
                tuple(own.get("requested", ())),
                tuple(_conda_package(table) for table in own.get("conda", ())),
                bool(own.get("managed", True)),
                str(own.get("bytecode", "")),
            )
        except (tomllib.TOMLDecodeError, KeyError, TypeError, IndexError) as error:
            raise ResolveError(f"not a lock of {TOOL}: {error!r}; build with upgrade=True to resolve afresh") from error

    def with_urls_of(self, other: "Lock") -> "Lock":
        """This lock with the download addresses that `other` has for the same files."""
        urls = {p.sha256: p.url for p in other.packages} | {p.sha256: p.url for p in other.conda}
        found = tuple(replace(p, url=urls.get(p.sha256, p.url)) for p in self.packages)
        conda = tuple(replace(p, url=urls.get(p.sha256, p.url)) for p in self.conda)
        return replace(self, packages=found, conda=conda)


def _package_table(package: LockedPackage) -> dict[str, Any]:
    wheel: dict[str, Any] = {"name": package.filename}
    if package.url is not None:
        wheel["url"] = package.url
    if package.size is not None:
        wheel["size"] = package.size
    wheel["hashes"] = {"sha256": package.sha256}
    return {"name": package.name, "version": package.version, "wheels": [wheel]}


def _conda_table(package: LockedCondaPackage) -> dict[str, Any]:
    table = {name: getattr(package, name) for name in ("name", "version", "build", "subdir", "filename", "sha256")}
    optional = {"size": package.size, "url": package.url, "record": _without_none(package.record) or None}
    return table | {name: value for name, value in optional.items() if value is not None}


def _conda_package(table: dict[str, Any]) -> LockedCondaPackage:
    digests.check(f"sha256:{table['sha256']}")
    text = {name: str(table[name]) for name in ("name", "version", "build", "subdir", "filename", "sha256")}
    return LockedCondaPackage(
        **text, size=table.get("size"), url=table.get("url"), record=dict(table.get("record", {}))
    )


def _without_none(record: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null."""
    return {name: value for name, value in record.items() if value is not None}


def _package(table: dict[str, Any]) -> LockedPackage:
    wheel = table["wheels"][0]
    filename, sha256 = wheel["name"], wheel["hashes"]["sha256"]
    digests.check(f"sha256:{sha256}")
    try:
        name, version, _, _ = parse_wheel_filename(filename)
    except InvalidWheelFilename as error:
        raise ResolveError(f"a lock names {filename!r}, which is no wheel file name") from error
    if canonicalize_name(table["name"]) != name:
        raise ResolveError(f"a lock gives the wheel {filename!r} to the package {table['name']!r}")
    return LockedPackage(name, str(version), filename, sha256, wheel.get("size"), wheel.get("url"))
