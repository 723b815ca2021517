"""Jobs in a Prefect work pool: an image that holds the whole job, a flow run that a worker starts, its log and end."""

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
)
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import LogSort
from prefect.deployments import arun_deployment
from prefect.exceptions import PrefectException
from prefect.states import Cancelling

from prefect_environments.blocks import Workspace
from prefect_environments.core import loop
from prefect_environments.core.azure.store import KeyVaultSecretStore
from prefect_environments.core.concurrency import settled
from prefect_environments.core.errors import DefinitionError, JobCancelled, JobError, SecretError
from prefect_environments.core.jobs import run
from prefect_environments.core.jobs.config import ScriptRunConfig
from prefect_environments.core.jobs.job_image import ensure_job_image
from prefect_environments.core.jobs.launcher import JobExit, JobRequest, JobResult, Kept, last_lines
from prefect_environments.core.jobs.log import JobLog
from prefect_environments.core.jobs.remote import JOB_LEVEL, RemoteJob, RemoteResult
from prefect_environments.core.jobs.runtime import PYTHON, VAULT_PACKAGES
from prefect_environments.core.secrets import SecretReference
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord
from prefect_environments.tasks.cancellation import unless_run_is_cancelled
from prefect_environments.tasks.own_deployment import find_own, is_own, make_own
from prefect_environments.tasks.pool_settings import Pool, check_pool, job_variables, storage_packages
from prefect_environments.tasks.site import at

FLOW = "run-job-here"
ENTRYPOINT = "prefect_environments.flows.job.run_job_here"
COMMAND = f"{PYTHON} -I -m prefect.engine"
"""Isolated: neither the job's files nor PYTHONPATH are where Prefect looks for its modules."""

_GLANCE = 1.0  # seconds between two looks at a run
_LATE = 20.0  # seconds after which we say what a run waits for
_PATIENCE = 600.0  # seconds without an answer of the API, after which a job is given up
_LAST_LINES = 20.0  # seconds for log lines that arrive after a run's end
_END = 8.0  # seconds for a cancelled run to end
_ANSWER = 2.0  # seconds for a run to become known that was started while the job was cancelled
_PAGE = 200

logger = logging.getLogger("prefect_environments.core.jobs")  # core's lines go to the run's log


@dataclass(frozen=True, slots=True)
class PoolLauncher:
    """Runs jobs in the work pool of a job's `compute_target`.

    `storage` is a Prefect storage block (TYPE/NAME) that keeps outputs; `workspace` the name of the workspace's block,
    for references to its Key Vaults.
    """

    site: Site
    storage: str = ""
    workspace: str = ""

    elsewhere: ClassVar[bool] = True

    @property
    def target(self) -> str:
        return "work pool"

    async def run(self, request: JobRequest, log: JobLog) -> JobExit:
        """See `Launcher.run`. Raises `JobError` where a run crashes, `JobCancelled` where somebody cancels it,
        `DefinitionError` for a pool that cannot run it, and the errors of the registry."""
        async with get_client() as client:
            pool = await check_pool(client, request.config, self.site.workspace, self.storage)
            if pool.lacks_credentials:
                logger.warning("%s", pool.advice)
            vaults = _needs_vault(request.config, request.record)
            variables = {**request.record.environment_variables, **request.config.environment_variables}
            started = time.monotonic()
            image = await ensure_job_image(
                self.site, request.record, request.lock, request.source, await self._packages(vaults)
            )
            seconds = {"image": time.monotonic() - started}
            log.note(
                "the job's image is %s: %s, source of %d bytes, %d bytes sent",
                image.reference,
                "there already" if image.reused else "put together",
                image.source_size,
                image.bytes_sent,
            )
            job = RemoteJob(
                id=request.id,
                config=_travelling(request.config),
                python=request.record.python_path,
                variables=variables,
                storage=self.storage if request.config.outputs else "",
                workspace=self.workspace if vaults else "",
            )
            run = await settled(
                _start(client, pool, job, image.reference, request.config),
                _ANSWER,
                lambda started: _Watch(client, started.id, pool, log).cancel(),
            )
            return await _Watch(client, run.id, pool, log).to_the_end(seconds)

    async def _packages(self, vaults: bool) -> tuple[str, ...]:
        """What the job's container needs beside Prefect's client."""
        return (*(VAULT_PACKAGES if vaults else ()), *(await storage_packages(self.storage) if self.storage else ()))


