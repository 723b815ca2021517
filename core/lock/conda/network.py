"""rattler's HTTP client for some channels: credentials live in memory and go to their channels only.

It has no keyring, no credentials file and no S3 or GCS settings of this machine: rattler's own client would read them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from prefect_environments.core import redact
from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.lock import urls

if TYPE_CHECKING:
    from rattler.networking import Client

_TIMEOUT = 60
_RETRIES = 2


def client(channels: Iterable[str], credentials: Mapping[str, tuple[str, str]]) -> "Client":
    """A client that sends each channel's user and password (RFC 7617) to that channel; redirects to other hosts lose
    them. Raises `SpecificationError` where two channels cannot be told apart."""
    from rattler.networking import AddHeadersMiddleware, Client, RetryMiddleware  # noqa: PLC0415

    return Client([RetryMiddleware(_RETRIES), AddHeadersMiddleware(headers(channels, credentials))], timeout=_TIMEOUT)


def headers(
    channels: Iterable[str], credentials: Mapping[str, tuple[str, str]]
) -> Callable[[str, str], dict[str, str] | None]:
    """What is sent for a host and a path: the headers of the channel that the path is below.

    rattler tells neither scheme nor port, so channels that differ in nothing else must have the same credentials.
    """
    known: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
    for channel in channels:
        parts = urlsplit(channel)
        if parts.scheme == "file":
            continue
        login = urls.credentials_for(channel, credentials)
        sent = urls.authorization(login)
        for secret in (*(login or ())[1:], *sent.values()):
            redact.remember(secret)
        place = (parts.hostname or "", f"{unquote(parts.path).rstrip('/')}/")
        if place in known and known[place][1] != sent:
            raise SpecificationError(
                f"the conda channels {known[place][0]} and {channel} differ in scheme or port only, and need different "
                "credentials, which would go to both: use one of them"
            )
        known[place] = (channel, sent)

    def find(host: str, path: str) -> dict[str, str] | None:
        below = [place for place in known if place[0] == host and unquote(path).startswith(place[1])]
        return known[max(below, key=lambda place: len(place[1]))][1] or None if below else None

    return find
