"""Archiving: an environment that is no longer offered. It is not listed, refreshed or built with all others, and still
works for whoever names it."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from prefect_environments.core.history import Entry
from prefect_environments.core.shelf import Book
from prefect_environments.core.versions import VersionStore

logger = logging.getLogger(__name__)


async def archive(
    versions: VersionStore, name: str, *, reason: str = "", created_by: Mapping[str, Any] | None = None
) -> bool:
    """Archive an environment; `False` if it is archived already. Raises `VersionNotFound` for a name that is none."""
    return await _set(versions, name, "archived", reason, created_by)


async def restore(
    versions: VersionStore, name: str, *, reason: str = "", created_by: Mapping[str, Any] | None = None
) -> bool:
    """Offer an archived environment again; `False` if it is not archived. Raises `VersionNotFound`."""
    return await _set(versions, name, "restored", reason, created_by)


async def _set(
    versions: VersionStore,
    name: str,
    kind: Literal["archived", "restored"],
    reason: str,
    created_by: Mapping[str, Any] | None,
) -> bool:
    def decide(book: Book) -> Entry | None:
        if book.life.archived == (kind == "archived"):
            return None
        return Entry(
            workspace=versions.workspace, name=name, kind=kind, reason=reason, created_by=dict(created_by or {})
        )

    written = await versions.append(name, decide) is not None
    logger.info("%s is %s%s", name, "" if written else "already ", kind)
    return written