def run_in_pool(config: ScriptRunConfig, record: VersionRecord, workspace: Workspace, storage: str) -> JobResult:
    """Run a job in the work pool that it names. `storage` is a block (TYPE/NAME) for its outputs."""
    name = _block_name(config, record, workspace)

    def work(site: Site) -> Coroutine[Any, Any, JobResult]:
        return unless_run_is_cancelled(run.run_job(site, config, record, launcher=PoolLauncher(site, storage, name)))

    return at(workspace, work)


def check_target(config: ScriptRunConfig, workspace: Workspace, storage: str) -> None:
    """Raise `DefinitionError` where the work pool cannot run the job, before anything is built."""

    async def check() -> None:
        async with get_client() as client:
            await check_pool(client, config, workspace, storage)

    loop.run(check())


def _block_name(config: ScriptRunConfig, record: VersionRecord, workspace: Workspace) -> str:
    """The workspace's block, out of which a container reads its Key Vaults."""
    name = workspace._block_document_name or ""
    _check_vaults(config, record, workspace)
    if not name and _needs_vault(config, record):
        raise DefinitionError(
            f"the job has references to a Key Vault, which its container resolves through the workspace "
            f"{workspace.name!r}: save it as a block first (workspace.save)"
        )
    return name


def _check_vaults(config: ScriptRunConfig, record: VersionRecord, workspace: Workspace) -> None:
    """Refuse references to vaults that the workspace does not know, before anything is sent."""
    store = KeyVaultSecretStore(workspace.vaults, allow_unknown=workspace.allow_unknown_vaults)
    for field, reference in _in_vaults(config, record).items():
        try:
            store.find(reference)
        except SecretError as error:
            raise SecretError(f"{field}: {error}") from None


def _needs_vault(config: ScriptRunConfig, record: VersionRecord) -> bool:
    """Whether a secret of the job is in a Key Vault."""
    return bool(_in_vaults(config, record))


def _in_vaults(config: ScriptRunConfig, record: VersionRecord) -> dict[str, SecretReference]:
    """The references to Key Vaults by their fields."""
    variables = {**record.environment_variables, **config.environment_variables}
    texts = {f"secrets.{number}": text for number, text in enumerate(config.secrets)}
    texts |= {f"environment_variables.{name}": value for name, value in variables.items()}
    found = {field: SecretReference.parse(text) for field, text in texts.items() if SecretReference.is_reference(text)}
    return {field: reference for field, reference in found.items() if reference.form != "block"}


def _travelling(config: ScriptRunConfig) -> ScriptRunConfig:
    """What a container must know: environment and source are its own, and all variables are told beside it."""
    return config.model_copy(update={"environment": "", "source_directory": ".", "environment_variables": {}})


async def _start(client: PrefectClient, pool: Pool, job: RemoteJob, image: str, config: ScriptRunConfig) -> FlowRun:
    variables, ignored = job_variables(pool, config, image, COMMAND)
    if ignored:
        logger.warning("jobs of the work pool %s take no %s; its template decides", pool.name, ", ".join(ignored))
    return await arun_deployment(
        await _deployment(client, pool.name),
        client=client,
        parameters={"job": job.model_dump(mode="json")},
        flow_run_name=f"job-{job.id}",
        timeout=0,
        tags=["prefect-environments"],
        idempotency_key=f"prefect-environments-job-{job.id}",  # a reply that is lost makes no second run
        job_variables=variables,
    )


async def _deployment(client: PrefectClient, pool: str) -> UUID:
    """The deployment through which jobs get into a pool, made where it is not there."""
    found = await find_own(client, FLOW, pool)
    if found is not None and is_own(found, pool, ENTRYPOINT):
        return found.id
    said = "Runs jobs in their own images; made and used by run-training-job. Don't start it by hand."
    return await make_own(client, FLOW, pool, ENTRYPOINT, said)


