"""`.gitignore` (gitignore(5)): which paths of a folder git would leave out. `.amlignore` is written in the same way."""

import re
from collections.abc import Callable
from dataclasses import dataclass

_SPACES = re.compile(r"(?<!\\) +$")
_NAMED = re.compile(r"\[:([a-z]+):\]")
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r"\x20\t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    "space": r"\x09-\x0d\x20",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
"""Those of POSIX, of ASCII letters as git has them."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    exception: bool
    folders_only: bool
    anchored: bool
    matches: Callable[[str], object]


class GitIgnoreRules:
    """The patterns of one file at the top of a folder. Nothing comes back below a folder that is left out."""

    def __init__(self, text: str = "") -> None:
        found = [_pattern(line) for line in text.removeprefix("\ufeff").split("\n")]
        self._patterns = [pattern for pattern in reversed(found) if pattern]

    def leaves_out(self, path: str, *, folder: bool) -> bool:
        """Whether `path`, relative and with slashes, is left out by the last pattern that matches it. Its folder is
        not; a link is no folder."""
        name = path.rpartition("/")[2]
        for pattern in self._patterns:
            if (folder or not pattern.folders_only) and pattern.matches(path if pattern.anchored else name):
                return not pattern.exception
        return False


def _pattern(line: str) -> _Pattern | None:
    text = _SPACES.sub("", line.removesuffix("\r"))
    if not text or text.startswith("#"):
        return None
    exception = text.startswith("!")
    text = text.removeprefix("!")
    folders_only = text.endswith("/")
    text = text.removesuffix("/")
    anchored = "/" in text
    expression = _expression(text.removeprefix("/"))
    if not text or expression is None:
        return None  # git matches nothing by a malformed pattern
    return _Pattern(exception, folders_only, anchored, re.compile(expression, re.DOTALL).fullmatch)


def _expression(text: str) -> str | None:
    """A pattern as a regular expression; `None` for one that ends inside `[…]` or after a backslash."""
    found, at = "", 0
    while at < len(text):
        start = at == 0 or text[at - 1] == "/"
        if start and text.startswith("**/", at):
            found, at = found + "(?:.*/)?", at + 3
        elif start and text[at:] == "**":
            return found + ".*" if at == 0 else found + ".+"
        elif text[at] == "*":
            while text[at : at + 1] == "*":
                at += 1
            found += "[^/]*"
        elif text[at] == "?":
            found, at = found + "[^/]", at + 1
        elif text[at] == "[":
            part, at = _class(text, at)
            if not part:
                return None
            found += part
        else:
            at += text[at] == "\\"
            if at == len(text):
                return None
            found, at = found + re.escape(text[at]), at + 1
    return found


def _class(text: str, start: int) -> tuple[str, int]:
    """`[a-z]` or `[!a-z]` that begins at `start`, and where it ends; nothing for one that has no end."""
    at = start + 1
    negated = text[at : at + 1] in ("!", "^")
    at += negated
    first, items = at, ""
    while at < len(text) and (text[at] != "]" or at == first):
        if named := _NAMED.match(text, at):
            if named[1] not in _CLASSES:
                return "", at
            items, at = items + _CLASSES[named[1]], named.end()
            continue
        if text[at] == "-" and items and at + 1 < len(text) and text[at + 1] != "]":
            items, at = f"{items}-", at + 1
            continue
        at += text[at] == "\\"
        if at < len(text):
            items, at = items + re.escape(text[at]), at + 1
    if at >= len(text):
        return "", at
    try:
        re.compile(f"[{items}]")
    except re.error:  # a range from high to low matches nothing
        items = ""
    if not items:
        return ("[^/]" if negated else "(?!)"), at + 1
    return f"(?!/)[{'^' if negated else ''}{items}]", at + 1
