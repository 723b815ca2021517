"""Registered versions of environments: the record, the store protocol, the rule that hands out numbers, and a store
in a folder.

A version is written once and never changed. Its number is handed out by an atomic create: of all who try a number
one wins, the others look at what won and go on with the next.
"""

import asyncio
import contextlib
import errno
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prefect_environments.core import files
from prefect_environments.core.errors import NameNotAllowed, VersionError, VersionNotFound
from prefect_environments.core.names import check_name, check_workspace_name, slug
from prefect_environments.core.oci import digest as digests

SCHEMA_VERSION = 1
"""Raised only if a change would make older releases misread a record; new keys don't need that."""

_T = TypeVar("_T")
_NUMBER = re.compile(r"[1-9][0-9]*")
_NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_CLAIM_PATIENCE = 5.0  # seconds for the winner of a number to show its file, where hard links are not possible


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """All that a registered version is. Holds secret references only, never values."""

    workspace: str
    name: str
    version: int
    """From 1; 0 in a draft, before `register`."""
    reference: str
    """`host/repository@sha256:…`, the image."""
    digest: str = ""
    image_hash: str = ""
    definition_hash: str = ""
    record_hash: str = ""
    definition: Mapping[str, Any] = field(default_factory=dict)
    lock_digest: str = ""
    """Digest of the lock's blob that is attached to the image."""
    platform: str = ""
    python_path: str = ""
    environment_variables: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    """ISO 8601, UTC; `register` fills it in."""
    created_by: Mapping[str, Any] = field(default_factory=dict)
    """Versions of the tools, the flow run's id and the like."""
    packages: int = 0
    size: int = 0
    """Compressed size of the image in bytes."""
    nonce: str = ""
    """Tells one's own write from an equal one of somebody else, if the store's reply was lost."""
    schema_version: int = SCHEMA_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys that this release does not know; they are kept."""

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object; unknown keys stand beside the known ones, as they came."""
        known = {name: getattr(self, name) for name in _FIELDS}
        return {**self.extra, **{key: dict(v) if isinstance(v, Mapping) else v for key, v in known.items()}}

    @classmethod
    def from_json(cls, data: Any) -> "VersionRecord":
        """Read a record of any release: missing optional keys get defaults, unknown ones go to `extra`.

        Raises `VersionError` for what is not a record, or has a schema version that this release does not know.
        """
        if not isinstance(data, Mapping):
            raise VersionError(f"a version's record must be a JSON object, got {type(data).__name__}")
        missing = [key for key in ("workspace", "name", "version", "reference") if key not in data]
        if missing:
            raise VersionError(f"a version's record lacks {', '.join(missing)}")
        for key, kind in _FIELDS.items():
            if key in data and (not isinstance(data[key], kind) or isinstance(data[key], bool)):
                raise VersionError(f"a version's record has a {key} of the wrong type ({type(data[key]).__name__})")
        if data.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
            raise VersionError(
                f"version {data['version']} of {data['name']!r} was written by a newer release "
                f"(schema {data['schema_version']}, this one reads up to {SCHEMA_VERSION}); "
                "upgrade prefect-environments"
            )
        known = {key: value for key, value in data.items() if key in _FIELDS}
        return cls(**known, extra={key: value for key, value in data.items() if key not in _FIELDS})

    def record_digest(self) -> str:
        """The digest of the record's canonical JSON. (`digest`, the field, is the image's.)"""
        return digests.of(canonical(self.to_json()))


_FIELDS: dict[str, type] = {
    f.name: int if f.type in (int, "int") else str if f.type in (str, "str") else Mapping
    for f in fields(VersionRecord)
    if f.name != "extra"
}


