"""The task that verifies a version, and what it shows in the UI."""

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from prefect_environments.blocks import Workspace
from prefect_environments.core import verify
from prefect_environments.core.findings import failures
from prefect_environments.core.names import slug
from prefect_environments.core.verify import Verification
from prefect_environments.tasks.site import at, is_transient


@task(
    name="verify-environment",
    persist_result=False,
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=is_transient,
)
def verify_environment(
    name: str, workspace: Workspace, version: int | None = None, full: bool = False, rebuild: bool = False
) -> Verification:
    """Whether a version, the newest one without a number, still is what was registered; a table artifact of the run.

    `full` reads every byte of every layer, `rebuild` assembles the image once more. Raises `VerificationError` after
    all checks if something is wrong.
    """
    found = at(workspace, lambda site: verify.verify_version(site, name, version, full=full, rebuild=rebuild))
    report_verification(found)
    found.raise_for_failures()
    return found


def report_verification(found: Verification) -> None:
    """The checks as a table artifact of the current run; nothing outside of one."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    wrong = len(failures(found.findings))
    create_table_artifact(
        found.rows(),
        key=f"verify-{slug(found.name)}"[:200],
        description=f"{found.title}: {f'{wrong} checks failed' if wrong else 'as registered'}",
    )
