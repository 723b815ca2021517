"""`prune_environments`: what nobody needs any more goes, by policy; a dry run says what that is."""

import time
from typing import Any

from prefect import State, flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Failed

from prefect_environments.blocks import Workspace
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.report import PruneReport
from prefect_environments.tasks.prune import prune_versions

_NAMED = 5  # failures that the run's message names


def _run_name() -> str:
    workspace: Any = flow_run.parameters.get("workspace")
    name = getattr(workspace, "name", None) or "workspace"
    return f"prune-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


@flow(name="prune-environments", flow_run_name=_run_name, persist_result=False)
def prune_environments(
    workspace: Workspace,
    dry_run: bool = True,
    policy: PrunePolicy = PrunePolicy(),  # noqa: B008 - immutable; the form shows its fields
) -> PruneReport | State[Any]:
    """Remove old versions that nobody needs, with their images, and what is left over of jobs and builds.

    Labelled versions, the newest ones, those that were used lately or that living ones extend stay. The run's table
    says of each version what happens to it, and why.

    Args:
        workspace: Whose versions and images are looked at.
        dry_run: Only say what would go; switch it off to remove that.
        policy: How many versions stay, and for how long.
    """
    report = prune_versions(workspace, policy, dry_run)
    get_run_logger().info("%s: %s", "dry run" if dry_run else "pruned", report)
    if not report.failed:
        return report
    named = "; ".join(f"{row.name} {row.version or ''}: {row.reason:.200}" for row in report.failed[:_NAMED])
    return Failed(message=f"{report}. {named}")
