"""aiohttp's sessions as this client needs them: time limits, TLS, proxies."""

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from prefect_environments.core.distribution.limits import Limits
from prefect_environments.core.distribution.reference import is_loopback
from prefect_environments.core.errors import RegistryError
from prefect_environments.core.redact import remember

__all__ = ["Limits", "Stall", "open_session", "proxy_for", "tls_context"]


def open_session() -> aiohttp.ClientSession:
    """A session that sends nothing by itself: no cookies, no passwords of ~/.netrc, no redirects."""
    return aiohttp.ClientSession(
        # The client's semaphores limit; a waiting request in the pool would look like a slow connection.
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Blobs are gzip themselves: what arrives must be what was stored.
        auto_decompress=False,
        # Proxies are looked up by `proxy_for`: trust_env would also send the passwords of ~/.netrc.
        trust_env=False,
        headers={"User-Agent": "prefect-environments"},
        skip_auto_headers=("Content-Type",),
        read_bufsize=256 * 1024,
    )


class Stall:
    """Moves a time-out ahead at each piece of a body. aiohttp has a limit for reading only."""

    def __init__(self, timer: asyncio.Timeout, stall: float, answer: float) -> None:
        self._timer = timer
        self._stall = stall
        self._answer = answer

    def __call__(self, finished: bool) -> None:
        delay = self._answer if finished else self._stall
        with suppress(RuntimeError):  # the answer came before the body's end
            self._timer.reschedule(asyncio.get_running_loop().time() + delay)


def proxy_for(url: URL) -> str | None:
    """The proxy that the environment names for `url`; none for this machine's own addresses."""
    host = url.host or ""
    if is_loopback(host if ":" not in host else f"[{host}]") or proxy_bypass(host):
        return None
    proxy = getproxies().get(url.scheme)
    if proxy and (password := URL(proxy).password):
        remember(password)
    return proxy


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """The system's authorities (SSL_CERT_FILE and SSL_CERT_DIR are honoured), and those of `ca_file`."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ValueError) as error:
            raise RegistryError(f"ca_file {ca_file} cannot be used: {error}; expected PEM certificates") from None
    return context
