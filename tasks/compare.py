"""The task that compares two versions, and what it shows in the UI."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from prefect_environments.blocks import Workspace
from prefect_environments.core import compare
from prefect_environments.core.compare import VersionDiff
from prefect_environments.core.names import slug
from prefect_environments.tasks.site import at, is_transient


@task(
    name="compare-versions",
    persist_result=False,
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=is_transient,
)
def compare_versions(name: str, workspace: Workspace, a: int, b: int | None = None) -> VersionDiff:
    """What differs between two versions, `b` the newest one unless given: packages, base, variables (names only), size
    and layers. Also a markdown artifact of the run."""
    found = at(workspace, lambda site: compare.compare_versions(site, name, a, b))
    if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
        create_markdown_artifact(
            found.to_markdown(),
            key=f"compare-{slug(name)}"[:200],
            description=f"{name}: version {found.a} and version {found.b}",
        )
    return found
