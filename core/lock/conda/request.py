"""What the conda resolver is asked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from prefect_environments.core.lock.model import LockedCondaPackage
from prefect_environments.core.lock.target import Platform

SUBDIRS = {"amd64": "linux-64", "arm64": "linux-aarch64"}
"""OCI architecture names to conda's subdirs."""


def _channel_alias() -> str:
    return os.environ.get("CONDA_CHANNEL_ALIAS", "")


def _default_channels() -> tuple[str, ...]:
    names = os.environ.get("CONDA_DEFAULT_CHANNELS", "").split(",")
    return tuple(name.strip() for name in names if name.strip())


@dataclass(frozen=True)
class CondaRequest:
    """Everything that decides the answer, besides what the channels hold at that moment.

    `libc` is `glibc` or `musl`, `libc_version` and `cuda` are what the image has, such as `2.36` and `12.4`.
    """

    specs: tuple[str, ...]
    """Match specs, as `normalise_spec` gives them."""
    channels: tuple[str, ...]
    """Names, URLs or absolute folders; the first channel that has a package is the only one that it comes from."""
    platform: Platform
    libc: str
    libc_version: str
    cuda: str | None = None
    preferences: tuple[LockedCondaPackage, ...] = ()
    """Packages to keep where the channels still have them and they still fit."""
    upgrade: bool = False
    """Resolve afresh: `preferences` are not looked at."""
    credentials: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False, compare=False)
    """User and password by host, `host:port` or URL prefix."""
    exclude_newer: str | None = None
    """Only packages built until this date (UTC, the whole day) or RFC 3339 time."""
    allow_undated: bool = False
    """With `exclude_newer`: packages of which a channel tells no time are taken, too."""
    channel_alias: str = field(default_factory=_channel_alias)
    """The address that bare channel names are below: by default $CONDA_CHANNEL_ALIAS, else rattler's own default."""
    default_channels: tuple[str, ...] = field(default_factory=_default_channels)
    """What the channel name `defaults` stands for: by default $CONDA_DEFAULT_CHANNELS (separated by commas)."""

    @property
    def subdir(self) -> str:
        """conda's name of the platform, such as `linux-64`."""
        return SUBDIRS[self.platform.architecture]
