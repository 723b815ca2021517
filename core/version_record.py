"""The record of a registered version: written once, never changed, its digest stored beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from typing import Any

from prefect_environments.core.errors import VersionError
from prefect_environments.core.oci import digest as digests

SCHEMA_VERSION = 1
"""Raised only if a change would make older releases misread a record; new keys don't need that."""


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
    """Digest of the manifest by which the lock is attached to the image."""
    platform: str = ""
    python_path: str = ""
    environment_variables: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    """ISO 8601, UTC; `register` fills it in."""
    created_by: Mapping[str, Any] = field(default_factory=dict)
    """Versions of the tools, the flow run's id and the like."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Of a promoted version: workspace, name, version, reference and record digest of the one that it copies."""
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


def day_of(created: str) -> date | None:
    """The day (UTC) of a record's `created`; `None` for what no release wrote so, but somebody by hand."""
    try:
        written = datetime.fromisoformat(created)
    except ValueError:
        return None
    return (written.astimezone(UTC) if written.tzinfo else written).date()


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
