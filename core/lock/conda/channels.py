"""Channels: where conda packages come from, in their order of priority.

`nodefaults` is conda's way to say that nothing is added to the list; nothing ever is here. `defaults` is not one
channel, and whose hosts it means is a matter of licence: it stands for `CondaRequest.default_channels`, whose members
share one priority as in conda, and is refused where these are not set.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prefect_environments.core.errors import SpecificationError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_SUBDIR = re.compile(r"noarch|(linux|osx|win|emscripten|wasi|freebsd|zos)-[a-z0-9]+")
_TOKEN = re.compile(r"(?i)/t/[^/\s]+")
_USER_INFO = re.compile(r"://[^/\s]*@")
_PARAMETER = re.compile(r"://[^\s\[]*[?&#][^\s=&]*=(?!=)")


@dataclass(frozen=True, slots=True)
class Tier:
    """Channels of one priority, by their canonical URLs; more than one only where `defaults` says so."""

    urls: tuple[str, ...]


def check_secrets(text: str, what: str) -> None:
    """Raise `SpecificationError` if an address in `text` holds a password or token; the message does not."""
    secret = _USER_INFO.search(text) or _PARAMETER.search(text)
    if secret or ("://" in text and _TOKEN.search(text)):
        raise SpecificationError(
            f"{what} has an address with a password, token or parameter in it, which is not shown here: it would be "
            "stored in plain text. Give the address without it, and the user and password as credentials of its host"
        )


def check(channel: str) -> str:
    """`channel` if it is a name, an http(s) or file URL, or an absolute folder; else `SpecificationError`."""
    check_secrets(channel, "a conda channel")
    if "://" in channel:
        return _check_url(channel)
    if channel.startswith("/"):
        if not channel.isprintable():
            raise _refused(channel, "it has characters that cannot be printed")
        return channel
    if channel.startswith(("~", ".")):
        raise _refused(channel, "write a folder as an absolute path, because it has to mean the same on every worker")
    if channel == "local":
        raise _refused(channel, "it means this machine's own builds: give the folder that they are in")
    if not _NAME.fullmatch(channel):
        raise _refused(channel, "a channel is a name (conda-forge, nvidia/label/cuda-12.4.0), a URL or a folder")
    if _SUBDIR.fullmatch(channel.rpartition("/")[2]):
        raise _refused(channel, "it ends with a platform, which the definition has of its own: leave it out")
    return channel


def url_of(channel: str, alias: str) -> str:
    """The canonical URL of a channel, with a slash at its end. `alias` is what names are below; empty: rattler's."""
    import rattler  # noqa: PLC0415  # only where conda is asked for
    from rattler.exceptions import InvalidChannelError, InvalidUrlError  # noqa: PLC0415

    check(channel)
    if alias:
        _check_url(alias)
    config = rattler.ChannelConfig(f"{alias.rstrip('/')}/", "/") if alias else rattler.ChannelConfig(root_dir="/")
    try:
        name = Path(channel).as_uri() if channel.startswith("/") else channel.rstrip("/")
        return str(rattler.Channel(name, config).base_url)
    except (InvalidChannelError, InvalidUrlError) as error:
        raise _refused(channel, str(error)) from None


def tiers(listed: Iterable[str], pinned: Iterable[str], *, alias: str, defaults: tuple[str, ...]) -> tuple[Tier, ...]:
    """The channels by priority, none twice: those that are listed, then those that only a spec names."""
    found: list[Tier] = []
    known: set[str] = set()
    for channel in (*listed, *pinned):
        if channel == "nodefaults":
            continue
        members = _defaults(defaults) if channel == "defaults" else (channel,)
        urls = dict.fromkeys(url_of(member, alias) for member in members)
        if fresh := tuple(url for url in urls if url not in known):
            known.update(fresh)
            found.append(Tier(fresh))
    if not found:
        raise SpecificationError("conda packages are asked for, but no channel: name one, such as conda-forge")
    return tuple(found)


def _defaults(channels: tuple[str, ...]) -> tuple[str, ...]:
    if not channels or "defaults" in channels:
        raise SpecificationError(
            "the channel 'defaults' stands for addresses that this installation doesn't know: name the channels "
            "themselves (often conda-forge alone is enough), or set CONDA_DEFAULT_CHANNELS to their URLs, with commas "
            "between them, on the worker"
        )
    return channels


def _check_url(url: str) -> str:
    check_secrets(url, "a conda channel")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise _refused(url, str(error)) from None
    if parts.scheme not in ("http", "https", "file") or not url.isprintable() or " " in url:
        raise _refused(url, "a channel's address begins with https://, http:// or file:/// and has no spaces")
    if "?" in url or "#" in url:
        raise _refused(url.partition("?")[0].partition("#")[0], "a channel's address has no '?' and no '#'")
    if bool(host) == (parts.scheme == "file") or (parts.scheme == "file" and not parts.path.strip("/")):
        raise _refused(url, "write https://HOST/CHANNEL, or file:///FOLDER")
    if _SUBDIR.fullmatch(parts.path.rstrip("/").rpartition("/")[2]):
        raise _refused(url, "it ends with a platform, which the definition has of its own: leave it out")
    return url


def _refused(channel: str, reason: str) -> SpecificationError:
    return SpecificationError(f"the conda channel {channel!r:.200} cannot be used: {reason}")
