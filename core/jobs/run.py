"""One job from its config to its result: the environment's version, the source, the launcher, the outputs."""

import asyncio
import logging
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prefect_environments.core import attachments, files, loop, steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, EngineUnavailable, JobFailed, NotFound
from prefect_environments.core.jobs import outputs as kept
from prefect_environments.core.jobs.bootstrap import check_distribution, node_count
from prefect_environments.core.jobs.channel import Channel, allowed_secrets
from prefect_environments.core.jobs.config import EnvironmentName, ScriptRunConfig
from prefect_environments.core.jobs.launcher import JobExit, JobRequest, JobResult, Kept, Launcher, last_lines
from prefect_environments.core.jobs.log import JobLog
from prefect_environments.core.jobs.source import check_source, stage
from prefect_environments.core.jobs.variables import resolved
from prefect_environments.core.lock.model import Lock, LockedBase
from prefect_environments.core.prune.use import marked_as_used
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.resolving import as_it_is
from prefect_environments.core.site import Site, open_site
from prefect_environments.core.versions import VersionRecord
from prefect_environments.core.workspace import Workspace

_KILLED = 137

logger = logging.getLogger(__name__)


def new_job_id() -> str:
    """`<UTC time>-<8 hex digits>`: sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"


def default_outputs() -> Path:
    """Where the outputs of jobs are kept that name no folder: the user's data folder."""
    import platformdirs  # noqa: PLC0415 - for those who name no folder

    return platformdirs.user_data_path("prefect-environments") / "jobs"


def check(config: ScriptRunConfig) -> None:
    """Raise `DefinitionError` for a job that cannot run as it is, before anything is built."""
    check_source(config)
    check_distribution(config)


async def find_environment(workspace: Workspace, name: str) -> VersionRecord:
    """The version that `name[:version[@digest]]` or `name@label` names.

    Raises `VersionNotFound`, and `NotFound` for a curated environment that nobody has built.
    """
    if not name:
        raise DefinitionError("the job names no environment; give a name, name:version or a definition")
    wanted = EnvironmentName.parse(name)
    record = await steps.find_version(workspace, wanted.name, wanted.version, label=wanted.label)
    if not record.reference:
        raise NotFound(f"{record.name} is curated, and not built in this workspace yet; build it first")
    if wanted.digest and record.digest != wanted.digest:
        raise DefinitionError(
            f"{wanted.name}:{wanted.version} in the workspace {workspace.name!r} is {record.digest}, not "
            f"{wanted.digest}: it is another workspace's"
        )
    return record


async def choose_launcher(site: Site, config: ScriptRunConfig) -> Launcher:
    """Docker where it is asked for or there is an engine, else a process of this machine.

    Raises `EngineUnavailable` where Docker is asked for and not there.
    """
    if config.compute_target != "local:process":
        from prefect_environments.core.build.docker.engine import find_engine  # noqa: PLC0415  # docker takes a while
        from prefect_environments.core.jobs.local_docker import DockerLauncher  # noqa: PLC0415

        try:
            return DockerLauncher(site, await asyncio.to_thread(find_engine))
        except EngineUnavailable as error:
            if config.compute_target == "local:docker":
                raise
            logger.info("%s", error)
    from prefect_environments.core.jobs.local_process import ProcessLauncher  # noqa: PLC0415

    return ProcessLauncher(site)


