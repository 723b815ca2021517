"""The task that runs a training job on this machine, and what it shows in the UI."""

from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from prefect_environments.blocks import EnvironmentVersion, Workspace
from prefect_environments.core import loop
from prefect_environments.core.console import megabytes
from prefect_environments.core.errors import JobFailed
from prefect_environments.core.jobs import run
from prefect_environments.core.jobs.config import ScriptRunConfig
from prefect_environments.core.jobs.launcher import JobResult
from prefect_environments.core.names import slug
from prefect_environments.core.versions import VersionRecord
from prefect_environments.tasks.cancellation import unless_run_is_cancelled
from prefect_environments.tasks.pool import run_in_pool
from prefect_environments.tasks.site import at

_PLACES = {"docker": "in Docker", "work pool": "in a work pool"}


@task(name="run-job", persist_result=False, cache_policy=NO_CACHE)
def run_job(
    config: ScriptRunConfig, version: EnvironmentVersion, workspace: Workspace, outputs_directory: str | None = None
) -> JobResult:
    """Run a job in a version's image, its lines in the run's log.

    `outputs_directory` is a folder, or for a job in a work pool a storage block (TYPE/NAME). Raises `JobFailed` if the
    job fails, its metrics and outputs being reported all the same, and `JobCancelled` if it or its flow run is
    cancelled.
    """
    try:
        result = _run(config, version.to_record(), workspace, outputs_directory or "")
    except JobFailed as error:
        if error.result is not None:
            report_job(error.result)
        raise
    report_job(result)
    return result


def _run(config: ScriptRunConfig, record: VersionRecord, workspace: Workspace, outputs: str) -> JobResult:
    if not config.is_local:
        return run_in_pool(config, record, workspace, outputs)
    folder = Path(outputs).expanduser() if outputs else None
    return at(workspace, lambda site: unless_run_is_cancelled(run.run_job(site, config, record, outputs=folder)))


def find_environment(name: str, workspace: Workspace) -> EnvironmentVersion:
    """The registered version that `name`, `name:version` or `name:version@digest` names."""
    return EnvironmentVersion.from_record(loop.run(run.find_environment(workspace, name)))


def report_job(result: JobResult) -> None:
    """The metrics as a table artifact and the result as markdown; nothing outside of runs."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    if result.metrics:
        create_table_artifact(
            metrics_table(result),
            key=f"metrics-{slug(result.name)}"[:200],
            description=f"Metrics of the job {result.id}",
        )
    create_markdown_artifact(
        job_markdown(result), key=f"job-{slug(result.name)}"[:200], description=f"The job {result.id}"
    )


def metrics_table(result: JobResult) -> list[dict[str, Any]]:
    """A row for each metric; where any was logged several times, with how many values it had and their range."""
    rows: list[dict[str, Any]] = [{"metric": name, "value": value} for name, value in result.metrics.items()]
    for row in rows if result.series else ():
        values = result.series.get(row["metric"], (row["value"],))
        numbers = [value for value in values if isinstance(value, int | float)]
        row |= {"values": len(values), "least": min(numbers, default=""), "most": max(numbers, default="")}
    return rows


def job_markdown(result: JobResult) -> str:
    """The result for readers: what it ran in, how long it took, what it left."""
    lines = [
        f"# Job {result.id}",
        "",
        "| What | Value |",
        "|---|---|",
        f"| Environment | {result.name} version {result.version} |",
        f"| Image | `{result.reference}` |",
        f"| Ran {_PLACES.get(result.target, f'as a {result.target}')} | exit {result.exit_code} |",
        f"| Seconds | {', '.join(f'{step} {seconds:.1f}' for step, seconds in result.seconds.items())} |",
    ]
    if result.files:
        lines += ["", f"Outputs in `{result.outputs}`:", "", "| File | Size |", "|---|--:|"]
        sizes = {file.path.replace("|", r"\|"): megabytes(file.size) for file in result.files[:100]}
        lines += [f"| {name} | {size} |" for name, size in sizes.items()]
    return "\n".join(lines)
