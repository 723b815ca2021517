"""Pruning and archiving, as tasks: what Prefect's runs and deployments need is left alone, the rest is a table."""

import json
import re
from collections.abc import Iterable
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.context import FlowRunContext, TaskRunContext

from prefect_environments.blocks import Workspace
from prefect_environments.blocks.loading import load_block
from prefect_environments.core import archive, loop
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.names import slug
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.report import PruneReport
from prefect_environments.core.versions import VersionStore
from prefect_environments.tasks.provenance import current_origin
from prefect_environments.tasks.site import at

_PAGE = 200
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FIRST = {"failed": 0, "spared": 1, "pruned": 2, "prune": 2, "keep": 3}


@task(name="prune-versions", persist_result=False, cache_policy=NO_CACHE)
def prune_versions(workspace: Workspace, policy: PrunePolicy | None = None, dry_run: bool = True) -> PruneReport:
    """Remove versions that nobody needs, with their images; a dry run only says which. A table artifact has the rest.

    Images that flow runs which have not ended, or deployments, name in their job variables stay. Raises
    `VersionNotFound`, and `RegistryError` where the registry allows no deletion.
    """
    from prefect_environments.core.prune.run import prune_environments  # noqa: PLC0415  # what builds

    origin, neighbours = current_origin(), loop.run(_neighbours(workspace))
    report = at(
        workspace,
        lambda site: prune_environments(
            site,
            policy or PrunePolicy(),
            dry_run=dry_run,
            protection=images_in_use,
            neighbours=neighbours,
            created_by=origin,
        ),
    )
    report_pruned(report, workspace.name)
    return report


@task(name="archive-environment", persist_result=False, cache_policy=NO_CACHE)
def archive_environment(name: str, workspace: Workspace, reason: str = "") -> bool:
    """No longer list, refresh or build an environment with all others; it still works. `False` if it is archived."""
    return loop.run(archive.archive(workspace.versions, name, reason=reason, created_by=current_origin()))


@task(name="restore-environment", persist_result=False, cache_policy=NO_CACHE)
def restore_environment(name: str, workspace: Workspace, reason: str = "") -> bool:
    """List an archived environment again; `False` if it is not archived."""
    return loop.run(archive.restore(workspace.versions, name, reason=reason, created_by=current_origin()))


async def images_in_use() -> frozenset[str]:
    """Digests in the job variables of flow runs that have not ended, of deployments, and in work pools' templates."""
    async with get_client() as client:
        found: set[str] = set()
        alive = FlowRunFilterStateType(any_=[kind for kind in StateType if kind not in TERMINAL_STATES])
        running = FlowRunFilter(state=FlowRunFilterState(type=alive))
        offset = 0
        while page := await client.read_flow_runs(flow_run_filter=running, limit=_PAGE, offset=offset):
            found |= _digests(run.job_variables for run in page)
            offset += len(page)
        offset = 0
        while deployments := await client.read_deployments(limit=_PAGE, offset=offset):
            found |= _digests(one.job_variables for one in deployments)
            offset += len(deployments)
        offset = 0
        while pools := await client.read_work_pools(limit=_PAGE, offset=offset):
            found |= _digests(pool.base_job_template for pool in pools)
            offset += len(pools)
    return frozenset(found)


def report_pruned(report: PruneReport, workspace: str) -> None:
    """The rows as a table artifact of the current run, failures first; nothing outside of one."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "version": row.version or "",
            "action": row.action,
            "bytes": row.bytes,
            "reason": row.reason,
        }
        for row in sorted(report.rows, key=lambda row: (_FIRST[row.action], row.name.lower(), row.version))
    ]
    what = "Dry run" if report.dry_run else "Pruned"
    create_table_artifact(rows, key=f"prune-{slug(workspace)}"[:200], description=f"{what} of {workspace}: {report}")


def _digests(values: Iterable[object]) -> set[str]:
    return {digest for value in values if value for digest in _DIGEST.findall(json.dumps(value, default=str))}


async def _neighbours(workspace: Workspace) -> list[VersionStore]:
    """The versions of other saved workspaces whose images are in the same repositories."""
    place = workspace.registry_settings.address, workspace.repository_prefix
    async with get_client() as client:
        saved = await client.read_block_documents_by_type(Workspace.get_block_type_slug(), include_secrets=False)
    found = []
    for document in saved:
        missing = DefinitionError(f"the workspace {document.name} was removed meanwhile; run again")
        other = await load_block(Workspace, str(document.name), missing)
        same = (other.name, other.local_folder) == (workspace.name, workspace.local_folder)
        if not same and (other.registry_settings.address, other.repository_prefix) == place:
            found.append(other.versions)
    return found
