"""How builds and a prune that run at the same time keep out of each other's way, without a lock between them.

A prune writes `pruning` into the history and then looks at the marks of use; a build writes a mark and then looks at
the history. So at least one of the two sees the other. An entry `pruning` counts as work in progress for `LEASE`
seconds; its writer deletes nothing later than `HOLD` seconds after it.
"""

import asyncio
import logging
from datetime import UTC, datetime

from prefect_environments.core.errors import VersionNotFound, VersionPruned
from prefect_environments.core.history import Entry
from prefect_environments.core.shelf import Book
from prefect_environments.core.versions import VersionStore

LEASE = 120.0
HOLD = 60.0
_GLANCE = 0.5

logger = logging.getLogger(__name__)


def in_progress(book: Book, version: int) -> bool:
    """Whether somebody prunes the version at this moment, as far as the clocks of two machines agree."""
    announced = [entry for entry in book.entries if entry.kind == "pruning" and entry.version == version]
    return version in book.life.pruning and bool(announced) and age(announced[-1]) < LEASE


async def claim(versions: VersionStore, name: str, image_hash: str) -> None:
    """Before a build looks for an image by its hash: mark the version that has it as used, so that nobody prunes it;
    where it is being pruned, wait for the end of that, at most `LEASE` seconds. What an interrupted prune left is
    marked too: the one that finishes it then leaves alone what the build finds, or makes again."""
    marked = set[int]()
    while True:
        try:
            book = await versions.book(name)
        except VersionNotFound:
            return
        gone, left = book.life.gone, [n for n in book.numbers if n not in book.life.pruned]
        records = await asyncio.to_thread(lambda: [book.load(number) for number in left])  # noqa: B023 - run at once
        same = [record for record in records if record.image_hash == image_hash]
        if any(record.version in gone and in_progress(book, record.version) for record in same):
            logger.info("the image of %s is being pruned; waiting for the end of that", name)
            await asyncio.sleep(_GLANCE)
            continue
        if living := [record for record in same if record.version not in gone]:
            try:
                await versions.mark_used(living[-1])
                return
            except VersionPruned:  # since the history was read
                continue
        interrupted = [record for record in same if record.version not in marked]
        if not interrupted:
            return
        await versions.mark_all_used(interrupted)
        marked |= {record.version for record in interrupted}  # and look again: somebody may have begun to finish it


def age(entry: Entry) -> float:
    """Seconds since an entry was written; its clock may be ahead of ours."""
    try:
        written = datetime.fromisoformat(entry.created)
    except ValueError:
        return LEASE
    if written.tzinfo is None:
        written = written.replace(tzinfo=UTC)
    return (datetime.now(UTC) - written).total_seconds()
