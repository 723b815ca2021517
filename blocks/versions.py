"""The versions of a workspace as create-only block documents on the Prefect API."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import BlockDocumentCreate, BlockDocumentUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from prefect_environments.blocks.events import announce
from prefect_environments.blocks.history import EnvironmentHistory
from prefect_environments.blocks.version import EnvironmentVersion
from prefect_environments.core.errors import VersionError
from prefect_environments.core.history import Entry, checked_entry
from prefect_environments.core.names import document_name, document_prefix, history_name, use_name, workspace_prefix
from prefect_environments.core.shelf import Book
from prefect_environments.core.versions import ShelvedVersions, VersionRecord, checked_record

PAGE = 200
"""Most documents that Prefect's API gives at once."""

_registered: dict[tuple[str, str], tuple[UUID, UUID]] = {}  # API url, block type -> ids of block type and schema


class PrefectVersionStore(ShelvedVersions):
    """Versions kept by the Prefect API: a document's name is unique there, which makes creating one atomic.

    Raises `VersionError` if the API cannot be reached or a document was altered.
    """

    def __init__(self, workspace: str) -> None:
        self._documents = BlockDocumentShelf(workspace)
        super().__init__(self._documents, workspace)

    async def register(self, draft: VersionRecord) -> VersionRecord:
        """As any store does it; a version that was not there before is announced by an event."""
        record = await super().register(draft)
        if record.nonce in self._documents.unannounced:
            self._documents.unannounced.discard(record.nonce)
            await announce(record)
        return record


class BlockDocumentShelf:
    """A `Shelf` of `EnvironmentVersion` and `EnvironmentHistory` documents, named by `core.names`."""

    def __init__(self, workspace: str) -> None:
        self._workspace = workspace
        self.unannounced: set[str] = set()
        """Nonces of records that were tried to be written here: one that is read back with one of them is our own."""

    async def create(self, document: VersionRecord | Entry) -> bool:
        if isinstance(document, Entry):
            name = history_name(self._workspace, document.name, document.number)
            return await _create(name, EnvironmentHistory.from_entry(document))
        self.unannounced.add(document.nonce)
        name = document_name(self._workspace, document.name, document.version)
        return await _create(name, EnvironmentVersion.from_record(document))

    async def read(self, name: str, version: int) -> VersionRecord | None:
        found = await _read(EnvironmentVersion, document_name(self._workspace, name, version))
        return _record(found) if found else None

    async def read_entry(self, name: str, number: int) -> Entry | None:
        found = await _read(EnvironmentHistory, history_name(self._workspace, name, number))
        return _entry(found) if found else None

    async def read_book(self, name: str) -> Book:
        return _book(await _documents(document_prefix(self._workspace, name)))

    async def read_books(self) -> list[Book]:
        by_prefix: dict[str, list[_Document]] = {}
        for document in await _documents(workspace_prefix(self._workspace)):
            by_prefix.setdefault(document["name"].rpartition("--")[0], []).append(document)
        return [book for book in map(_book, by_prefix.values()) if book.numbers]

    async def mark_used(self, name: str, version: int, day: date) -> None:
        wanted = use_name(self._workspace, name, version)
        block = EnvironmentHistory(
            workspace=self._workspace, name=name, kind="used", version=version, created=day.isoformat()
        )
        if await _create(wanted, block):
            return
        found = await _read(EnvironmentHistory, wanted)
        if found is not None:  # of two who write at once either may win: they write the same day
            async with _client() as client:
                await client.update_block_document(UUID(found["id"]), BlockDocumentUpdate(data=_data(block)))


_Document = dict[str, Any]


def _book(documents: Iterable[_Document]) -> Book:
    kinds: dict[str, dict[int, _Document]] = {"v": {}, "h": {}, "u": {}}
    for document in documents:
        kind, number = _address(document["name"])
        kinds[kind][number] = document
    versions = kinds["v"]
    return Book(
        numbers=tuple(sorted(versions)),
        load=lambda number: _record(versions[number]),
        entries=tuple(_entry(document) for _, document in sorted(kinds["h"].items())),
        used={number: _day(found["data"].get("created")) for number, found in kinds["u"].items()},
    )


def _day(created: object) -> date:
    """The day of a mark of use. One that somebody edited counts as of yesterday: nobody prunes its version, and the
    next use writes it anew."""
    try:
        return date.fromisoformat(str(created)[:10])
    except ValueError:
        return datetime.now(UTC).date() - timedelta(days=1)


