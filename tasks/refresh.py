"""Tasks that look for drift and build what drifted, and what a run shows of it."""

from collections.abc import Sequence

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from prefect_environments.blocks import Workspace
from prefect_environments.core.history import check_label
from prefect_environments.core.lock.age import AgeLimit
from prefect_environments.core.names import slug
from prefect_environments.core.refresh.outcome import RefreshOutcome, drift_markdown, in_order, told
from prefect_environments.tasks.provenance import current_origin
from prefect_environments.tasks.site import at

DAYS = 3
"""Days that packages must have been published, unless somebody asks for another number: bad releases are mostly found
and taken back within the first three, and who refreshes every week loses little."""


@task(name="find-drift", persist_result=False, cache_policy=NO_CACHE)
def find_drift(
    workspace: Workspace,
    names: Sequence[str] = (),
    exclude_newer_days: int = DAYS,
    allow_undated: bool = False,
    keep: bool = False,
) -> list[RefreshOutcome]:
    """Resolve what is registered afresh, or what is in `names`, and say what would change; nothing is registered.

    Packages younger than `exclude_newer_days` are not taken in (0: any age); those of an index that tells no upload
    times are an error, or with `allow_undated` old enough. With `keep` the fresh locks are kept in the registry, for
    `build_drifted`. Raises `VersionNotFound` for a name that is not registered.
    """
    from prefect_environments.core.refresh import look  # noqa: PLC0415  # what resolves: only here

    age = AgeLimit.of_days(exclude_newer_days, allow_undated=allow_undated)
    return at(workspace, lambda site: look.find_drift(site, names, age=age, keep=keep))


@task(name="build-drifted", persist_result=False, cache_policy=NO_CACHE)
def build_drifted(
    outcomes: Sequence[RefreshOutcome], workspace: Workspace, label: str = "", reason: str = ""
) -> list[RefreshOutcome]:
    """Build and register the next version of each environment that drifted, as `find_drift` with `keep` saw it.

    `label` is set on the new versions; no other label moves. `reason` is kept in their records.
    """
    from prefect_environments.core.refresh import build  # noqa: PLC0415  # what builds: only here

    if label:
        check_label(label)
    origin = {**current_origin(), **({"reason": reason} if reason else {})}
    return at(workspace, lambda site: build.build_drifted(site, outcomes, label=label, created_by=origin))


def report_drift(outcomes: Sequence[RefreshOutcome], workspace: str) -> None:
    """What would change as a markdown artifact of the current run; nothing outside of one."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    create_markdown_artifact(
        f"# Drift in {workspace}\n\n{told(outcomes)}\n\n{drift_markdown(outcomes)}",
        key=f"drift-{slug(workspace)}"[:200],
        description=f"What would change in {workspace}: {told(outcomes)}",
    )


def report_refreshed(outcomes: Sequence[RefreshOutcome], workspace: str) -> None:
    """The outcomes as a table artifact of the current run, what needs attention first; nothing outside of one."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    create_table_artifact(
        [
            # the UI doesn't wrap lines: what is longest comes last
            {
                "environment": one.name,
                "status": one.status,
                "version": one.version,
                "new version": one.new_version or "",
                "changes": len(one.changes),
                "reason": one.reason,
                "image": one.reference,
            }
            for one in in_order(outcomes)
        ],
        key=f"refresh-{slug(workspace)}"[:200],
        description=f"Environments of {workspace}: {told(outcomes)}",
    )
