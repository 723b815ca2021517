"""Words of a Dockerfile: split as a shell does, quotes removed, variables replaced (Dockerfile reference, "Environment
replacement")."""

import fnmatch
import re
from collections.abc import Iterator, Mapping

_NAME = re.compile(r"\d+|[^\W\d]\w*|[@*#?$!-]")
_LONGEST = 1_000
"""Characters of a value that a pattern (`${NAME#pattern}`) is matched against: image names are far shorter."""


def words(text: str, escape: str = "\\") -> list[str]:
    """`text` cut at white space that is neither quoted nor escaped; quotes and escapes stay in the words."""
    return [word for _, word in placed_words(text, escape)]


def placed_words(text: str, escape: str = "\\") -> Iterator[tuple[int, str]]:
    """`words`, one after the other, each with where it starts."""
    start, quote, escaped = -1, "", False
    for at, char in enumerate(text):
        if not quote and not escaped and char.isspace():
            if start >= 0:
                yield start, text[start:at]
            start = -1
            continue
        start = at if start < 0 else start
        if escaped:
            escaped = False
        elif char == escape and quote != "'":
            escaped = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
    if start >= 0:
        yield start, text[start:]


def unquote(word: str) -> str:
    """A word of `words` without its quotes and escapes; variables stay."""
    return re.sub(r"\\(.)|[\"']", r"\1", word)


def expand(text: str, values: Mapping[str, str], escape: str = "\\") -> str:
    """`text` without quotes and with `$NAME`, `${NAME:-default}` and the other forms replaced; unset ones are empty.

    Raises `ValueError` in plain words for what the reference does not allow.
    """
    return _Reader(text, values, escape).until("")


class _Reader:
    def __init__(self, text: str, values: Mapping[str, str], escape: str) -> None:
        self._text, self._at, self._values, self._escape = text, 0, values, escape

    def until(self, stop: str, *, raw: bool = False) -> str:
        """What comes before `stop`, or before the end where that is empty. `raw` keeps escapes, for patterns."""
        result = ""
        while char := self._next():
            if char == stop:
                return result
            if char == "'":
                result += self._quoted()
            elif char == '"':
                result += self._double_quoted(raw)
            elif char == "$":
                result += self._variable()
            elif char == self._escape:
                result += (char if raw else "") + self._next()
            else:
                result += char
        if stop:
            raise ValueError(f"a closing {stop} is missing")
        return result

    def _next(self) -> str:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        return char

    def _quoted(self) -> str:
        end = self._text.find("'", self._at)
        if end < 0:
            raise ValueError("a closing ' is missing")
        found, self._at = self._text[self._at : end], end + 1
        return found

    def _double_quoted(self, raw: bool) -> str:
        result = ""
        while char := self._next():
            if char == '"':
                return result
            if char == "$":
                result += self._variable()
            elif char == self._escape:
                after = self._text[self._at : self._at + 1]
                result += char if raw or (after and after not in f'"${self._escape}') else ""
                result += self._next()
            else:
                result += char
        raise ValueError('a closing " is missing')

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _variable(self) -> str:
        if self._text[self._at : self._at + 1] != "{":
            name = self._name()
            return self._values.get(name, "") if name else "$"
        self._at += 1
        name = self._name()
        if not name:
            raise ValueError("${…} holds no name")
        operator = self._next()
        if operator == "}":
            return self._values.get(name, "")
        return self._modified(name, operator)

    def _modified(self, name: str, operator: str) -> str:
        value = self._values.get(name)
        if operator == ":":
            value, operator = value or None, self._next()
            if operator not in ("-", "+", "?"):
                raise ValueError(f"${{{name}:{operator}…}} is not known; ':' stands before -, + or ?")
        if operator in ("-", "+", "?"):
            word = self.until("}")
            if operator == "?" and value is None:
                raise ValueError(f"the build argument {name} has no value{': ' + word if word else ''}")
            if value is None:
                return word if operator == "-" else ""
            return word if operator == "+" else value
        if operator in ("#", "%"):
            word = self.until("}", raw=True)
            longest = word.startswith(operator)
            return _trimmed(value or "", word[longest:], operator == "%", longest)
        if operator == "/":
            every = self._text.startswith("/", self._at)
            self._at += every
            pattern = self.until("/", raw=True)
            return _replaced(value or "", pattern, self.until("}", raw=True), every)
        raise ValueError(f"${{{name}{operator}…}} is not known" if operator else "a closing } is missing")


def _pattern(pattern: str, value: str) -> re.Pattern[str]:
    """`*` and `?` as in a shell, with `\\` before a literal one; there are no brackets."""
    if len(value) > _LONGEST:
        raise ValueError(f"a value of {len(value):,} characters is too long for a pattern")
    literal = {"*": "[*]", "?": "[?]", "[": "[[]"}
    glob = re.sub(r"\\(.)|\[", lambda found: literal.get(found[1] or "[", found[1]), pattern)
    return re.compile(fnmatch.translate(glob))


def _trimmed(value: str, pattern: str, at_end: bool, longest: bool) -> str:
    regex = _pattern(pattern, value)
    sizes = range(len(value) + 1)
    for size in reversed(sizes) if longest else sizes:
        start, end = (len(value) - size, len(value)) if at_end else (0, size)
        if regex.match(value[start:end]):
            return value[:start] + value[end:]
    return value


def _replaced(value: str, pattern: str, replacement: str, every: bool) -> str:
    regex = _pattern(pattern, value)
    done, at = "", 0
    while at < len(value):
        end = next((end for end in range(len(value), at, -1) if regex.match(value[at:end])), None)
        if end is None:
            done += value[at]
            at += 1
            continue
        done, at = done + replacement, end
        if not every:
            break
    return done + value[at:]