def canonical(document: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys, no white space, in UTF-8. Raises `VersionError` for what JSON cannot hold."""
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:
        raise VersionError(f"a version's record cannot be written as JSON ({type(error).__name__})") from None


def checked_record(document: Any, record_digest: object, where: str) -> VersionRecord:
    """The record in a stored document, whose bytes must have the digest stored with it; else `VersionError`.

    The document itself is hashed, not what was read from it, so that records with other keys stay valid for ever.
    """
    if not isinstance(document, Mapping) or not isinstance(record_digest, str):
        raise VersionError(f"{where} holds no version; remove it or restore it from a backup")
    if digests.of(canonical(document)) != record_digest:
        raise VersionError(
            f"{where} was altered: its record does not have the digest that was stored with it; "
            "restore it from a backup or register the environment again"
        )
    return VersionRecord.from_json(document)


class VersionStore(Protocol):
    """The registered versions of one workspace. Methods raise `VersionError`, and `NameNotAllowed` for a name whose
    slug another name or workspace owns."""

    @property
    def workspace(self) -> str: ...

    async def versions(self, name: str) -> list[VersionRecord]:
        """All versions by number, the oldest first; empty for a name that was never registered."""

    async def newest(self, name: str) -> VersionRecord | None: ...

    async def get(self, name: str, version: int) -> VersionRecord:
        """One version; `VersionNotFound` names those that exist."""

    async def find(self, name: str, *, definition_hash: str) -> VersionRecord | None:
        """The newest version with this definition hash."""

    async def register(self, draft: VersionRecord) -> VersionRecord:
        """The draft as the next version, or the newest one unchanged if it has the same record hash."""

    async def names(self) -> list[VersionRecord]:
        """The newest version of every environment, by name."""


class Shelf(Protocol):
    """Where records are kept: the little that a store must do itself. Records are addressed by the name's slug."""

    async def create(self, record: VersionRecord) -> bool:
        """Write a record under its name and number; `False` if the number is taken, perhaps by this very call."""

    async def read(self, name: str, version: int) -> VersionRecord | None: ...

    async def read_all(self, name: str) -> list[VersionRecord]: ...

    async def read_newest(self, name: str) -> VersionRecord | None: ...

    async def read_newest_of_all(self) -> list[VersionRecord]:
        """The newest record of every name, also those of a workspace with the same slug."""


async def hand_out_number(shelf: Shelf, draft: VersionRecord) -> VersionRecord:
    """Write `draft` under the next free number and give it back as written.

    The newest record is given back instead if it has the draft's record hash, also if it was written meanwhile. Every
    number below one that was written is taken: none is left out, none is given twice.
    """
    newest = await shelf.read_newest(draft.name)
    if newest is not None and _same(newest, draft):
        return newest
    draft = replace(
        draft, created=draft.created or datetime.now(UTC).isoformat(timespec="seconds"), nonce=uuid.uuid4().hex
    )
    number = newest.version + 1 if newest else 1
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

    async def versions(self, name: str) -> list[VersionRecord]:
        records = sorted(await self._shelf.read_all(check_name(name)), key=lambda record: record.version)
        for record in records:
            _check_owner(record, self._workspace, name)
        return records

    async def newest(self, name: str) -> VersionRecord | None:
        record = await self._shelf.read_newest(check_name(name))
        if record is not None:
            _check_owner(record, self._workspace, name)
        return record

    async def get(self, name: str, version: int) -> VersionRecord:
        record = await self._shelf.read(check_name(name), version) if version > 0 else None
        if record is not None:
            _check_owner(record, self._workspace, name)
            return record
        exist = [str(found.version) for found in await self.versions(name)]
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

    async def names(self) -> list[VersionRecord]:
        records = await self._shelf.read_newest_of_all()
        return sorted((r for r in records if r.workspace == self._workspace), key=lambda r: r.name.lower())


class FolderVersionStore(ShelvedVersions):
    """Versions as files `folder/<slug>/<number>.json`, shared safely by processes, also over a network file system.

    Raises `VersionError` if the folder cannot be used or a file was altered.
    """

    def __init__(self, folder: str | Path, workspace: str) -> None:
        super().__init__(FolderShelf(Path(folder)), workspace)


class FolderShelf:
    """A `Shelf` of files. A file appears under its name with all its content, or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def create(self, record: VersionRecord) -> bool:
        return await self._run(self._create, record)

    async def read(self, name: str, version: int) -> VersionRecord | None:
        return await self._run(self._read, self._folder / slug(name) / f"{version}.json")

    async def read_all(self, name: str) -> list[VersionRecord]:
        found = await self._run(lambda: [self._read(path) for path in _numbered(self._folder / slug(name))])
        return [record for record in found if record]

    async def read_newest(self, name: str) -> VersionRecord | None:
        return await self._run(self._newest, self._folder / slug(name))

    async def read_newest_of_all(self) -> list[VersionRecord]:
        def newest_of_all() -> list[VersionRecord | None]:
            folders = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
            return [self._newest(folder) for folder in folders if folder.is_dir()]

        return [record for record in await self._run(newest_of_all) if record]

    async def _run(self, work: Callable[..., _T], *arguments: object) -> _T:
        try:
            return await asyncio.to_thread(work, *arguments)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise VersionError(f"the versions in {self._folder} cannot be read or written: {reason}") from error

    def _newest(self, folder: Path) -> VersionRecord | None:
        files.sweep(folder)  # here, because a version that was written by a process that then died is not written again
        paths = _numbered(folder)
        return self._read(paths[-1]) if paths else None

    def _read(self, path: Path) -> VersionRecord | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        stored = document if isinstance(document, dict) else {}
        record = checked_record(stored.get("record"), stored.get("record_digest"), f"the file {path}")
        if (slug(record.name), str(record.version)) != (path.parent.name, path.stem):
            raise VersionError(f"the file {path} holds version {record.version} of {record.name!r}; it was moved here")
        return record

    def _create(self, record: VersionRecord) -> bool:
        path = self._folder / slug(record.name) / f"{record.version}.json"
        files.sweep(path.parent)
        if path.exists():
            return False
        document = canonical({"record": record.to_json(), "record_digest": record.record_digest()})
        with files.temporary_file(path.parent) as file:
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
            files.open_to_all(Path(file.name))
            created = _publish(Path(file.name), path)
            _sync_folder(path.parent)
        return created


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