async def run_job(
    site: Site,
    config: ScriptRunConfig,
    record: VersionRecord,
    *,
    job_id: str = "",
    outputs: Path | None = None,
    launcher: Launcher | None = None,
    on_line: Callable[[str], None] | None = None,
) -> JobResult:
    """Run a job in a version's image to its end. `outputs` is the folder in which the job's own folder is made.

    Raises `JobFailed` with the last lines where the command fails, runs out of memory or time, `JobError` where it
    cannot be started, `NotFound` where the image is gone, `SecretError`, and `DefinitionError`.
    """
    check(config)
    started, name = time.monotonic(), job_id or new_job_id()
    lock = await lock_of(site, record)
    runner = launcher or await choose_launcher(site, config)
    own, secrets = config.environment_variables, site.workspace.secrets
    variables = {} if runner.elsewhere else await resolved(record.environment_variables, own, secrets)
    channel = open_channel(site, config, record, name)
    place = (outputs or default_outputs()).absolute() / name / "outputs"
    log = JobLog(on_line)
    try:
        with files.storage("preparing a job", site.scratch), files.temporary_folder(site.scratch) as folder:
            source = await stage(config, folder)
            place.mkdir(parents=True, exist_ok=True)
            request = JobRequest(name, config, record, lock, folder, source, place, variables, channel=channel)
            seconds = {"prepare": time.monotonic() - started}
            async with marked_as_used(site.workspace, record):  # a prune leaves alone what is in use
                ended = await runner.run(request, log)
        result = _result(request, runner.target, ended, {**seconds, **ended.seconds})
    finally:
        for folder in (place, place.parent):
            with suppress(OSError):  # something is in it
                folder.rmdir()
    _check_exit(config, ended, log, result)
    return result


def open_channel(site: Site, config: ScriptRunConfig, record: VersionRecord, name: str) -> Channel:
    """The launcher's end of the way to a job. Raises `SecretError` for what is no reference."""
    allowed = allowed_secrets(config.secrets, config.environment_variables, record.environment_variables)
    return Channel(
        name, site.workspace.secrets, allowed, node_count(config), bootstrap_seconds=config.bootstrap_time_limit_seconds
    )


def make_local(workspace: Workspace, ready: ReadyImage) -> ReadyImage:
    """An environment on this machine with the versions of an image; `python_path` is its interpreter.

    Raises `JobError` where this machine cannot have it.
    """
    from prefect_environments.core.jobs.local_environment import ensure_environment  # noqa: PLC0415  # if needed

    async def work() -> Path:
        async with open_site(workspace) as site:
            record = await workspace.versions.get(ready.name, ready.version)
            return await ensure_environment(site, await lock_of(site, record))

    return ready.model_copy(update={"python_path": str(loop.run(work()))})


async def lock_of(site: Site, record: VersionRecord) -> Lock:
    """The lock that a version's image was made from."""
    repository = site.repository(record.name)
    definition = EnvironmentDefinition(**record.definition)
    if definition.user_managed:
        return as_it_is(definition, LockedBase(record.reference.partition("@")[0], record.digest))
    return await attachments.read_lock(repository, record.lock_digest)


def _result(request: JobRequest, target: str, ended: JobExit, seconds: dict[str, float]) -> JobResult:
    wanted, logged = bool(request.config.outputs), request.channel.metrics
    here = kept.list_files(request.outputs) if wanted else ()
    left = ended.kept or Kept(
        str(request.outputs) if here else "", here, kept.read_metrics(request.outputs) if wanted else {}
    )
    return JobResult(
        id=request.id,
        exit_code=ended.code,
        target=target,
        reference=request.record.reference,
        name=request.record.name,
        version=request.record.version,
        outputs=left.place,
        files=left.files,
        metrics={**left.metrics, **logged.last},
        series={**left.series, **logged.series},
        seconds={step: round(value, 3) for step, value in seconds.items()},
    )


def _check_exit(config: ScriptRunConfig, ended: JobExit, log: JobLog, result: JobResult) -> None:
    """Raise `JobFailed` that says why, and what to do."""
    if ended.timed_out:
        why = f"was stopped after its time limit of {config.time_limit_seconds:g} seconds"
        advice = "raise time_limit_seconds, or let it do less"
    elif ended.out_of_memory:
        why = f"ran out of memory (limit {config.memory or 'of the machine'})"
        advice = "raise memory, or let it hold less at once"
    elif ended.code == _KILLED:
        why, advice = f"was killed (signal 9, exit status {_KILLED})", "look for a crash or a lack of memory"
    elif ended.code - 128 in signal.valid_signals():
        why, advice = f"was ended by signal {ended.code - 128}", "look for a crash or a lack of memory"
    elif ended.code:
        why, advice = f"failed with exit status {ended.code}", "correct the script and run it again"
    else:
        return
    there = f" What it wrote is in {result.outputs}." if result.outputs else ""
    told = f"the job {result.id} {why}; {advice}.{there}{last_lines(log.last)}"
    raise JobFailed(told, exit_code=ended.code or 1, result=result)
