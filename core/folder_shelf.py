"""Versions and their history as files, for workspaces without a server."""

import asyncio
import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar

from prefect_environments.core import files
from prefect_environments.core.errors import VersionError
from prefect_environments.core.history import Entry, checked_entry
from prefect_environments.core.names import slug
from prefect_environments.core.shelf import Book
from prefect_environments.core.version_record import VersionRecord, canonical, checked_record

_T = TypeVar("_T")
_NUMBER = re.compile(r"[1-9][0-9]*")
_NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_CLAIM_PATIENCE = 5.0  # seconds for the winner of a number to show its file, where hard links are not possible
_HISTORY, _USED = "history", "used"


class FolderShelf:
    """A `Shelf` of files: `<slug>/<version>.json`, `<slug>/history/<number>.json`, `<slug>/used/<version>`.

    A file appears under its name with all its content, or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def create(self, document: VersionRecord | Entry) -> bool:
        return await self._run(self._create, document)

    async def read(self, name: str, version: int) -> VersionRecord | None:
        return await self._run(_read_record, self._folder / slug(name) / f"{version}.json")

    async def read_entry(self, name: str, number: int) -> Entry | None:
        return await self._run(_read_entry, self._folder / slug(name) / _HISTORY / f"{number}.json")

    async def read_book(self, name: str) -> Book:
        return await self._run(self._book, self._folder / slug(name))

    async def read_books(self) -> list[Book]:
        def every() -> list[Book]:
            folders = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
            return [self._book(folder) for folder in folders if folder.is_dir()]

        return [book for book in await self._run(every) if book.numbers]

    async def mark_used(self, name: str, version: int, day: date) -> None:
        def mark() -> None:
            place = self._folder / slug(name) / _USED
            place.mkdir(parents=True, exist_ok=True)
            noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()
            (place / str(version)).touch()
            os.utime(place / str(version), (noon, noon))

        await self._run(mark)

    async def _run(self, work: Callable[..., _T], *arguments: object) -> _T:
        def guarded() -> _T:
            with self._readable():
                return work(*arguments)

        return await asyncio.to_thread(guarded)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise VersionError(f"the versions in {self._folder} cannot be read or written: {reason}") from error

    def _book(self, folder: Path) -> Book:
        # here, because a version that was written by a process that then died is not written again
        for place in (folder, folder / _HISTORY):
            files.sweep(place)

        def load(number: int) -> VersionRecord:
            with self._readable():
                record = _read_record(folder / f"{number}.json")
            if record is None:
                raise VersionError(f"the file {folder / f'{number}.json'} was removed while it was read")
            return record

        entries = [_read_entry(path) for path in _numbered(folder / _HISTORY)]
        marks = (folder / _USED).iterdir() if (folder / _USED).is_dir() else ()
        used = {
            int(path.name): datetime.fromtimestamp(path.stat().st_mtime, UTC).date()
            for path in marks
            if _NUMBER.fullmatch(path.name)
        }
        numbers = tuple(int(path.stem) for path in _numbered(folder))
        return Book(numbers, load, tuple(entry for entry in entries if entry), used)

    def _create(self, document: VersionRecord | Entry) -> bool:
        place = self._folder / slug(document.name)
        if isinstance(document, Entry):
            path = place / _HISTORY / f"{document.number}.json"
            content = {"entry": document.to_json(), "entry_digest": document.digest()}
        else:
            path = place / f"{document.version}.json"
            content = {"record": document.to_json(), "record_digest": document.record_digest()}
        files.sweep(path.parent)
        if path.exists():
            return False
        with files.temporary_file(path.parent) as file:
            file.write(canonical(content))
            file.flush()
            os.fsync(file.fileno())
            files.open_to_all(Path(file.name))
            created = _publish(Path(file.name), path)
            _sync_folder(path.parent)
        return created


def _read_record(path: Path) -> VersionRecord | None:
    stored = _stored(path)
    if stored is None:
        return None
    record = checked_record(stored.get("record"), stored.get("record_digest"), f"the file {path}")
    if (slug(record.name), str(record.version)) != (path.parent.name, path.stem):
        raise VersionError(f"the file {path} holds version {record.version} of {record.name!r}; it was moved here")
    return record


def _read_entry(path: Path) -> Entry | None:
    stored = _stored(path)
    if stored is None:
        return None
    entry = checked_entry(stored.get("entry"), stored.get("entry_digest"), f"the file {path}")
    if (slug(entry.name), str(entry.number)) != (path.parents[1].name, path.stem):
        raise VersionError(f"the file {path} holds entry {entry.number} of {entry.name!r}; it was moved here")
    return entry


def _stored(path: Path) -> dict[str, object] | None:
    """The JSON object in a file; an empty one for what holds none, `None` where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        document = json.loads(content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _publish(temporary: Path, path: Path) -> bool:
    """Give a complete file its name, unless the name is taken: atomic on every file system with hard links."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    # Without hard links the number is claimed by an empty file first, and the content renamed into place, so that
    # nobody reads half of it. A claim without content is a dead writer's: its number stays unused.
    claim = path.with_suffix(".claim")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        _wait_for(path)
        return False
    if path.exists():
        return False
    temporary.replace(path)
    return True


def _wait_for(path: Path) -> None:
    end = time.monotonic() + _CLAIM_PATIENCE
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)


def _numbered(folder: Path) -> list[Path]:
    """The files of versions in the order of their numbers; claims and temporary files are none."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.suffix == ".json" and _NUMBER.fullmatch(path.stem)]
    return sorted(paths, key=lambda path: int(path.stem))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
