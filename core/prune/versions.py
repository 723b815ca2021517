"""One version out of the way: announced in the history, looked at again, deleted, looked at once more."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.history import Entry, Kind
from prefect_environments.core.names import slug
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.prune import removal
from prefect_environments.core.prune.claims import HOLD, in_progress
from prefect_environments.core.prune.plan import Decision, Shelved, decide, extended, needed
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.report import PruneRow, RowAction
from prefect_environments.core.prune.stock import Ledger, Stored, repository_path, with_attachments
from prefect_environments.core.shelf import Book
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord, VersionStore

if TYPE_CHECKING:
    from prefect_environments.core.prune.run import Protection

_FRESH = 10.0  # seconds

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Scene:
    """What all versions of a run share."""

    site: Site
    policy: PrunePolicy
    today: date
    protection: "Protection"
    neighbours: tuple[VersionStore, ...]
    created_by: Mapping[str, Any]
    stock: list[Stored]
    ledger: Ledger = field(init=False)
    _protected: frozenset[str] = field(default=frozenset(), init=False)
    _asked: float = field(default=-_FRESH, init=False)
    _extending: Mapping[tuple[str, int], str] = field(default_factory=dict, init=False)
    _listed: float = field(default=-_FRESH, init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.stock)

    async def protected(self) -> frozenset[str]:
        """Digests of images in use, and of those that job images in use were put on; some seconds old at most: jobs
        also mark the versions that they use."""
        if time.monotonic() - self._asked > _FRESH:
            found = await self.protection()
            jobs = (one for one in self.stock if one.kind == "job" and one.digest in found and one.base)
            self._protected, self._asked = found | {one.base for one in jobs}, time.monotonic()
        return self._protected

    async def extending(self) -> Mapping[tuple[str, int], str]:
        """Versions that living ones extend; some seconds old at most: it takes a look at all records."""
        if time.monotonic() - self._listed > _FRESH:
            books = await self.site.workspace.versions.books()
            living = (record for name, book in books.items() for record in Shelved.of(name, book).living.values())
            self._extending, self._listed = extended(living), time.monotonic()
        return self._extending


@dataclass(slots=True)
class VersionPruner:
    """Carries out the decision that a version goes."""

    scene: Scene
    decision: Decision

    @property
    def record(self) -> VersionRecord:
        return self.decision.record

    @property
    def store(self) -> VersionStore:
        return self.scene.site.workspace.versions

    async def prune(self) -> PruneRow:
        """What became of it. Raises the errors of the stores, and `TimeoutError` where they were too slow; what is
        half done then is done by the next run."""
        protected = await self.scene.protected()
        users = await self.scene.extending()
        if await self.store.append(self.record.name, lambda book: self._announced(book, protected, users)) is None:
            return self._row("keep", "its state changed meanwhile, or another run prunes it")
        async with asyncio.timeout(HOLD):  # later on a build may take this run for dead, and rely on what is there
            if why := await self._why_not():
                await self._write("spared", why)
                return self._row("spared", why)
            known = await self._delete()
        freed = 0
        if known is not None:
            if await self._is_shared():
                logger.info("%s version %d was registered again meanwhile", self.record.name, self.record.version)
                await removal.put_back(self.scene.site, self._repository, known)
            else:
                freed = self.scene.ledger.remove(self._stored())
        await self._write("pruned", self.decision.reason, digest=self.record.digest, bytes=freed)
        return self._row("pruned", self.decision.reason, freed)

    def _announced(self, book: Book, protected: frozenset[str], users: Mapping[tuple[str, int], str]) -> Entry | None:
        """The entry that the version is being pruned, if what is stored now still lets it go."""
        shelved, version = Shelved.of(self.record.name, book), self.record.version
        if version not in shelved.records or in_progress(book, version):
            return None
        if version not in shelved.life.pruning:
            policy = self.scene.policy.model_copy(update={"names": ()})
            goes = {one.record.version for one in decide([shelved], policy, self.scene.today, protected) if one.goes}
            if version not in goes or (self.record.name, version) in users:
                return None
        return self._entry("pruning", self.decision.reason)

    async def _why_not(self) -> str:
        """Why the version is needed after all; whoever uses it from now on sees that it is being pruned."""
        name, version = self.record.name, self.record.version
        if self.decision.action == "finish" and not await self._is_whole():
            return ""
        users = await self.scene.extending()
        if (name, version) in users:
            return f"{users[name, version]} extends it"
        shelved = Shelved.of(name, await self.store.book(name))
        return needed(shelved, version, self.scene.policy, self.scene.today, await self.scene.protected())

    async def _is_whole(self) -> bool:
        """Whether an interrupted run has deleted nothing yet."""
        wanted = [self.record.lock_digest, *([self.record.digest] if is_ours(self.record) else [])]
        return all([await self._repository.find_manifest(digest) for digest in wanted if digest])

    async def _delete(self) -> removal.Remembered | None:
        if not self.record.digest or await self._is_shared():
            return None
        tags = {tag for one in self._stored() if one.digest == self.record.digest for tag in one.tags}
        tags |= {digests.hex_of(self.record.image_hash)} if self.record.image_hash else set()
        known = await removal.remember(self._repository, self.record.digest, sorted(tags))
        await removal.take_away(self.scene.site, self._repository, known, image=is_ours(self.record))
        return known if is_ours(self.record) else removal.Remembered(known.digest, (), None, known.attached)

    async def _is_shared(self) -> bool:
        """Whether a living version has the same image, in this workspace or in one that shares its repositories."""
        own = Shelved.of(self.record.name, await self.store.book(self.record.name))
        digests_of = {record.digest for record in own.living.values()}
        for store in self.scene.neighbours:
            for name, book in (await store.books()).items():
                if slug(name) == slug(self.record.name):
                    digests_of |= {record.digest for record in Shelved.of(name, book).living.values()}
        return self.record.digest in digests_of

    @property
    def _repository(self) -> Repository:
        return self.scene.site.repository(self.record.name)

    def _stored(self) -> list[Stored]:
        path = repository_path(self.scene.site, self.record.name)
        return with_attachments(self.scene.stock, path, self.record.digest)

    async def _write(self, kind: Kind, reason: str, **details: object) -> None:
        await self.store.append(self.record.name, lambda _book: self._entry(kind, reason, **details))

    def _entry(self, kind: Kind, reason: str, **details: object) -> Entry:
        return Entry(
            workspace=self.record.workspace,
            name=self.record.name,
            kind=kind,
            version=self.record.version,
            reason=reason,
            created_by=dict(self.scene.created_by),
            details=details,
        )

    def _row(self, action: RowAction, reason: str, size: int = 0) -> PruneRow:
        name, version = self.record.name, self.record.version
        return PruneRow(name=name, version=version, action=action, reason=reason, bytes=size)


def is_ours(record: VersionRecord) -> bool:
    """Whether the image is in the environment's repository because a build put it there."""
    try:
        return not EnvironmentDefinition(**record.definition).stays_where_it_is
    except (DefinitionError, TypeError):
        return False  # who knows what it is: its image stays
