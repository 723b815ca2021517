"""Where versions and their history are kept: the little that a store must do itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol

from prefect_environments.core.history import Entry, Life, life
from prefect_environments.core.version_record import VersionRecord


@dataclass(frozen=True, slots=True)
class Book:
    """All that is stored about one environment. Records are read from it when they are asked for."""

    numbers: tuple[int, ...]
    """Numbers of the versions, rising; pruned ones among them."""
    load: Callable[[int], VersionRecord]
    """The record of one of the `numbers`. May read a file. Raises `VersionError` for one that was altered."""
    entries: tuple[Entry, ...] = ()
    """The history, oldest first."""
    used: Mapping[int, date] = field(default_factory=dict)
    """The day (UTC) when a version was last handed out, for those that were since they were registered."""

    @property
    def life(self) -> Life:
        """What holds now."""
        return life(self.entries)

    @property
    def living(self) -> tuple[int, ...]:
        """Numbers of the versions that are not pruned."""
        gone = self.life.gone
        return tuple(number for number in self.numbers if number not in gone)


class Shelf(Protocol):
    """Documents of a workspace that are created once; addressed by an environment's slug and a number."""

    async def create(self, document: VersionRecord | Entry) -> bool:
        """Write a record or an entry under its name and number; `False` if the number is taken, perhaps by this
        very call."""

    async def read(self, name: str, version: int) -> VersionRecord | None: ...

    async def read_entry(self, name: str, number: int) -> Entry | None: ...

    async def read_book(self, name: str) -> Book: ...

    async def read_books(self) -> list[Book]:
        """Of every name, also those of a workspace with the same slug."""

    async def mark_used(self, name: str, version: int, day: date) -> None:
        """Note that a version was used on a day; the latest day counts."""
