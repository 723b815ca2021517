"""One build by ACR Tasks: context up, run scheduled, its log followed, the image by its digest."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from prefect_environments.core import files
from prefect_environments.core.build import deflate
from prefect_environments.core.build.acr_tasks.client import Run, TasksClient
from prefect_environments.core.build.acr_tasks.log import AgentReader, RunLog
from prefect_environments.core.build.acr_tasks.request import build_request, check, needs_buildkit
from prefect_environments.core.build.acr_tasks.settings import TasksSettings
from prefect_environments.core.build.acr_tasks.storage import Storage
from prefect_environments.core.build.base import load_base
from prefect_environments.core.build.docker.client_config import Logins, hide
from prefect_environments.core.build.docker.inputs import BuildInputs, pack_context
from prefect_environments.core.build.docker.log import BuildLog
from prefect_environments.core.concurrency import settled
from prefect_environments.core.errors import BuildError, PrefectEnvironmentsError, RegistryError, RegistryUnreachable
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.progress import SILENT, Progress

_UNCHECKED = "unchecked-"
"""A run pushes under a tag of its own: the inputs' hash becomes a tag when it is known that they are in the image."""
_MEMBER = 1024 * 1024
_CLEANUP = 30.0  # seconds for a run to be cancelled that nobody waits for any more
_LOOK = 5  # looks at the log for one at the run's status, which Azure Resource Manager is asked for
_OUTAGE = 300.0  # seconds without an answer of Azure Resource Manager, after which a build is given up
_TAIL = 15  # looks at a log that is not complete when its run has ended

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TasksBuilder:
    """Builds in the registry that `repository` is in. See `Builder`."""

    settings: TasksSettings
    repository: Repository
    scratch: Path
    logins: Callable[[], Awaitable[Logins]]
    """Users and passwords for other registries that a Dockerfile starts from, by host."""
    progress: Progress = SILENT

    async def build(self, inputs: BuildInputs, tag: str, unmoved: Callable[[], Awaitable[None]]) -> Descriptor:
        check(inputs)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(TasksClient(self.settings))
            storage = Storage(self.settings.identity.ca_file)
            stack.push_async_callback(storage.close)
            logins = await self.logins()
            hide(logins, {})
            image = f"{self.repository.path}:{_UNCHECKED}{tag}"
            source = await self._send_context(inputs, client, storage)
            request = build_request(inputs, image, source, self.settings, logins)
            run = await client.schedule(request)
            logger.info("%s: run %s is scheduled", self.settings, run.id)
            reader = AgentReader(BuildLog(self.progress), buildkit=needs_buildkit(inputs.dockerfile))
            ended = await _Watch(self.settings, client, storage, run, reader).to_the_end()
        pushed = await self._pushed(ended, image)
        await load_base(self.repository, pushed.digest, f"that run {run.id} built", inputs.platform)
        await unmoved()
        manifest = await self.repository.get_manifest(pushed.digest)
        return await self.repository.put_manifest(manifest.content, manifest.descriptor.media_type, tag=tag)

    async def _send_context(self, inputs: BuildInputs, client: TasksClient, storage: Storage) -> str:
        self.progress.step("send the build context")
        with (
            files.storage("packing a build context", self.scratch),
            files.temporary_file(self.scratch) as plain,
            files.temporary_file(self.scratch) as packed,
        ):
            await settled(asyncio.to_thread(_pack, inputs, plain, packed), _CLEANUP)
            url, source = await client.source_upload()
            await storage.upload(url, Path(packed.name), self.progress.sent)
        return source

    async def _pushed(self, run: Run, image: str) -> Descriptor:
        """The image that a run says it has pushed, as the registry knows it."""
        reference = run.digests.get(image) or image.rpartition(":")[2]
        found = await self.repository.find_manifest(reference)
        if found is None:
            raise BuildError(
                f"run {run.id} of {self.settings} succeeded, but the registry has no {self.repository.name} with "
                f"{reference}: check that the workspace's registry is the one that builds ({self.settings.registry}), "
                "and that nobody deletes or purges images there"
            )
        return found


