"""What a command shows: tables for a terminal, lines with tabs for a program, one JSON document."""

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from prefect_environments.core.redact import redact

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.box import Box
    from rich.console import Console

    from prefect_environments.core.progress import Progress

_LONG = 24  # characters; longer cells are broken into lines
_STYLES = {
    "+": "green",
    "-": "red",
    "~": "yellow",
    "built": "green",
    "failed": "red",
    "missing": "red",
    "ok": "green",
    "there": "green",
}


class Bytes(int):
    """A size: `12.3 MB` on a terminal, the number elsewhere."""


class Seconds(float):
    """A time: `3.2 s` on a terminal, the number elsewhere."""


class Digest(str):
    """A digest: its beginning on a terminal, all of it elsewhere."""

    __slots__ = ()


class When(str):
    """A time in ISO 8601: to the minute on a terminal, all of it elsewhere."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns. Without a terminal each row is a line, which starts with `kind` where there is one."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""
    kind: str = ""


Part = Table | str
_OUTCOMES = ("prefect_environments.core.fleet.build", "prefect_environments.core.refresh.look")
"""Who logs what became of each environment, which is told as the result here."""


def facts(values: Mapping[str, object]) -> Table:
    """Names and values; what is empty is left out."""
    return Table((), [(name, value) for name, value in values.items() if value not in ("", None)])


def clean(text: str) -> str:
    """Without what would move a terminal's cursor, or break a line in two: others wrote it."""
    return "".join(one if one.isprintable() else " " for one in text)


def masked(text: str) -> str:
    """Without secrets that are known, and without user and password in addresses."""
    from prefect_environments.core.lock.urls import without_user_info

    return without_user_info(redact(text))


def write_error(text: str) -> None:
    """An error on standard error; what more it says, such as a resolver's explanation, below its first line."""
    first, *rest = masked(text).splitlines() or [""]
    click.echo("\n".join([f"error: {clean(first)}", *(f"  {clean(line)}" for line in rest)]), err=True)


def write_json(document: Mapping[str, Any]) -> None:
    """One document. Its texts are masked before they are quoted: neither does a quote in a secret hide it, nor does a
    secret of digits break a number."""
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("_", "-") == "utf-8"
    text = json.dumps(_masked_in(document), indent=2, ensure_ascii=not utf8)
    # by lines: unbuffered (PYTHONUNBUFFERED), Python loses what one write did not take, without a word
    sys.stdout.writelines(f"{line}\n" for line in text.split("\n"))


def _masked_in(value: object) -> object:
    if isinstance(value, Mapping):
        return {masked(str(key)): _masked_in(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_in(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else masked(str(value))


def write(parts: Iterable[Part]) -> None:
    """All parts on standard output, as fits it."""
    if not sys.stdout.isatty():
        for part in parts:
            lines = [clean(part)] if isinstance(part, str) else map("\t".join, _plain(part))
            sys.stdout.writelines(masked(f"{line}\n") for line in lines)
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts:
        if isinstance(part, str):
            console.print(masked(clean(part)), style=_STYLES.get(part[:1]), soft_wrap=True)
        elif part.rows:
            _draw(console, part)


def _plain(table: Table) -> Iterator[list[str]]:
    for row in table.rows:
        yield [*([table.kind] if table.kind else []), *(clean(str(value)) for value in row)]


def _draw(console: "Console", table: Table) -> None:
    from rich.table import Table as Drawn
    from rich.text import Text

    shown = _Shown.of(table)
    if shown.width > console.width:
        shown = shown.without(*(number for number, row in enumerate(shown.kinds) if row is Digest))
    if shown.width > console.width and table.columns:
        for row in shown.rows:  # a table would break words: each row for itself
            _draw(console, facts(dict(zip(shown.titles, row, strict=True))))
        return
    drawn = Drawn(title=table.title or None, title_justify="left", box=_box(table), pad_edge=False)
    drawn.show_header = bool(table.columns)
    for title, kind, wide in zip(shown.titles, shown.kinds, shown.wide, strict=True):
        drawn.add_column(title, justify="right" if kind is float else "left", overflow="fold", no_wrap=not wide)
    for row in shown.rows:
        named, *rest = row  # a name is no state: somebody may call an environment "ok"
        drawn.add_row(Text(named), *(Text(cell, style=_STYLES.get(cell, "")) for cell in rest))
    console.print(drawn)


def _box(table: Table) -> "Box | None":
    from rich import box

    return box.SIMPLE_HEAD if table.columns else None


@dataclass(frozen=True, slots=True)
class _Shown:
    """What of a table a terminal gets: texts, without columns that are empty."""

    titles: list[str]
    kinds: list[type]
    """Of each column: `float` for amounts, `Digest`, else `str`."""
    rows: list[list[str]]

    @classmethod
    def of(cls, table: Table) -> "_Shown":
        titles = list(table.columns or ("name", "value"))
        rows = [[masked(clean(_human(value))) for value in row] for row in table.rows]
        kinds = [_kind([row[number] for row in table.rows]) for number in range(len(titles))]
        found = cls(titles, kinds, rows)
        return found.without(*(number for number in range(len(titles)) if not any(row[number] for row in rows)))

    def without(self, *columns: int) -> "_Shown":
        keep = [number for number in range(len(self.titles)) if number not in columns]
        rows = [[row[number] for number in keep] for row in self.rows]
        return _Shown([self.titles[number] for number in keep], [self.kinds[number] for number in keep], rows)

    @property
    def wide(self) -> list[bool]:
        """Of each column: whether it is so long that its lines are broken."""
        return [width > _LONG for width in self._widths]

    @property
    def width(self) -> int:
        """The fewest characters of a line that break no word."""
        return sum(min(width, _LONG) for width in self._widths) + 3 * (len(self.titles) - 1)

    @property
    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.titles, *self.rows, strict=True)]


def _kind(column: Sequence[object]) -> type:
    if all(isinstance(value, int | float) or value == "" for value in column):
        return float
    return Digest if all(isinstance(value, Digest) for value in column) else str


def _human(value: object) -> str:
    from prefect_environments.core.console import megabytes

    if isinstance(value, Bytes):
        return megabytes(value)
    if isinstance(value, Digest):
        return value[:19]
    if isinstance(value, When):
        return value[:16].replace("T", " ")
    return f"{value:.1f} s" if isinstance(value, Seconds) else str(value)


def errors_console() -> "Console":
    """Standard error, for progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def progress(*, quiet: bool) -> "AbstractContextManager[Progress]":
    """How far a build is, on standard error: bars on a terminal, else lines."""
    if quiet:
        from prefect_environments.core.progress import SILENT

        return nullcontext(SILENT)
    from prefect_environments.core.console import console_progress

    return console_progress(errors_console())


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines = masked(record.getMessage()).splitlines()
        click.echo(f"{record.levelname.lower()}: {' '.join(map(clean, lines))}", err=True)


@contextmanager
def hear(*, debug: bool) -> Iterator[None]:
    """Warnings of core as lines on standard error; with `debug` all that it says."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if debug else "WARNING")  # of Prefect, where it is loaded
    level = logging.DEBUG if debug else logging.WARNING
    logger, handler = logging.getLogger("prefect_environments"), _Lines(level)  # tasks hand lines on whatever the level
    handler.addFilter(lambda record: record.name not in _OUTCOMES)
    before, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)  # not by its attribute: loggers remember what they let through
        logger.propagate = propagates
