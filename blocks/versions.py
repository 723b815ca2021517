"""The versions of a workspace as create-only block documents on the Prefect API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from prefect_environments.blocks.version import EnvironmentVersion
from prefect_environments.core.errors import VersionError
from prefect_environments.core.names import document_name, document_prefix, workspace_prefix
from prefect_environments.core.versions import ShelvedVersions, VersionRecord, checked_record

PAGE = 200
"""Most documents that Prefect's API gives at once."""

_registered: dict[str, tuple[UUID, UUID]] = {}  # API url -> ids of EnvironmentVersion's block type and schema


class PrefectVersionStore(ShelvedVersions):
    """Versions kept by the Prefect API: a document's name is unique there, which makes creating one atomic.

    Raises `VersionError` if the API cannot be reached or a document was altered.
    """

    def __init__(self, workspace: str) -> None:
        super().__init__(BlockDocumentShelf(workspace), workspace)


class BlockDocumentShelf:
    """A `Shelf` of `EnvironmentVersion` documents named by `core.names.document_name`."""

    def __init__(self, workspace: str) -> None:
        self._workspace = workspace

    async def create(self, record: VersionRecord) -> bool:
        block = EnvironmentVersion.from_record(record)
        async with _client() as client:
            type_id, schema_id = await _register_type(client)
            document = BlockDocumentCreate(
                name=document_name(self._workspace, record.name, record.version),
                data=block.model_dump(include=set(EnvironmentVersion.model_fields)),
                block_type_id=type_id,
                block_schema_id=schema_id,
            )
            try:
                await client.create_block_document(document)
            except ObjectAlreadyExists:
                return False  # also where the client sent it again, after the answer to its first try was lost
            except httpx.HTTPStatusError:
                _registered.pop(str(client.api_url), None)  # the type may be gone: look again next time
                raise
        return True

    async def read(self, name: str, version: int) -> VersionRecord | None:
        wanted = document_name(self._workspace, name, version)
        async with _client() as client:
            try:
                document = await client.read_block_document_by_name(wanted, EnvironmentVersion.get_block_type_slug())
            except ObjectNotFound:
                return None
        return _record(wanted, document.data)

    async def read_all(self, name: str) -> list[VersionRecord]:
        prefix = document_prefix(self._workspace, name)
        return [_record(found, data) for found, data in (await _documents(prefix)).items()]

    async def read_newest(self, name: str) -> VersionRecord | None:
        documents = await _documents(document_prefix(self._workspace, name))
        newest = max(documents, key=_number, default=None)
        return _record(newest, documents[newest]) if newest else None

    async def read_newest_of_all(self) -> list[VersionRecord]:
        documents = await _documents(workspace_prefix(self._workspace))
        newest: dict[str, str] = {}
        for found in documents:
            prefix = found.rpartition("--v")[0]
            newest[prefix] = max(newest.get(prefix, found), found, key=_number)
        return [_record(found, documents[found]) for found in newest.values()]


async def _documents(prefix: str) -> dict[str, dict[str, Any]]:
    """Name and data of all version documents whose names start with `prefix`, every page."""
    # The API's `like_` finds the text anywhere. Pages are ordered by name, and documents are only ever added:
    # one that appears meanwhile can repeat another on the next page, but hide none.
    query = {
        "block_documents": {"name": {"like_": prefix}, "is_anonymous": {"eq_": False}},
        "block_types": {"slug": {"any_": [EnvironmentVersion.get_block_type_slug()]}},
        "include_secrets": True,  # there are none, and without it the API drops empty objects from the record
        "sort": "NAME_ASC",
        "limit": PAGE,
    }
    found: dict[str, dict[str, Any]] = {}
    async with _client() as client:
        for offset in range(0, 10**9, PAGE):
            response = await client.request("POST", "/block_documents/filter", json={**query, "offset": offset})
            page = response.json()
            found.update((document["name"], document["data"]) for document in page)
            if len(page) < PAGE:
                break
    return {name: data for name, data in found.items() if name.startswith(prefix) and _number(name)}


def _number(name: str) -> int:
    digits = name.rpartition("--v")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _record(name: str, data: dict[str, Any]) -> VersionRecord:
    where = f"the block document {EnvironmentVersion.get_block_type_slug()}/{name}"
    record = checked_record(data.get("record"), data.get("record_digest"), where)
    if document_name(record.workspace, record.name, record.version) != name:
        raise VersionError(f"{where} holds version {record.version} of {record.name!r}; it was moved here")
    return record


async def _register_type(client: PrefectClient) -> tuple[UUID, UUID]:
    """Make the block type known to this API, once a process; gives the ids of type and schema."""
    url = str(client.api_url)
    for attempt in range(5):
        if url in _registered:
            break
        try:
            await EnvironmentVersion.aregister_type_and_schema(client=client)
        except ObjectAlreadyExists:  # another process registers it just now
            if attempt == 4:
                raise
            continue
        type_id, schema_id = EnvironmentVersion._block_type_id, EnvironmentVersion._block_schema_id
        assert type_id and schema_id  # noqa: S101 - registering sets both
        _registered[url] = type_id, schema_id
    return _registered[url]


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
