"""Registered versions of environments: the store protocol, the rule that hands out numbers, and a store in a folder.

A version is written once and never changed. Its number is handed out by an atomic create: of all who try a number
one wins, the others look at what won and go on with the next. What happens to it later (labels, pruning) is written
beside it, see `core.history`.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Protocol

from prefect_environments.core.concurrency import gather
from prefect_environments.core.errors import NameNotAllowed, VersionError, VersionNotFound, VersionPruned
from prefect_environments.core.folder_shelf import FolderShelf
from prefect_environments.core.history import Entry, Life
from prefect_environments.core.names import check_name, check_workspace_name
from prefect_environments.core.shelf import Book, Shelf
from prefect_environments.core.version_record import SCHEMA_VERSION, VersionRecord, canonical, checked_record, day_of

__all__ = [
    "SCHEMA_VERSION",
    "FolderVersionStore",
    "ShelvedVersions",
    "VersionRecord",
    "VersionStore",
    "canonical",
    "checked_record",
    "hand_out_number",
    "last_used",
]

_MARKS = 8
"""Versions that are marked as used at once."""


class VersionStore(Protocol):
    """The registered versions of one workspace. Methods raise `VersionError`, and `NameNotAllowed` for a name whose
    slug another name or workspace owns. Pruned versions are not given, unless a method says so."""

    @property
    def workspace(self) -> str: ...

    async def versions(self, name: str, *, pruned: bool = False) -> list[VersionRecord]:
        """All versions by number, the oldest first; empty for a name that was never registered."""

    async def newest(self, name: str) -> VersionRecord | None: ...

    async def get(self, name: str, version: int) -> VersionRecord:
        """One version; `VersionNotFound` names those that exist, and is `VersionPruned` for one that is no more."""

    async def find(self, name: str, *, definition_hash: str) -> VersionRecord | None:
        """The newest version with this definition hash."""

    async def register(self, draft: VersionRecord) -> VersionRecord:
        """The draft as the next version, or the newest one unchanged if it has the same record hash."""

    async def names(self, *, archived: bool = False) -> list[VersionRecord]:
        """The newest version of every environment, by name; of archived ones only if asked."""

    async def book(self, name: str) -> Book:
        """All that is stored about an environment, pruned versions and history too. `VersionNotFound` if nothing."""

    async def books(self) -> Mapping[str, Book]:
        """Of every environment of the workspace, archived ones too, by name."""

    async def append(self, name: str, decide: Callable[[Book], Entry | None]) -> Entry | None:
        """Write the entry that `decide` makes of what is stored, as the next of the environment's history.

        `decide` is asked again with what is stored then, if somebody else wrote meanwhile; `None` writes nothing.
        """

    async def mark_used(self, record: VersionRecord) -> bool:
        """Note that a version is used today; `False` if that was known. Raises `VersionPruned` for one that is
        pruned, or is about to be, so that who marks it first may rely on its image."""

    async def mark_all_used(self, records: Sequence[VersionRecord]) -> Mapping[str, Book]:
        """Note that versions of several environments are used today, and give the books as they are after that: who
        relies on one of the versions looks there whether it still lives."""


async def hand_out_number(shelf: Shelf, draft: VersionRecord) -> VersionRecord:
    """Write `draft` under the next free number and give it back as written.

    The newest record is given back instead if it has the draft's record hash, also if it was written meanwhile. Every
    number below one that was written is taken, by pruned versions too: none is left out, none is given twice.
    """
    book = await shelf.read_book(draft.name)
    last = book.numbers[-1] if book.numbers else 0
    if last:
        newest = await asyncio.to_thread(book.load, last)
        if _same(newest, draft) and last not in book.life.gone:
            return newest
    created = draft.created or datetime.now(UTC).isoformat(timespec="seconds")
    draft = replace(draft, created=created, nonce=uuid.uuid4().hex)
    number = last + 1
    while True:
        record = replace(draft, version=number)
        if await shelf.create(record):
            return record
        found = await shelf.read(draft.name, number)
        # Nothing to read under a taken number: its writer died between claiming and writing it. It stays unused.
        if found is not None and (_same(found, draft) or found.nonce == draft.nonce):
            return found
        number += 1


def _same(found: VersionRecord, draft: VersionRecord) -> bool:
    """Whether registering `draft` would repeat `found`; `NameNotAllowed` if `found` belongs to somebody else."""
    _check_owner(found, draft.workspace, draft.name)
    return bool(draft.record_hash) and (found.record_hash, found.reference) == (draft.record_hash, draft.reference)


def _check_owner(found: VersionRecord, workspace: str, name: str) -> None:
    if found.workspace != workspace:
        raise NameNotAllowed(
            f"the workspace name {workspace!r} shares its documents with the workspace {found.workspace!r}, which "
            f"holds {found.name!r}; choose a workspace name that differs in more than case, '.', '_' and '-'"
        )
    if found.name != name:
        raise NameNotAllowed(
            f"the environment name {name!r} would share a repository with {found.name!r}, which exists in workspace "
            f"{workspace!r}; use that name, or one that differs in more than case, '.', '_' and '-'"
        )


class ShelvedVersions:
    """A `VersionStore` over any `Shelf`."""

    def __init__(self, shelf: Shelf, workspace: str) -> None:
        self._shelf = shelf
        self._workspace = check_workspace_name(workspace)

    @property
    def workspace(self) -> str:
        return self._workspace

    async def versions(self, name: str, *, pruned: bool = False) -> list[VersionRecord]:
        book = await self._shelf.read_book(check_name(name))
        return await self._load(book, name, book.numbers if pruned else book.living)

    async def newest(self, name: str) -> VersionRecord | None:
        book = await self._shelf.read_book(check_name(name))
        found = await self._load(book, name, book.living[-1:])
        return found[0] if found else None

    async def get(self, name: str, version: int) -> VersionRecord:
        book = await self._shelf.read_book(check_name(name))
        if version in book.numbers:
            (record,) = await self._load(book, name, (version,))
            _check_lives(book.life, record)
            return record
        exist = [str(number) for number in book.living]
        has = f"it has {', '.join(exist)}" if exist else "no version of it is registered"
        raise VersionNotFound(f"environment {name!r} has no version {version} in workspace {self._workspace!r}; {has}")

    async def find(self, name: str, *, definition_hash: str) -> VersionRecord | None:
        found = [record for record in await self.versions(name) if record.definition_hash == definition_hash]
        return found[-1] if found and definition_hash else None

    async def register(self, draft: VersionRecord) -> VersionRecord:
        check_name(draft.name)
        if draft.workspace != self._workspace:
            raise VersionError(
                f"a version of workspace {draft.workspace!r} cannot be registered in {self._workspace!r}; "
                "make the draft for the workspace that registers it"
            )
        return await hand_out_number(self._shelf, draft)

    async def names(self, *, archived: bool = False) -> list[VersionRecord]:
        found = (await self._owned()).values()
        newest = [(last, book) for last, book in found if book.living and (archived or not book.life.archived)]

        def living(last: VersionRecord, book: Book) -> VersionRecord:
            number = book.living[-1]
            return last if last.version == number else book.load(number)

        records = await asyncio.to_thread(lambda: [living(last, book) for last, book in newest])
        return sorted(records, key=lambda record: record.name.lower())

    async def book(self, name: str) -> Book:
        book = await self._shelf.read_book(check_name(name))
        if not await self._load(book, name, book.numbers[-1:]):
            raise VersionNotFound(f"environment {name!r} is not registered in workspace {self._workspace!r}")
        return book

    async def books(self) -> Mapping[str, Book]:
        return {name: book for name, (_, book) in (await self._owned()).items()}

    async def append(self, name: str, decide: Callable[[Book], Entry | None]) -> Entry | None:
        taken = 0
        while True:
            book = await self.book(name)
            draft = decide(book)
            if draft is None:
                return None
            created = draft.created or datetime.now(UTC).isoformat(timespec="seconds")
            number = max(book.life.last, taken) + 1
            entry = replace(draft, number=number, created=created, nonce=uuid.uuid4().hex)
            if await self._shelf.create(entry):
                return entry
            found = await self._shelf.read_entry(name, number)
            if found is not None and found.nonce == entry.nonce:
                return found
            if found is None:  # its writer died between claiming and writing it: the number stays unused
                taken = number

    async def mark_used(self, record: VersionRecord) -> bool:
        today = datetime.now(UTC).date()
        book = await self._shelf.read_book(check_name(record.name))
        _check_lives(book.life, record)
        if last_used(book, record) >= today:
            return False
        await self._shelf.mark_used(record.name, record.version, today)
        # Who prunes looks at the marks after writing that it will: one of the two sees what the other wrote.
        _check_lives((await self._shelf.read_book(record.name)).life, record)
        return True

    async def mark_all_used(self, records: Sequence[VersionRecord]) -> Mapping[str, Book]:
        today, limit = datetime.now(UTC).date(), asyncio.Semaphore(_MARKS)

        async def mark(record: VersionRecord) -> None:
            async with limit:
                await self._shelf.mark_used(record.name, record.version, today)

        await gather(map(mark, records))
        return await self.books()

    async def _owned(self) -> dict[str, tuple[VersionRecord, Book]]:
        """The books of this workspace, whose slug another one may share, by name."""
        books = await self._shelf.read_books()
        newest = await asyncio.to_thread(lambda: [book.load(book.numbers[-1]) for book in books])
        pairs = zip(newest, books, strict=True)
        return {record.name: (record, book) for record, book in pairs if record.workspace == self._workspace}

    async def _load(self, book: Book, name: str, numbers: tuple[int, ...]) -> list[VersionRecord]:
        records = await asyncio.to_thread(lambda: [book.load(number) for number in numbers])
        for record in records:
            _check_owner(record, self._workspace, name)
        return records


def last_used(book: Book, record: VersionRecord) -> date:
    """The day when a version was last handed out: that of its registration, or a later one."""
    return max(book.used.get(record.version, date.min), day_of(record.created) or date.min)


def _check_lives(life: Life, record: VersionRecord) -> None:
    entry = life.pruned.get(record.version)
    if entry is not None:
        when = f"was pruned on {entry.created[:10]}" + (f" ({entry.reason})" if entry.reason else "")
    elif record.version in life.pruning:
        when = "is being pruned"
    else:
        return
    raise VersionPruned(
        f"version {record.version} of {record.name!r} in workspace {record.workspace!r} {when}: its image is no more. "
        "Building its definition again registers a new version"
    )


class FolderVersionStore(ShelvedVersions):
    """Versions as files `folder/<slug>/<number>.json`, shared safely by processes, also over a network file system.

    Raises `VersionError` if the folder cannot be used or a file was altered.
    """

    def __init__(self, folder: str | Path, workspace: str) -> None:
        super().__init__(FolderShelf(Path(folder)), workspace)
