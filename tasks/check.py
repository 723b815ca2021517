"""The task that checks a workspace, and what it shows in the UI."""

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from prefect_environments.blocks import Workspace
from prefect_environments.core.findings import Finding, failures
from prefect_environments.core.names import slug


@task(name="check-workspace", persist_result=False, cache_policy=NO_CACHE)
def check_workspace(workspace: Workspace, deleting: bool = False) -> list[Finding]:
    """What of a workspace works and what to fix, as a list and as a table artifact of the run.

    With `deleting` also whether images may be deleted, as `prune_environments` does.
    """
    findings = workspace.check(deleting=deleting)
    report_findings(findings, workspace.name)
    return findings


def report_findings(findings: list[Finding], workspace: str) -> None:
    """The findings as a table artifact of the current run; nothing outside of one."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    wrong = failures(findings)
    create_table_artifact(
        [
            # the UI doesn't wrap lines: what is longest comes last
            {"check": one.name, "state": one.state, "what to do": "" if one.ok else one.advice, "found": one.found}
            for one in findings
        ],
        key=f"workspace-{slug(workspace)}"[:200],
        description=f"Workspace {workspace}: {f'{len(wrong)} to fix' if wrong else 'all that builds need works'}",
    )
