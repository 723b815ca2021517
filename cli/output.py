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

    from rich.console import Console

    from prefect_environments.core.progress import Progress

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
    sys.stdout.write(masked(json.dumps(document, indent=2, ensure_ascii=False, default=str)) + "\n")


def write(parts: Iterable[Part]) -> None:
    """All parts on standard output, as fits it."""
    if not sys.stdout.isatty():
        for part in parts:
            lines = [part] if isinstance(part, str) else map("\t".join, _plain(part))
            sys.stdout.writelines(masked(f"{line}\n") for line in lines)
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts:
        if isinstance(part, str):
            console.print(masked(part), style=_STYLES.get(part[:1]), soft_wrap=True)
        elif part.rows:
            _draw(console, part)


def _plain(table: Table) -> Iterator[list[str]]:
    for row in table.rows:
        yield [*([table.kind] if table.kind else []), *(clean(str(value)) for value in row)]


def _draw(console: "Console", table: Table) -> None:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(title=table.title or None, title_justify="left", box=box.SIMPLE_HEAD if table.columns else None)
    drawn.show_header = bool(table.columns)
    for number, title in enumerate(table.columns or ("name", "value")):
        amounts = all(isinstance(row[number], int | float) for row in table.rows)
        drawn.add_column(title, justify="right" if amounts else "left", overflow="fold")
    for row in table.rows:
        cells = [masked(clean(_human(value))) for value in row]
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
    console.print(drawn)


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
    logger, handler = logging.getLogger("prefect_environments"), _Lines()
    handler.addFilter(lambda record: record.name not in _OUTCOMES)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
