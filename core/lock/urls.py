"""Addresses without what must not be stored: user-info, signatures and tokens."""

import base64
import itertools
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
    """The first of `candidates`; `None` if there is none."""
    return next(iter(candidates(url, known)), None)


def candidates(url: str, known: Mapping[str, tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The credentials of the longest URL prefix, else of `host:port`, else of the host, each alone; else those of all
    prefixes on the same scheme, host and port, whose path has most in common with the address's first.

    The last because an index's files are often beside it: which of two feeds on one host they are of is a guess.
    """
    asked = _comparable(url)
    prefixes = {_comparable(key): login for key, login in known.items() if "://" in key}
    below = [key for key in prefixes if asked == key or asked.startswith(f"{key}/")]
    if below:
        return (prefixes[max(below, key=len)],)
    parts = urlsplit(asked)
    hosts = {key.lower(): login for key, login in known.items() if "://" not in key}
    if login := hosts.get(parts.netloc) or hosts.get(parts.hostname or ""):
        return (login,)
    origin = f"{parts.scheme}://{parts.netloc}"
    beside = [key for key in prefixes if key == origin or key.startswith(f"{origin}/")]
    beside.sort(key=lambda key: -_shared(key, asked))
    return tuple(dict.fromkeys(prefixes[key] for key in beside))


def _shared(one: str, other: str) -> int:
    """How many parts of their paths, from the first on, two addresses share."""
    pairs = zip(one.split("/"), other.split("/"), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _comparable(url: str) -> str:
    """`clean(url)` with scheme and host in lower case, without the scheme's own port and a slash at the end (RFC 3986,
    section 6.2)."""
    parts = urlsplit(clean(url))
    host = parts.netloc.lower().removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ""))
    return parts._replace(netloc=host).geturl().rstrip("/")