@dataclass(slots=True)
class _Watch:
    """Follows a run: its log lines, its end, and its cancellation."""

    client: PrefectClient
    id: UUID
    pool: Pool
    log: JobLog
    count: int = 0

    async def to_the_end(self, seconds: dict[str, float]) -> JobExit:
        started = time.monotonic()
        try:
            run = await self._follow()
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(self.cancel()))
            raise
        seconds["run"] = time.monotonic() - started
        result = await self._result()
        if result is None or run.state is None or result.cancelled:
            raise self._why(run)
        await self._rest(result.lines)
        seconds |= {"wait": max(0.0, seconds["run"] - result.seconds), "run": result.seconds}
        if result.error:
            raise JobError(f"the job could not be started in the work pool {self.pool.name}: {result.error}")
        kept = Kept(result.place, result.files, result.metrics, result.series)
        return JobExit(result.exit_code, seconds, result.out_of_memory, result.timed_out, kept)

    async def _follow(self) -> FlowRun:
        """Hand the run's lines on until it ends."""
        started = answered = time.monotonic()
        told = False
        while True:
            try:
                run = await self.client.read_flow_run(self.id)
                await self._lines()
                answered = time.monotonic()
            except (httpx.HTTPError, PrefectException) as error:
                if time.monotonic() - answered > _PATIENCE:
                    raise JobError(
                        f"the Prefect API has not answered for {_PATIENCE:g} seconds ({type(error).__name__}); the job "
                        f"may still run as flow run {self.id}: look there once the API answers"
                    ) from error
            else:
                if run.state is not None and run.state.is_final():
                    return run
                if not told and run.start_time is None and time.monotonic() - started > _LATE:
                    told = True
                    self.log.note(
                        "the job waits for a worker of the work pool %s to start its container; is one running? "
                        "(prefect worker start --pool %s)",
                        self.pool.name,
                        self.pool.name,
                    )
            await asyncio.sleep(_GLANCE)

    async def _lines(self) -> None:
        """The job's new lines. One process writes them, so they arrive in the order of their times."""
        level = LogFilterLevel(ge_=JOB_LEVEL, le_=JOB_LEVEL)
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.id]), level=level)
        page: list[Log] | None = None
        while page is None or len(page) == _PAGE:
            page = await self.client.read_logs(wanted, limit=_PAGE, offset=self.count, sort=LogSort.TIMESTAMP_ASC)
            self.count += len(page)
            for line in page:
                self.log.line(line.message)

    async def _rest(self, lines: int) -> None:
        """Wait for the lines that the run sent at its end."""
        deadline = time.monotonic() + _LAST_LINES
        while self.count < lines and time.monotonic() < deadline:
            await asyncio.sleep(_GLANCE / 4)
            await self._lines()

    async def _result(self) -> RemoteResult | None:
        """What the container said of the job's end."""
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self.id]))
        found = await self.client.read_artifacts(artifact_filter=of_run, limit=1)
        rows = json.loads(str(found[0].data)) if found else []
        return RemoteResult.model_validate(rows[0]) if rows else None

    async def cancel(self) -> None:
        """Cancel the run, and wait some seconds for its end."""
        with suppress(httpx.HTTPError, PrefectException):
            await self.client.set_flow_run_state(self.id, Cancelling(message="the training job was cancelled"))
            deadline = time.monotonic() + _END
            while time.monotonic() < deadline:
                state = (await self.client.read_flow_run(self.id)).state
                if state is None or state.is_final():
                    return
                await asyncio.sleep(_GLANCE / 4)

    def _why(self, run: FlowRun) -> JobError:
        """Why there is no result, and what to do."""
        state = run.state
        said = f"{state.name}: {state.message or 'without a message'}" if state else "it has no state"
        if state is not None and state.is_cancelled():
            return JobCancelled(
                f"the job was cancelled in the work pool {self.pool.name} (flow run {self.id}); start it again"
            )
        return JobError(
            f"the job did not come to its end in the work pool {self.pool.name}; its flow run {self.id} is {said}. "
            f"The worker's log has more. {self.pool.advice}{last_lines(self.log.last)}"
        )
