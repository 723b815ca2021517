"""What a resolver is asked and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prefect_environments.core.lock.model import Lock, LockedBase, LockedPackage
from prefect_environments.core.lock.target import Target


@dataclass(frozen=True)
class ResolveRequest:
    """Everything that decides a lock, besides what the indexes hold at that moment.

    `packages` are normalised requirement lines, perhaps with ` --hash=sha256:…` after them; local paths are absolute.
    """

    packages: tuple[str, ...]
    target: Target
    base: LockedBase
    constraints: tuple[str, ...] = ()
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    pre: bool = False
    only_binary: tuple[str, ...] = ()
    """Packages (or `:all:`) whose sources are not looked at: an older version with a wheel wins over a newer one."""
    preferences: Lock | None = None
    """The previous version's lock: its versions and files are kept where they still satisfy the request."""
    upgrade: bool = False
    """Resolve afresh: `preferences` are not looked at."""
    require_hashes: bool = False
    """Every package must have an allowed `--hash`, dependencies included, as in pip's hash-checking mode."""
    allow_source_builds: bool = False
    """Build pure-Python sources into wheels on this machine, which runs their code."""
    exclude_newer: str | None = None
    """Only files uploaded before this date or RFC 3339 time; see `core.lock.age`."""
    allow_undated: bool = False
    """With `exclude_newer`: files of which an index tells no upload time are taken, too."""
    settled: tuple[LockedPackage, ...] = ()
    """With `exclude_newer`: packages that stay at their version, whatever their age."""
    with_pip: bool = True
    """The environment gets pip also where nothing asks for it; not where conda brings it."""
    pylock: str = ""
    """Text of a given lock (PEP 751), which is used as it is in place of `packages`."""
    index_credentials: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False, compare=False)
    """User and password by host, `host:port` or URL prefix."""


class Resolver(Protocol):
    """Turns requirements into pinned wheels for a target."""

    async def resolve(self, request: ResolveRequest) -> Lock:
        """The lock; raises `ResolveError` if nothing satisfies the request, `NoFittingWheel` for missing wheels."""
