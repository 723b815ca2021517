"""`Run`: what a script knows of its job, and what it tells of itself; the names are those of Azure ML's SDK v1."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from .wire import LONGEST_REQUEST, VARIABLE, ChannelError, ask, description  # noqa: TID251 - the copy in a job is no part of core

_PIECE = LONGEST_REQUEST // 16  # characters of a request; one takes 12 bytes of JSON at most
_LONG = 8192  # bits; Python refuses to write down far longer integers


class RunError(RuntimeError):
    """What was asked of the launcher cannot be had."""


class Run:
    """The job that a script runs in; without a launcher (`python train.py`) an offline one, which prints.

    Example:
        ```python
        run = Run.get_context()
        token = run.get_secret(name="feed-token")
        run.log("accuracy", 0.97)
        ```
    """

    def __init__(self, folder: str = "") -> None:
        self._folder = folder
        self.id: str = str(description(folder)["id"]) if folder else f"offline-{uuid.uuid4().hex[:8]}"
        """The job's id; all its processes have the same."""

    @classmethod
    def get_context(cls, allow_offline: bool = True) -> Run:
        """The run of this process. Raises `RunError` where there is none and `allow_offline` is false."""
        folder = os.environ.get(VARIABLE, "")
        if not folder and not allow_offline:
            raise RunError("this process was not started by a launcher of jobs, and allow_offline is false")
        try:
            return cls(folder)
        except ChannelError as error:
            raise RunError(str(error)) from None

    @property
    def is_offline(self) -> bool:
        """Whether there is no launcher."""
        return not self._folder

    def get_secret(self, name: str) -> str:
        """The value, as it is now, of a secret that the job's config names in `secrets`. Raises `RunError`."""
        if self.is_offline:
            raise RunError(f"the secret {name!r} comes from the launcher of a job, and this run is offline")
        try:
            return str(ask(self._folder, {"do": "secret", "name": name})["value"])
        except ChannelError as error:
            raise RunError(str(error)) from None

    def get_secrets(self, secrets: Iterable[str]) -> dict[str, str]:
        """The values of several secrets by name."""
        return {name: self.get_secret(name) for name in secrets}

    def log(self, name: str, value: Any, description: str = "", step: int | None = None) -> None:
        """Log a number or a text; logged again, it is the next value of a series. `step` is for reading only."""
        self._log([(name, value)])

    def log_list(self, name: str, value: Iterable[Any], description: str = "") -> None:
        """Log several values of a series."""
        self._log([(name, item) for item in value])

    def log_row(self, name: str, description: str | None = None, **columns: Any) -> None:
        """Log a row of a table: each column is the series `name.column`."""
        self._log([(f"{name}.{column}", value) for column, value in columns.items()])

    def log_table(self, name: str, value: Mapping[str, Any], description: str = "") -> None:
        """Log a table: lists (or single values) by column."""
        for column, values in value.items():
            self.log_list(f"{name}.{column}", values if isinstance(values, (list, tuple)) else [values])

    def _log(self, points: list[tuple[str, Any]]) -> None:
        plain = [(str(name), _plain(value)) for name, value in points]
        if self.is_offline:
            for name, value in plain:
                print(f"{name}: {value}", flush=True)
            return
        try:
            for piece in _pieces(plain):
                ask(self._folder, {"do": "log", "points": piece})
        except ChannelError as error:  # a training of hours is worth more than one of its numbers
            print(f"{plain[0][0]} is not logged: {error}", file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    """A number, truth value or text; those of numpy and torch become Python's."""
    if not isinstance(value, (bool, int, float, str)) and hasattr(value, "item"):
        with suppress(TypeError, ValueError, RuntimeError):  # an array of several numbers is no reason to end
            value = value.item()
    if isinstance(value, int) and value.bit_length() > _LONG:
        return hex(value)
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _pieces(points: list[tuple[str, Any]]) -> Iterable[list[tuple[str, Any]]]:
    """The points in requests that are short enough."""
    piece: list[tuple[str, Any]] = []
    length = 0
    for name, value in points:
        size = len(name) + len(str(value)) + 10
        if piece and length + size > _PIECE:
            yield piece
            piece, length = [], 0
        piece.append((name, value))
        length += size
    if piece:
        yield piece