async def _create(name: str, block: EnvironmentVersion | EnvironmentHistory) -> bool:
    async with _client() as client:
        type_id, schema_id = await _register_type(client, type(block))
        document = BlockDocumentCreate(name=name, data=_data(block), block_type_id=type_id, block_schema_id=schema_id)
        try:
            await client.create_block_document(document)
        except ObjectAlreadyExists:
            return False  # also where the client sent it again, after the answer to its first try was lost
        except httpx.HTTPStatusError:
            _registered.clear()  # the type may be gone: look again next time
            raise
    return True


def _data(block: EnvironmentVersion | EnvironmentHistory) -> dict[str, Any]:
    return block.model_dump(include=set(type(block).model_fields))


async def _read(kind: type[EnvironmentVersion] | type[EnvironmentHistory], name: str) -> _Document | None:
    async with _client() as client:
        try:
            document = await client.read_block_document_by_name(name, kind.get_block_type_slug())
        except ObjectNotFound:
            return None
    return {"id": str(document.id), "name": name, "data": document.data}


async def _documents(prefix: str) -> list[_Document]:
    """All documents of versions and histories whose names start with `prefix`, every page."""
    # The API's `like_` finds the text anywhere. Pages are ordered by name, and documents are only ever added:
    # one that appears meanwhile can repeat another on the next page, but hide none.
    query = {
        "block_documents": {"name": {"like_": prefix}, "is_anonymous": {"eq_": False}},
        "block_types": {
            "slug": {"any_": [kind.get_block_type_slug() for kind in (EnvironmentVersion, EnvironmentHistory)]}
        },
        "include_secrets": True,  # there are none, and without it the API drops empty objects from the record
        "sort": "NAME_ASC",
        "limit": PAGE,
    }
    found: dict[str, _Document] = {}
    async with _client() as client:
        for offset in range(0, 10**9, PAGE):
            response = await client.request("POST", "/block_documents/filter", json={**query, "offset": offset})
            page = response.json()
            found.update((document["name"], document) for document in page)
            if len(page) < PAGE:
                break
    return [document for name, document in found.items() if name.startswith(prefix) and _address(name)[1]]


def _address(name: str) -> tuple[str, int]:
    """The letter for the kind of a document, and its number; the number is 0 for documents that are not ours."""
    last = name.rpartition("--")[2]
    kind, digits = last[:1], last[1:]
    known = kind in ("v", "h", "u") and digits.isascii() and digits.isdigit()
    return kind, int(digits) if known else 0


def _record(document: _Document) -> VersionRecord:
    name, data = document["name"], document["data"]
    where = f"the block document {EnvironmentVersion.get_block_type_slug()}/{name}"
    record = checked_record(data.get("record"), data.get("record_digest"), where)
    if document_name(record.workspace, record.name, record.version) != name:
        raise VersionError(f"{where} holds version {record.version} of {record.name!r}; it was moved here")
    return record


def _entry(document: _Document) -> Entry:
    name, data = document["name"], document["data"]
    where = f"the block document {EnvironmentHistory.get_block_type_slug()}/{name}"
    entry = checked_entry(data.get("entry"), data.get("entry_digest"), where)
    if history_name(entry.workspace, entry.name, entry.number) != name:
        raise VersionError(f"{where} holds entry {entry.number} of {entry.name!r}; it was moved here")
    return entry


async def _register_type(
    client: PrefectClient, kind: type[EnvironmentVersion] | type[EnvironmentHistory]
) -> tuple[UUID, UUID]:
    """Make the block type known to this API, once a process; gives the ids of type and schema."""
    key = str(client.api_url), kind.get_block_type_slug()
    for attempt in range(5):
        if key in _registered:
            break
        try:
            await kind.aregister_type_and_schema(client=client)
        except ObjectAlreadyExists:  # another process registers it just now
            if attempt == 4:
                raise
            continue
        type_id, schema_id = kind._block_type_id, kind._block_schema_id
        assert type_id and schema_id  # noqa: S101 - registering sets both
        _registered[key] = type_id, schema_id
    return _registered[key]


@asynccontextmanager
async def _client() -> AsyncIterator[PrefectClient]:
    """A client of the Prefect API; its failures come out as `VersionError`."""
    async with get_client() as client:
        url = str(client.api_url).rstrip("/")
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise VersionError(
                f"the Prefect API at {url} refused to read or write versions "
                f"(HTTP {error.response.status_code}); check its log and your permissions"
            ) from error
        except httpx.HTTPError as error:
            raise VersionError(
                f"the Prefect API at {url} cannot be reached ({type(error).__name__}); "
                "check PREFECT_API_URL and try again"
            ) from error
