"""YAML as its author wrote it: every scalar stays the text in the file, and everything knows its line.

YAML 1.1 reads `1.10` as the number 1.1, `3.10` as 3.1 and `no` as false. In files that define environments these are
versions and names, so nothing is converted here; whoever wants a number asks for `kind` and converts the text.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from prefect_environments.core.errors import RequirementsError, SpecificationError
from prefect_environments.core.formats.requirements.text import decode

FILE_LIMIT = 256 * 1024
"""Bytes of a file; the largest lists of a conda environment's packages need a tenth of it."""
NODES_LIMIT = 50_000
"""Values in a document, those that aliases repeat counted each time."""

_CORE = "tag:yaml.org,2002:"
_MERGE = f"{_CORE}merge"
_KINDS = frozenset({"str", "int", "float", "bool", "timestamp", "null", "value"})  # value is a lone `=`
_COLLECTIONS = (f"{_CORE}map", f"{_CORE}seq")


class Text(str):
    """A scalar as written, with its line (from 1) and what YAML would read it as."""

    __slots__ = ("kind", "line")
    kind: str
    """`str` for quoted and ordinary text, else `int`, `float`, `bool`, `timestamp` or `null` for plain scalars."""
    line: int

    @classmethod
    def of(cls, value: str, kind: str, line: int) -> "Text":
        self = cls(value)
        self.kind, self.line = kind, line
        return self


class Table(dict[Text, Any]):
    """A mapping in the order of the file; `line` is where it starts."""

    line = 0

    def get(self, key: str, default: Any = None, /) -> Any:  # any text finds a `Text`
        return super().get(Text(key), default)

    def line_of(self, key: str) -> int:
        """The line of a key, or the mapping's own for one that is not there."""
        return next((found.line for found in self if found == key), self.line)


class Items(list[Any]):
    """A sequence; `line` is where it starts."""

    line = 0


Value: TypeAlias = Table | Items | Text | None


def read(path: Path) -> Value:
    """The document in a file. Raises `SpecificationError` with file and line."""
    try:
        with Path(path).open("rb") as file:
            return parse(file.read(FILE_LIMIT + 1), str(path))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "it is no usable path"
        raise SpecificationError(f"cannot read {str(path)!r:.300}: {reason}; correct the path") from None


def parse(content: str | bytes, origin: str) -> Value:
    """The one document in `content`: mappings, sequences, `Text`, and `None` for an empty or null value.

    Bytes are decoded by their byte order mark, else as UTF-8. Merge keys (`<<`) are followed; repeated keys, tags,
    endless or huge aliases and a second document are refused. Raises `SpecificationError` that names `origin:line`.
    """
    if len(content) > FILE_LIMIT:
        raise SpecificationError(f"{origin}: the file is larger than {FILE_LIMIT:,} bytes; is it the right one?")
    try:
        text = decode(content, origin) if isinstance(content, bytes) else content.removeprefix("\ufeff")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _Builder(origin).value(node)
    except RequirementsError as error:  # of the decoder, which is shared with requirements files
        raise SpecificationError(str(error)) from None
    except RecursionError:
        raise SpecificationError(f"{origin}: the YAML is nested too deeply; is it the right file?") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refused(origin, mark.line + 1 if mark else 1, _problem(error)) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise refused(
            origin, line, f"it holds the character U+{int(error.character):04X}, which YAML does not allow; remove it"
        ) from None


def refused(origin: str, line: int, reason: str) -> SpecificationError:
    """The error that names file, line and reason; the caller raises it."""
    return SpecificationError(f"{origin}:{line}: {reason}")


def plain(value: Value) -> Any:
    """The same as ordinary `dict`, `list`, `str` and `None`, for what is stored or compared."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if value is None else str(value)


def unknown_key(key: str, known: Iterable[str], what: str) -> str:
    """The reason for refusing a key: what it is not a part of, the nearest known one, and all that there are."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(key.lower(), lower, n=1, cutoff=0.6)
    meant = f"did you mean {lower[near[0]]!r}? " if near else ""
    return f"{what} has no key {key!r:.80}; {meant}it has {', '.join(names)}"


def _problem(error: yaml.MarkedYAMLError) -> str:
    said = error.problem or "it cannot be read"
    if "'\\t'" in said:
        return "a tab stands where YAML wants spaces; indent with spaces"
    if "another document" in said:
        return "a second document (---) starts here; write one environment a file"
    return f"this is not YAML: {said}; check indentation, colons and quotes"


class _Builder:
    """From YAML's nodes to values. Aliases are followed, within limits."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._left = NODES_LIMIT
        self._open: set[int] = set()

    def value(self, node: yaml.Node) -> Value:
        line = node.start_mark.line + 1
        self._left -= 1
        if self._left < 0:
            raise refused(self._origin, line, f"more than {NODES_LIMIT:,} values, aliases followed; write fewer")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        if node.tag not in _COLLECTIONS:
            raise refused(self._origin, line, f"the tag {_shown(node.tag)} is not allowed; remove it")
        if id(node) in self._open:
            raise refused(self._origin, line, "an alias leads back to itself; write the value instead")
        self._open.add(id(node))
        try:
            return self._table(node, line) if isinstance(node, yaml.MappingNode) else self._items(node, line)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Text | None:
        kind = node.tag.removeprefix(_CORE)
        if kind not in _KINDS:
            raise refused(self._origin, line, f"the tag {_shown(node.tag)} is not allowed; remove it")
        return None if kind == "null" else Text.of(node.value, "str" if kind == "value" else kind, line)

    def _items(self, node: yaml.Node, line: int) -> Items:
        found = Items(self.value(item) for item in node.value)
        found.line = line
        return found

    def _table(self, node: yaml.MappingNode, line: int) -> Table:
        found, merged = Table(), list[Table]()
        found.line = line
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged += self._merged(value_node)
                continue
            key = self.value(key_node)
            if not isinstance(key, Text):
                raise refused(self._origin, key_node.start_mark.line + 1, "a key is not text; write name: value")
            if key in found:
                first = found.line_of(key)
                raise refused(self._origin, key.line, f"the key {key!r:.80} is there twice, first in line {first}")
            found[key] = self.value(value_node)
        for other in merged:
            for key, value in other.items():
                found.setdefault(key, value)
        return found

    def _merged(self, node: yaml.Node) -> list[Table]:
        value = self.value(node)
        given = list(value) if isinstance(value, Items) else [value]
        tables = [table for table in given if isinstance(table, Table)]
        if len(tables) < len(given):
            raise refused(self._origin, node.start_mark.line + 1, "<< takes a mapping, or a list of mappings")
        return tables


def _shown(tag: str) -> str:
    return f"!!{tag.removeprefix(_CORE)}" if tag.startswith(_CORE) else repr(tag)[:80]
