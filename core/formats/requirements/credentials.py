"""Credentials in requirements: found, refused and masked, so that none is ever stored or shown."""

import re
from urllib.parse import parse_qsl, urlsplit

from prefect_environments.core.redact import MASK

ADVICE = (
    "credentials are never stored with a definition: take them out and give them in a credentials block, "
    "in the worker's environment (netrc, or UV_INDEX_<NAME>_USERNAME and UV_INDEX_<NAME>_PASSWORD) or in the workspace"
)

_LONG = r"token|secret|passw|signature|credential|api[_-]?key"
_SHORT = r"auth|key|pass|pat|pwd|sas|sig"
_SECRET_NAME = re.compile(rf"{_LONG}|(?:^|[_.-])(?:{_SHORT})(?:$|[_.-])", re.IGNORECASE)

# Masking prefers too much to too little: a password may itself hold `/`, `#`, `@` or a space.
_WITH_PASSWORD = re.compile(r"(?<=://)[^\s/?#@]*:.*@", re.DOTALL)
_USER_INFO = re.compile(r"(?<=://)[^\s/?#]*@")
_NO_HOST_YET = re.compile(r"(?<=://)[^\s/?#@:\[]*:(?!\d*(?:[/?#\s'\"]|$))\S*")
_NO_SCHEME = re.compile(r"[^\s:/@'\"]+:(?!//).*@", re.DOTALL)
_ASSIGNED = re.compile(
    rf"((?:[\w.-]*(?:{_LONG})[\w.-]*|(?<![\w.])(?:{_SHORT}))['\"]?\s*(?<![=!<>~])[=:](?!=)\s*)[^\s&]+", re.IGNORECASE
)
_SHOWN = 200
_LONGEST_MASKED = 2_000  # masking is quadratic on hostile text; nobody reads such a line in a message anyway


def looks_secret(name: str) -> bool:
    """Whether a variable or query parameter of this name is likely to hold a credential."""
    return bool(_SECRET_NAME.search(name))


def mask(text: str) -> str:
    """`text` for a message: user-info, and values whose name looks secret, masked; at most 200 characters."""
    if len(text) > _LONGEST_MASKED:
        start = re.match(r"[\w.-]{0,40}", text, re.ASCII)
        return f"{start[0] if start else ''}… ({len(text):,} characters)"
    for pattern in (_WITH_PASSWORD, _USER_INFO, _NO_SCHEME):
        text = pattern.sub(f"{MASK}@", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", _NO_HOST_YET.sub(MASK, text))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def problem(url: str) -> str | None:
    """Why `url` cannot be stored, in plain words without its text; `None` if it can (RFC 3986, section 3).

    A user name alone is a credential for HTTP (tokens are given so) and none for SSH (`git@`).
    """
    try:
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        names = [name for name, _ in parse_qsl(f"{parts.query}&{parts.fragment}")]
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "its URL is malformed; write scheme://host[:port]/path, with special characters percent-encoded"
    if at and not (parts.scheme.endswith("ssh") and ":" not in user):
        return f"its URL holds a user name, password or token; {ADVICE}"
    if any(looks_secret(name) for name in names):
        return f"its URL holds a signature or token as a parameter; {ADVICE}"
    if not host and not parts.scheme.endswith("file"):
        return "its URL names no host; write scheme://host/path"
    return None
