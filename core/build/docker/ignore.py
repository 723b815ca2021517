"""`.dockerignore`: which paths of a build context are left out (Dockerfile reference, ".dockerignore file").

The `docker` package's own matcher is not used, because it sends other files than the docker command does: it does not
go into an ignored folder for an exception with a wildcard, brings `.dockerignore` back whatever the rules say, reads
`../b` as `b`, and does not know `[^…]` and `**.txt`.
"""

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

from prefect_environments.core.errors import SpecificationError

_GLOB = re.compile(r"[*?\[\]\\^]")


@dataclass(frozen=True, slots=True)
class _Pattern:
    text: str
    exception: bool
    matches: Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of a path. `matched` has one entry a pattern, for what lies below the path."""

    ignored: bool
    matched: tuple[bool, ...] = ()


class IgnoreRules:
    """The patterns of an ignore file; the last one that matches decides. Raises `SpecificationError` for a bad one."""

    def __init__(self, text: str = "", origin: str = ".dockerignore") -> None:
        lines = text.removeprefix("\ufeff").split("\n")
        found = [_pattern(line, f"{origin} line {number}") for number, line in enumerate(lines, 1)]
        self._patterns = [pattern for pattern in found if pattern]
        exceptions = [pattern.text for pattern in self._patterns if pattern.exception]
        self._plain_exceptions = [f"{_without_tail(text)}/" for text in exceptions]
        self._anywhere = any(_GLOB.search(_without_tail(text)) for text in exceptions)

    def of(self, path: str, parent: Verdict | None = None) -> Verdict:
        """The verdict on `path`, given the one on its folder (none for what lies at the top).

        A pattern that matched the folder matches all below it; an exception is asked only while a path is ignored,
        and a pattern only while it is not, as the engines do.
        """
        ignored, matched = False, []
        inherited = parent.matched if parent else (False,) * len(self._patterns)
        for pattern, match in zip(self._patterns, inherited, strict=True):
            hit = match or (pattern.exception == ignored and bool(pattern.matches(path)))
            ignored = not pattern.exception if hit else ignored
            matched.append(hit)
        return Verdict(ignored, tuple(matched))

    def reach_into(self, folder: str) -> bool:
        """Whether an exception may bring back something below an ignored folder."""
        return self._anywhere or any(text.startswith(f"{folder}/") for text in self._plain_exceptions)


def _without_tail(pattern: str) -> str:
    return pattern.removesuffix("/**").removesuffix("/*")


def _pattern(line: str, where: str) -> _Pattern | None:
    if line.startswith("#") or not line.strip():
        return None
    text = line.strip()
    exception = text.startswith("!")
    text = text[exception:].strip()
    if not text:
        raise SpecificationError(f"{where}: '!' stands alone; write the path to bring back after it")
    text = posixpath.normpath(text)
    text = text.lstrip("/") or "/"  # normpath keeps two slashes
    try:
        return _Pattern(text, exception, _matcher(text))
    except (ValueError, re.error) as error:
        raise SpecificationError(f"{where}: the pattern {text!r:.200} is malformed: {error}") from None


def _matcher(text: str) -> Callable[[str], object]:
    """How one cleaned pattern is matched against a whole path.

    `**` at one end alone is a plain prefix or suffix, so that `**.txt` and `build**` need no slash beside it.
    """
    if not _GLOB.search(text):
        return text.__eq__
    head = text.removesuffix("**")
    if head != text and not _GLOB.search(head):
        return lambda path: path.startswith(head)
    tail = text.removeprefix("**")
    if tail != text and not _GLOB.search(tail):
        return lambda path: path.endswith(tail) or f"/{path}" == tail
    return re.compile(_expression(text), re.DOTALL).fullmatch


def _expression(text: str) -> str:
    found, at = "", 0
    while at < len(text):
        char = text[at]
        if text.startswith("**", at):
            at += 2 + text.startswith("/", at + 2)
            found += "(?:.*/)?" if at < len(text) else ".*"
            continue
        if char == "[":
            end = _class_end(text, at)
            found += _class(text[at + 1 : end])
            at = end + 1
            continue
        if char == "\\":
            at += 1
            char = text[at : at + 1]
            if not char or char.isalnum():
                raise ValueError("a backslash stands before a special character only; folders are separated by '/'")
            found += re.escape(char)
        else:
            found += {"*": "[^/]*", "?": "[^/]"}.get(char) or re.escape(char)
        at += 1
    return found


def _class_end(text: str, start: int) -> int:
    at = start + 1
    while at < len(text) and text[at] != "]":
        at += 2 if text[at] == "\\" else 1
    if at >= len(text):
        raise ValueError("a '[' has no ']'")
    return at


def _class(inside: str) -> str:
    """`[a-z]` or `[^a-z]`."""
    negated, inside = inside.startswith("^"), inside.removeprefix("^")
    ranges = re.fullmatch(r"(?:(?:\\.|[^-\\])(?:-(?:\\.|[^-\\]))?)+", inside, re.DOTALL)
    if ranges is None:
        raise ValueError("'[…]' holds no characters, or a '-' with nothing beside it")
    parts = re.findall(r"(\\.|[^-\\])(?:-(\\.|[^-\\]))?", inside, re.DOTALL)
    body = "".join(re.escape(low[-1]) + (f"-{re.escape(high[-1])}" if high else "") for low, high in parts)
    return f"[{'^' if negated else ''}{body}]"
