"""Labels: names such as `production` that are moved from version to version.

What counts is the history of the environment, where no move is lost. The image is tagged with the label, too, for
consumers who know nothing of it; the tag follows the history, and is put right by the next who sets that label.
"""

import logging
from collections.abc import Mapping
from typing import Any

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import NotFound, VersionNotFound, VersionPruned
from prefect_environments.core.history import LATEST, Entry, check_label
from prefect_environments.core.shelf import Book
from prefect_environments.core.site import Site
from prefect_environments.core.steps import has_image
from prefect_environments.core.versions import VersionRecord, VersionStore

logger = logging.getLogger(__name__)


async def set_label(
    site: Site,
    name: str,
    label: str,
    version: int | None = None,
    *,
    reason: str = "",
    created_by: Mapping[str, Any] | None = None,
) -> VersionRecord:
    """Let `label` name a version, the newest without a number; gives that version. Rolling back is setting it again.

    Raises `NameNotAllowed`, `VersionNotFound`, and `NotFound` where the version's image is gone: nobody could use it.
    """
    check_label(label)
    versions = site.workspace.versions
    record = await _existing(versions, name, version)
    if not await has_image(site, record):
        raise NotFound(
            f"{record.reference}, the image of {name} version {record.version}, is gone from the registry, and "
            f"the label {label!r} would name nothing; build the environment again"
        )

    def decide(book: Book) -> Entry | None:
        if record.version in book.life.gone:  # pruned since it was looked up
            raise VersionPruned(f"version {record.version} of {name!r} was pruned meanwhile; choose another")
        before = book.life.labels.get(label, 0)
        if before == record.version:
            return None
        return Entry(
            workspace=site.workspace.name,
            name=name,
            kind="labelled",
            version=record.version,
            label=label,
            reason=reason,
            created_by=dict(created_by or {}),
            details={"from": before},
        )

    written = await versions.append(name, decide)
    if written is None:
        logger.info("%s already names %s version %d", label, name, record.version)
    else:
        logger.info("%s: %s now names version %d, before %s", name, label, record.version, _before(written))
    await _tag(site, name, label)
    return record


async def remove_label(
    site: Site, name: str, label: str, *, reason: str = "", created_by: Mapping[str, Any] | None = None
) -> bool:
    """Take a label away; `False` if it was not set. Raises `VersionNotFound` for a name that is not registered."""
    check_label(label)

    def decide(book: Book) -> Entry | None:
        if label not in book.life.labels:
            return None
        return Entry(
            workspace=site.workspace.name,
            name=name,
            kind="labelled",
            label=label,
            reason=reason,
            created_by=dict(created_by or {}),
            details={"from": book.life.labels[label]},
        )

    written = await site.workspace.versions.append(name, decide)
    repository = site.repository(name)
    if not await repository.delete_tag(label) and written is not None and await repository.find_manifest(label):
        logger.warning(
            "%s: the label %s is removed, but its tag in %s is not: the registry cannot delete tags by themselves",
            name,
            label,
            repository.name,
        )
    await _tag(site, name, label)  # whoever set it anew meanwhile may have tagged before the tag was deleted
    return written is not None


async def labelled(versions: VersionStore, name: str, label: str) -> VersionRecord:
    """The version that a label names, for `latest` the newest. Raises `VersionNotFound` that says what there is."""
    if label.lower() == LATEST:
        return await _existing(versions, name, None)
    book = await versions.book(name)
    version = book.life.labels.get(check_label(label))
    if version is None:
        known = ", ".join(f"{known} ({at})" for known, at in sorted(book.life.labels.items()))
        raise VersionNotFound(
            f"no version of {name!r} in workspace {versions.workspace!r} has the label {label!r}; "
            + (f"it has {known}" if known else "no label of it is set yet: set_label sets one")
        )
    return await versions.get(name, version)


async def _existing(versions: VersionStore, name: str, version: int | None) -> VersionRecord:
    if version is not None:
        return await versions.get(name, version)
    newest = await versions.newest(name)
    if newest is None:
        raise VersionNotFound(f"no version of {name!r} is registered in workspace {versions.workspace!r}")
    return newest


async def _tag(site: Site, name: str, label: str) -> None:
    """Tag the image with the label as the history has it, also if somebody moves it meanwhile."""
    repository, tagged = site.repository(name), 0
    while True:
        version = (await site.workspace.versions.book(name)).life.labels.get(label)
        if version is None or version == tagged:
            return
        record = await site.workspace.versions.get(name, version)
        if EnvironmentDefinition(**record.definition).stays_where_it_is:
            logger.info("%s stays where it is, so the label %s is no tag there", record.reference, label)
            return
        found = await repository.find_manifest(label)
        if found is None or found.digest != record.digest:
            manifest = await repository.get_manifest(record.digest)
            await repository.put_manifest(manifest.content, manifest.descriptor.media_type, tag=label)
        tagged = version


def _before(entry: Entry) -> str:
    return f"version {entry.details['from']}" if entry.details.get("from") else "none"
