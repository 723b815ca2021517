"""`check_workspace`: what of a workspace works, and what to fix."""

import time
from typing import Any

from prefect import State, flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Failed

from prefect_environments.blocks import Workspace
from prefect_environments.core.findings import Finding, failures
from prefect_environments.tasks import check_workspace as look


def _run_name() -> str:
    workspace: Any = flow_run.parameters.get("workspace")
    name = getattr(workspace, "name", None) or "workspace"
    return f"check-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


@flow(name="check-workspace", flow_run_name=_run_name, persist_result=False)
def check_workspace(workspace: Workspace, deleting: bool = False) -> list[Finding] | State[Any]:
    """Say what of a workspace works and what to fix: sign-in, registry, pulling, pushing, vaults, indexes, builders.

    The run fails if something fails that builds need; the table of its artifacts says what to do. Nothing is stored.

    Args:
        workspace: The workspace to look at.
        deleting: Look whether images may be deleted, too, which pruning needs.
    """
    findings = look(workspace, deleting=deleting)
    logger = get_run_logger()
    for one in findings:
        if one.ok:
            logger.info("%s: %s", one.name, one.found)
        else:
            logger.log(40 if one.required else 30, "%s: %s. %s", one.name, one.found, one.advice)
    if wrong := failures(findings):
        said = "; ".join(f"{one.name}: {one.advice}" for one in wrong)
        return Failed(message=f"{len(wrong)} of {len(findings)} checks failed: {said}")
    return findings
