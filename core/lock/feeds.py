"""Requests to package indexes and channels with the login that belongs there: one way for all downloads."""

import logging
import netrc
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from yarl import URL

from prefect_environments.core.distribution.connection import proxy_for
from prefect_environments.core.distribution.failures import retry_after
from prefect_environments.core.lock import urls
from prefect_environments.core.redact import remember

Logins = Mapping[str, tuple[str, str]]

_REFUSED = frozenset({401, 403, 404})  # some servers hide what a login may not see
_MOVED = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_MAX = 10

logger = logging.getLogger(__name__)


def open_session(timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """A session for `request`, which looks up proxies and netrc files itself: with `trust_env`, aiohttp refuses a
    request whose host has a login here and in the user's netrc file."""
    return aiohttp.ClientSession(
        trust_env=False,
        timeout=timeout,
        # what arrives must be what was published: archives are hashed as they are
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
    )


@asynccontextmanager
async def request(
    session: aiohttp.ClientSession, method: str, url: str, known: Logins, *, headers: Mapping[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to a request, whatever its status, with the address's own login, else one of `known`, else one of the
    user's netrc file. Redirects are followed, to other hosts without that login.

    Where several of `known` are for the same host and the address is below none of theirs, the next one is tried when
    one is refused: an index's files need not lie below it. Raises aiohttp's errors.
    """
    address = _address(url)
    own = urls.user_info(url)
    logins = (own,) if own else urls.candidates(url, known) or (_of_the_user(address),)
    for number, login in enumerate(logins, 1):
        async with _followed(session, method, address, login, headers or {}) as response:
            if response.status not in _REFUSED or number == len(logins):
                yield response
                return


@asynccontextmanager
async def _followed(
    session: aiohttp.ClientSession,
    method: str,
    address: URL,
    login: tuple[str, str] | None,
    headers: Mapping[str, str],
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer at the end of the redirects, each by the proxy of its host."""
    for _ in range(_REDIRECTS_MAX):
        sent, proxy = {**headers, **urls.authorization(login)}, proxy_for(address)
        async with session.request(method, address, headers=sent, proxy=proxy, allow_redirects=False) as response:
            place = response.headers.get("Location")
            if response.status not in _MOVED or not place:
                yield response
                return
        target = address.join(_address(place))
        if target.scheme not in ("http", "https"):
            raise aiohttp.ClientError(f"a redirect to an address with {target.scheme}://")
        if target.origin() != address.origin():
            login = _of_the_user(target)
        address = target
    raise aiohttp.ClientError(f"more than {_REDIRECTS_MAX} redirects")


def _address(url: str) -> URL:
    try:
        return URL(urls.without_user_info(url).partition("#")[0])
    except ValueError:
        raise aiohttp.InvalidURL("an address that cannot be read") from None


def pause(response: Mapping[str, str] | None, default: float) -> float:
    """Seconds to wait before another try: what the headers ask for (RFC 9110, 10.2.3), at most a minute."""
    asked = retry_after((response or {}).get("Retry-After"))
    return default if asked is None else asked


def netrc_logins(env: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """User and password by host of the netrc file that `env` names, else of the home's; `""` is its default entry."""
    own = Path(env.get("NETRC") or Path(env.get("HOME", "/nonexistent")) / ".netrc")
    try:
        entries = netrc.netrc(str(own)).hosts
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        # only the kind: its text could be a piece of the file
        logger.warning("the file %s is not used, as it cannot be read (%s); correct it", own, type(error).__name__)
        return {}
    default = {"": entries.pop("default")} if "default" in entries else {}  # the last one, where the order counts
    found = {host: (user or account, password or "") for host, (user, account, password) in (entries | default).items()}
    for _, password in found.values():
        remember(password)
    return found


def _of_the_user(address: URL) -> tuple[str, str] | None:
    known = netrc_logins(os.environ)
    return known.get(address.host or "") or known.get("")
