"""Tasks that move labels."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_environments.blocks import EnvironmentVersion, Workspace
from prefect_environments.core import labels
from prefect_environments.tasks.provenance import current_origin
from prefect_environments.tasks.site import at


@task(name="set-label", persist_result=False, cache_policy=NO_CACHE)
def set_label(
    name: str, label: str, workspace: Workspace, version: int | None = None, reason: str = ""
) -> EnvironmentVersion:
    """Let `label` name a version, the newest without a number, in the workspace and as a tag in the registry.

    Rolling back is setting it to an older version. Raises `NameNotAllowed`, `VersionNotFound`, and `NotFound` where
    the version's image is gone.
    """
    record = at(
        workspace,
        lambda site: labels.set_label(site, name, label, version, reason=reason, created_by=current_origin()),
    )
    return EnvironmentVersion.from_record(record)


@task(name="remove-label", persist_result=False, cache_policy=NO_CACHE)
def remove_label(name: str, label: str, workspace: Workspace, reason: str = "") -> bool:
    """Take a label away from an environment; `False` if it was not set."""
    return at(
        workspace, lambda site: labels.remove_label(site, name, label, reason=reason, created_by=current_origin())
    )