def _pack(inputs: BuildInputs, plain: BinaryIO, packed: BinaryIO) -> None:
    """The context as gzip members of one size each: the same inputs are the same bytes."""
    pack_context(inputs, plain)
    plain.seek(0)
    while chunk := plain.read(_MEMBER):
        packed.write(deflate.member(chunk))
    packed.flush()


@dataclass(slots=True)
class _Watch:
    """One run that is followed until it ends, or is cancelled where it is not waited for any more."""

    settings: TasksSettings
    client: TasksClient
    storage: Storage
    run: Run
    reader: AgentReader
    silent_since: float | None = None
    """When Azure Resource Manager began to give no answer about the run."""

    async def to_the_end(self) -> Run:
        """The run as it ended well. Raises `BuildError` with the failed step and its last lines."""
        reader = self.reader
        try:
            async with asyncio.timeout(self.settings.timeout + self.settings.patience) as limit:
                run = await self._follow()
        except BaseException as error:
            await self._cancel()
            if isinstance(error, TimeoutError) and limit.expired():
                raise self._too_late() from None
            raise
        if run.status == "Succeeded":
            return run
        if run.status == "Timeout":
            raise self._too_late()
        if run.status == "Canceled":
            raise BuildError(f"run {run.id} of {self.settings} was cancelled in Azure by somebody else; build again")
        reader.log.failed(reader.key, run.error or reader.last or f"the run ended as {run.status}")
        raise reader.log.error(_advice(run, self.settings))

    async def _follow(self) -> Run:
        log = RunLog(self.storage, lambda: self.client.log_url(self.run))
        loop, run = asyncio.get_running_loop(), self.run
        asked = loop.time()
        while not run.has_ended:
            await self._read(log)
            if log.complete or loop.time() - asked >= _LOOK * self.settings.poll:
                asked, run = loop.time(), await self._now(run)
            if not run.has_ended:
                await asyncio.sleep(self.settings.poll * (_LOOK if log.lost else 1))
        while not (log.complete or log.lost) and loop.time() - asked < _TAIL * self.settings.poll:
            await asyncio.sleep(self.settings.poll)
            await self._read(log)
        return run

    async def _now(self, run: Run) -> Run:
        """The run as it stands; as it was where Azure does not answer for a while, which stops no build there."""
        now = asyncio.get_running_loop().time()
        try:
            found = await self.client.run(self.run)
        except RegistryUnreachable as error:
            self.silent_since = now if self.silent_since is None else self.silent_since
            if now - self.silent_since >= _OUTAGE:
                raise
            logger.warning("it is not known how run %s goes, asking again: %s", self.run.id, error)
            return run
        self.silent_since = None
        return found

    async def _read(self, log: RunLog) -> None:
        """What is new in the log. A build goes on without it: only what it printed is not seen."""
        if log.lost:
            return
        try:
            async for line in log.new_lines():
                self.reader.read(line)
        except (BuildError, RegistryError) as error:
            log.lost = True
            logger.warning("the log of run %s cannot be shown: %s", self.run.id, error)

    async def _cancel(self) -> None:
        """In any case to its end; a failure of that is told, and hides no other one."""

        async def ask() -> None:
            try:
                await self.client.cancel(self.run)
                logger.info("%s: run %s is cancelled", self.settings, self.run.id)
            except PrefectEnvironmentsError as error:
                logger.warning("run %s could not be cancelled, and may go on: %s", self.run.id, error)

        await asyncio.wait([asyncio.ensure_future(ask())], timeout=_CLEANUP)

    def _too_late(self) -> BuildError:
        self.reader.log.failed(
            self.reader.key,
            f"run {self.run.id} of {self.settings} did not end within its limit of {self.settings.timeout} seconds",
        )
        return self.reader.log.error(
            "Give it more time (build_timeout of the workspace), or find out what it waits for"
        )


def _advice(run: Run, settings: TasksSettings) -> str:
    return f"Correct the Dockerfile or its context and build again (run {run.id} of {settings})"
