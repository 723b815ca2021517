"""One version out of the way: announced in the history, looked at again, deleted, looked at once more."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import (
    DefinitionError,
    NameNotAllowed,
    PrefectEnvironmentsError,
    RegistryError,
    VersionNotFound,
)
from prefect_environments.core.history import Entry, Kind
from prefect_environments.core.names import slug
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.prune import removal
from prefect_environments.core.prune.claims import HOLD, age, in_progress
from prefect_environments.core.prune.plan import Decision, Shelved, decide, extended, needed
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.report import PruneRow, RowAction
from prefect_environments.core.prune.stock import Ledger, Stored, repository_path, with_attachments, with_bases
from prefect_environments.core.shelf import Book
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord, VersionStore

if TYPE_CHECKING:
    from prefect_environments.core.prune.run import Protection

_FRESH = 10.0  # seconds
_REBUILT = "an earlier run was interrupted, and a build makes its image again just now"

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
    _living: Sequence[VersionRecord] = field(default=(), init=False)
    _listed: float = field(default=-_FRESH, init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.stock)

    async def protected(self) -> frozenset[str]:
        """Digests of images in use, and of those that job images in use were put on; some seconds old at most: jobs
        also mark the versions that they use."""
        if time.monotonic() - self._asked > _FRESH:
            self._protected = with_bases(await self.protection(), self.stock)
            self._asked = time.monotonic()
        return self._protected

    async def living(self) -> Sequence[VersionRecord]:
        """What the workspace and its neighbours have; some seconds old at most: it takes a look at all records."""
        if time.monotonic() - self._listed > _FRESH:
            stores = self.site.workspace.versions, *self.neighbours
            books = [pair for store in stores for pair in (await store.books()).items()]
            self._living = [record for name, book in books for record in _living(name, book)]
            self._listed = time.monotonic()
        return self._living

    async def extending(self) -> Mapping[tuple[str, int], str]:
        """Versions that living ones of the workspace extend."""
        own = self.site.workspace.versions.workspace
        return extended(record for record in await self.living() if record.workspace == own)


@dataclass(slots=True)
class VersionPruner:
    """Carries out the decision that a version goes."""

    scene: Scene
    decision: Decision
    _begun: bool = field(default=False, init=False)
    """Whether a request to delete may have been sent."""
    _going: list[Stored] = field(default_factory=list, init=False)

    @property
    def record(self) -> VersionRecord:
        return self.decision.record

    @property
    def store(self) -> VersionStore:
        return self.scene.site.workspace.versions

    async def prune(self) -> PruneRow:
        """What became of it. Raises the errors of the stores, and `TimeoutError` where they were too slow. What was not
        begun, or was refused, then is as before; what is half done is done by the next run."""
        if await self._is_rebuilt():
            return self._row("keep", _REBUILT)
        protected = await self.scene.protected()
        users = await self.scene.extending()
        announced = await self.store.append(self.record.name, lambda book: self._announced(book, protected, users))
        if announced is None:
            return self._row("keep", "its state changed meanwhile, or another run prunes it")
        try:
            # later on a build may take this run for dead, and rely on what is there
            async with asyncio.timeout(max(0.0, HOLD - age(announced))):
                if why := await self._why_not():
                    await self._write("spared", why)
                    return self._row("spared", why)
                if await self._is_rebuilt():
                    return self._row("keep", _REBUILT)
                known = await self._delete()
        except (PrefectEnvironmentsError, TimeoutError) as error:
            await self._leave(error)
            raise
        freed = 0
        if known is not None and not await self._put_back(known):
            freed = self.scene.ledger.remove(self._going)
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

    async def _is_rebuilt(self) -> bool:
        """Whether somebody builds again, at this time, what an interrupted run deleted in part (see `claims.claim`)."""
        if self.decision.action != "finish":
            return False
        marked = (await self.store.book(self.record.name)).used.get(self.record.version)
        now = datetime.now(UTC).date()
        return marked is not None and marked >= now - timedelta(days=1) and not await self._is_whole()

    async def _leave(self, error: Exception) -> None:
        """After a failure: give the version back if nothing of it is gone. Of a request to delete that was not
        answered nobody knows what came of it."""
        refused = isinstance(error, RegistryError) and error.status is not None and 400 <= error.status < 500
        with suppress(PrefectEnvironmentsError):
            if self._begun and refused and await self._is_whole():
                await removal.lock_again(self.scene.site, self._repository, self.record.digest)
            elif self._begun or self.decision.action == "finish":
                return
            await self._write("spared", f"it could not be pruned: {error or 'it took too long'}")

    async def _delete(self) -> removal.Remembered | None:
        if not self.record.digest or await self._is_shared():
            return None
        stored = self._stored()
        tags = {tag for one in stored if one.digest == self.record.digest for tag in one.tags}
        tags |= {digests.hex_of(self.record.image_hash)} if self.record.image_hash else set()
        known = await removal.remember(self._repository, self.record.digest, sorted(tags))
        self._begun = True
        if await self._is_elsewhere():
            self._going = [one for one in stored if one.digest == self.record.digest]
            for tag in known.tags:
                await self._repository.delete_tag(tag)
            return removal.Remembered(known.digest, known.tags, known.image, ())
        ours = is_ours(self.record)
        self._going = [one for one in stored if ours or one.digest != self.record.digest]
        await removal.take_away(self.scene.site, self._repository, known, image=ours)
        return known if ours else removal.Remembered(known.digest, (), None, known.attached)

    async def _put_back(self, known: removal.Remembered) -> bool:
        """Store again what somebody has come to need since it was deleted."""
        site = self.scene.site
        if await self._is_shared():
            logger.info("%s version %d was registered again meanwhile", self.record.name, self.record.version)
            await removal.put_back(site, self._repository, known)
            return True
        if isinstance(site.store, Layout) and await self._repository.find_manifest(known.digest):
            # another environment has the image since, and what is attached to an image is there for all who have it
            await removal.put_back(site, self._repository, removal.Remembered(known.digest, (), None, known.attached))
        return False

    async def _is_shared(self) -> bool:
        """Whether a living version has the same image, in this workspace or in one that shares its repositories."""
        return self.record.digest in {record.digest for record in await self._living(self.store, self.record.name)} or (
            any(
                [
                    self.record.digest in {record.digest for record in await self._neighbouring(store)}
                    for store in self.scene.neighbours
                ]
            )
        )

    async def _neighbouring(self, store: VersionStore) -> list[VersionRecord]:
        try:
            return await self._living(store, self.record.name)
        except VersionNotFound:
            return []
        except NameNotAllowed:  # it writes the name another way
            books = (await store.books()).items()
            return [r for name, b in books if slug(name) == slug(self.record.name) for r in _living(name, b)]

    async def _living(self, store: VersionStore, name: str) -> list[VersionRecord]:
        return _living(name, await store.book(name))

    async def _is_elsewhere(self) -> bool:
        """Whether an environment of another name has the image in the same folder, whose repositories share what is
        attached to it. In a registry each repository has its own."""
        if not isinstance(self.scene.site.store, Layout):
            return False
        return any(
            record.digest == self.record.digest and slug(record.name) != slug(self.record.name)
            for record in await self.scene.living()
        )

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


def _living(name: str, book: Book) -> list[VersionRecord]:
    return list(Shelved.of(name, book).living.values())


def is_ours(record: VersionRecord) -> bool:
    """Whether the image is in the environment's repository because a build put it there."""
    try:
        return not EnvironmentDefinition(**record.definition).stays_where_it_is
    except (DefinitionError, TypeError):
        return False  # who knows what it is: its image stays
