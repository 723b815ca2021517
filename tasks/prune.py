"""Pruning and archiving, as tasks: what Prefect's runs and deployments need is left alone, the rest is a table."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import UUID

import httpx
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound, PrefectException

from prefect_environments.blocks import Workspace
from prefect_environments.blocks.loading import load_block
from prefect_environments.core import archive, loop
from prefect_environments.core.errors import DefinitionError, VersionError
from prefect_environments.core.names import slug
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.report import PruneReport
from prefect_environments.core.versions import VersionStore
from prefect_environments.tasks.provenance import current_origin
from prefect_environments.tasks.site import at

_PAGE = 200
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_VERSION = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}:[1-9][0-9]*(?=$|@)")
_FIRST = {"failed": 0, "spared": 1, "pruned": 2, "prune": 2, "keep": 3}


@task(name="prune-versions", persist_result=False, cache_policy=NO_CACHE)
def prune_versions(workspace: Workspace, policy: PrunePolicy | None = None, dry_run: bool = True) -> PruneReport:
    """Remove versions that nobody needs, with their images; a dry run only says which. A table artifact has the rest.

    Versions and images that flow runs which have not ended, or deployments, name in their job variables or parameters
    stay. Raises `VersionNotFound`, and `RegistryError` where the registry allows no deletion.
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
    """What Prefect's runs need: digests in the job variables and parameters of flow runs that have not ended, of
    deployments and their schedules, and in work pools' templates; `name:version` where parameters name a version so,
    or by its block.

    Raises `VersionError` where the API cannot be asked.
    """
    named = _Named()
    try:
        async with get_client() as client:
            async for run in _not_ended(client):
                named.look(run.job_variables, run.parameters)
            async for deployment in _deployments(client):
                scheduled = [schedule.parameters for schedule in deployment.schedules]
                named.look(deployment.job_variables, deployment.parameters, scheduled)
            offset = 0
            while pools := await client.read_work_pools(limit=_PAGE, offset=offset):
                for pool in pools:
                    named.look(pool.base_job_template)
                offset += len(pools)
            for block in named.blocks:
                with suppress(ObjectNotFound):
                    data = (await client.read_block_document(UUID(block))).data
                    named.found.add(f"{data.get('name')}:{data.get('version')}")
    except (httpx.HTTPError, PrefectException) as error:
        raise _unasked("what flow runs need", error) from error
    return frozenset(named.found)


def _unasked(what: str, error: Exception) -> VersionError:
    return VersionError(
        f"the Prefect API could not be asked {what} ({type(error).__name__}), so nothing more is pruned; run again"
    )


async def _not_ended(client: PrefectClient) -> AsyncIterator[FlowRun]:
    """By what was not seen yet, because runs that end meanwhile move the others to earlier pages."""
    alive = FlowRunFilterStateType(any_=[kind for kind in StateType if kind not in TERMINAL_STATES])
    seen: list[UUID] = []
    while True:
        unseen = FlowRunFilterId(not_any_=seen) if seen else None
        wanted = FlowRunFilter(state=FlowRunFilterState(type=alive), id=unseen)
        page = await client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE)
        for run in page:
            seen.append(run.id)
            yield run
        if not page:
            return


async def _deployments(client: PrefectClient) -> AsyncIterator[DeploymentResponse]:
    seen: list[UUID] = []
    while True:
        unseen = DeploymentFilter(id=DeploymentFilterId(not_any_=seen)) if seen else None
        page = await client.read_deployments(deployment_filter=unseen, limit=_PAGE)
        for deployment in page:
            seen.append(deployment.id)
            yield deployment
        if not page:
            return


@dataclass
class _Named:
    """Digests, versions, and blocks that may be versions, in what is stored of runs and deployments."""

    found: set[str] = field(default_factory=set)
    blocks: set[str] = field(default_factory=set)

    def look(self, *values: Any) -> None:
        for value in values:
            if isinstance(value, Mapping):
                reference = value.get("$ref")
                self._block(reference.get("block_document_id") if isinstance(reference, Mapping) else reference)
                self.look(*value.values())
            elif isinstance(value, list | tuple):
                self.look(*value)
            elif isinstance(value, str):
                self.found.update(_DIGEST.findall(value))
                self.found.update(_VERSION.findall(value))

    def _block(self, reference: object) -> None:
        with suppress(ValueError):
            self.blocks.add(str(UUID(str(reference))))


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


async def _neighbours(workspace: Workspace) -> list[VersionStore]:
    """The versions of other saved workspaces whose images are in the same repositories."""
    place = workspace.registry_settings.address, workspace.repository_prefix
    try:
        async with get_client() as client:
            saved = await client.read_block_documents_by_type(Workspace.get_block_type_slug(), include_secrets=False)
    except (httpx.HTTPError, PrefectException) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == HTTPStatus.NOT_FOUND:
            return []  # the API has not heard of this type of block: nobody saved one there
        raise _unasked("which workspaces share the repositories", error) from error
    found = []
    for document in saved:
        missing = DefinitionError(f"the workspace {document.name} was removed meanwhile; run again")
        other = await load_block(Workspace, str(document.name), missing)
        same = (other.name, other.local_folder) == (workspace.name, workspace.local_folder)
        if not same and (other.registry_settings.address, other.repository_prefix) == place:
            found.append(other.versions)
    return found
