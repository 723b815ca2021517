"""Addresses without what must not be stored: user-info, signatures and tokens."""

import base64
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from prefect_environments.core.errors import ResolveError

_SECRET = re.compile(r"sig|token|key|secret|pass|auth|cred|^x-(amz|goog|ms)-|^jwt$|^code$", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<=://)[^/?#\s]+@")


def clean(url: str) -> str:
    """`url` without user-info and fragment, and without its query if a parameter's name says that it is a secret."""
    try:
        parts = urlsplit(url)
        query = parts.query
    except ValueError as error:
        raise ResolveError(f"not an address: {without_user_info(url)!r:.200}; correct it") from error
    names = [name for name, _ in parse_qsl(query, keep_blank_values=True)] or ([query] if query else [])
    if any(_SECRET.search(name) for name in names):
        query = ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="").geturl()


def without_user_info(text: str) -> str:
    """`text` with the user-info of every address in it removed."""
    return _USER_INFO.sub("", text)


def user_info(url: str) -> tuple[str, str] | None:
    """User and password that an address carries, decoded."""
    info, separator, _ = urlsplit(url).netloc.rpartition("@")
    if not separator:
        return None
    user, _, password = info.partition(":")
    return unquote(user), unquote(password)


def authorization(login: tuple[str, str] | None) -> dict[str, str]:
    """The header for a user and password (RFC 7617, UTF-8); clients drop it on the way to another host."""
    return {} if login is None else {"Authorization": f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"}


def credentials_for(url: str, known: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    """The credentials of the longest URL prefix, else of `host:port`, of the host, or of any prefix on the same scheme,
    host and port (an index's files are often beside it); `None` if none is known."""
    cleaned = clean(url)
    prefixes = [key for key in known if "://" in key and _is_prefix(key, cleaned)]
    if prefixes:
        return known[max(prefixes, key=len)]
    parts = urlsplit(cleaned)
    if login := known.get(parts.netloc) or known.get(parts.hostname or ""):
        return login
    origin = f"{parts.scheme}://{parts.netloc}"
    return next((login for key, login in known.items() if "://" in key and _is_prefix(origin, clean(key))), None)


def _is_prefix(prefix: str, url: str) -> bool:
    base = clean(prefix).rstrip("/")
    return url == base or url.startswith(base + "/")
