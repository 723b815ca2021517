"""A JSON file of settings, read with the type of every value checked: `"false"` is no truth value."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_environments.core.errors import SpecificationError

FILE_LIMIT = 1024 * 1024


def read(path: Path) -> "Fields":
    """The object in a JSON file. Raises `SpecificationError` with file and line; repeated keys are refused."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT + 1)
        if len(content) > FILE_LIMIT:
            raise SpecificationError(f"{path}: the file is larger than {FILE_LIMIT:,} bytes; is it the right one?")
        value = json.loads(_text(content), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except json.JSONDecodeError as error:
        raise SpecificationError(f"{path}:{error.lineno}: this is not JSON: {error.msg}; correct the file") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "it is not UTF-8"
        raise SpecificationError(f"cannot read {path}: {reason}; correct the path or the file") from None
    except RecursionError:
        raise SpecificationError(f"{path}: the values are nested too deeply; is it the right file?") from None
    if not isinstance(value, dict):
        raise SpecificationError(f"{path}:1: a JSON object is expected, {{…}}, got {_kind(value)}")
    return Fields(value, str(path), "")


@dataclass(frozen=True, slots=True)
class Fields:
    """An object of the file; `path` is where it stands, such as `docker.`. All that is null counts as not there."""

    values: dict[str, Any]
    origin: str
    path: str

    def text(self, key: str) -> str | None:
        found: str | None = self._of(key, str, "text")
        return found

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value; text that names one is refused with advice."""
        found = self._of(key, bool, "true or false, without quotes")
        return default if found is None else found

    def section(self, key: str) -> "Fields":
        """An object within; an empty one if it is not there."""
        return Fields(self._of(key, dict, "an object") or {}, self.origin, f"{self.path}{key}.")

    def texts(self, key: str) -> list[str]:
        found: list[Any] = self._of(key, list, "a list of text") or []
        if not all(isinstance(item, str) for item in found):
            raise self.refused(key, "is a list with values that are no text")
        return list(found)

    def mapping(self, key: str) -> dict[str, str]:
        """Text by name."""
        found: dict[str, Any] = self._of(key, dict, "an object") or {}
        if not all(isinstance(item, str) for item in found.values()):
            raise self.refused(key, "has values that are no text; quote them")
        return dict(found)

    def others(self, known: Iterable[str]) -> dict[str, Any]:
        """What stands under other keys than the known ones."""
        known = set(known)
        return {key: value for key, value in self.values.items() if key not in known}

    def refused(self, key: str, reason: str) -> SpecificationError:
        """The error that names file and key; the caller raises it. Values are not shown: they may be secrets."""
        return SpecificationError(f"{self.origin}: {self.path}{key} {reason}")

    def _of(self, key: str, kind: type, expected: str) -> Any:
        value = self.values.get(key)
        if value is None or (isinstance(value, kind) and not (kind is not bool and isinstance(value, bool))):
            return value
        raise self.refused(key, f"is {_kind(value)}; expected {expected}")


def _text(content: bytes) -> str:
    """The file's text; SDK v1 writes UTF-8, editors on Windows put a byte order mark before it or write UTF-16."""
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return content.decode(encoding)


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SpecificationError(f"{path}: the key {key!r:.80} is there twice; remove one")
        found[key] = value
    return found


def _kind(value: Any) -> str:
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "yes", "no"):
        return f"the text {value!r}"
    kinds: dict[type, str] = {str: "text", bool: "true or false", dict: "an object", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "a number")
