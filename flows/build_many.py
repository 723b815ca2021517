"""`build_environments`: many environments at once, on this machine or on those of a work pool."""

import time
from collections.abc import Iterable
from typing import Any

from prefect import State, flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Failed

from prefect_environments.blocks import Workspace
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.fleet.outcome import FleetOutcome, told
from prefect_environments.core.versions import VersionRecord
from prefect_environments.tasks.fleet import build_fleet, check_images, newest_versions, report_outcomes

_NAMED = 5  # failures that the run's message names


def _run_name() -> str:
    workspace: Any = flow_run.parameters.get("workspace")
    name = getattr(workspace, "name", None) or "workspace"
    return f"build-all-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


@flow(name="build-environments", flow_run_name=_run_name, persist_result=False)
def build_environments(  # noqa: PLR0917 - as the form asks
    workspace: Workspace,
    environments: list[EnvironmentDefinition] = [],  # noqa: B006 - never changed; the form shows an empty list
    folder: str = "",
    upgrade: bool = False,
    concurrency: int = 0,
    deployment: str = "",
) -> list[FleetOutcome] | State[Any]:
    """Turn many environment definitions into ready images. What they share is made once; a failure stops no other.

    Without environments and folder, the registered environments whose image the registry lost are built again. The
    run fails at its end if any environment failed; its table says which, and why.

    Args:
        workspace: Where the images are pushed and registered.
        environments: What to build. Without any, and without a folder: what is registered and lost its image.
        folder: Folder of specifications on the machine of the run: requirements, YAML, locks, Dockerfiles.
        upgrade: Resolve afresh instead of keeping registered locks; without environments and folder, all registered.
        concurrency: Environments in work at once; 0 chooses by the machine's cores.
        deployment: Build on other machines by runs of this FLOW/DEPLOYMENT, or in this work pool; empty builds here.
    """
    definitions, known = list(environments), list[FleetOutcome]()
    if folder:
        from prefect_environments.core.fleet.specifications import read_folder  # noqa: PLC0415  # all formats

        found = read_folder(folder)
        definitions += found.definitions
        known += found.unreadable
    elif not environments:
        definitions, known = _registered(workspace, upgrade=upgrade)
    outcomes = build_fleet(definitions, workspace, upgrade=upgrade, concurrency=concurrency, deployment=deployment)
    return _told([*known, *outcomes], workspace.name)


def _registered(workspace: Workspace, *, upgrade: bool) -> tuple[list[EnvironmentDefinition], list[FleetOutcome]]:
    """What of the registered is to be built, and the outcomes of the rest."""
    records = {record.name: record for record in newest_versions(workspace)}
    if upgrade:
        return _definitions(records.values())
    lost, known = list[VersionRecord](), list[FleetOutcome]()
    for one in check_images(workspace):
        if one.name not in records:
            continue  # registered since
        if one.state == "missing":
            lost.append(records[one.name])
            continue
        known.append(
            FleetOutcome(
                name=one.name,
                version=one.version,
                reference=one.reference,
                status="ready" if one.state == "there" else "failed",
                reason=one.reason,
                image_hash=records[one.name].image_hash,
            )
        )
    wanted, unreadable = _definitions(lost)
    return wanted, [*known, *unreadable]


def _definitions(records: Iterable[VersionRecord]) -> tuple[list[EnvironmentDefinition], list[FleetOutcome]]:
    """The definitions of versions, and the failures of those that this release cannot read."""
    wanted, unreadable = list[EnvironmentDefinition](), list[FleetOutcome]()
    for record in records:
        try:
            wanted.append(EnvironmentDefinition(**record.definition))
        except (PrefectEnvironmentsError, ValueError) as error:
            reason = f"the definition of version {record.version} cannot be read ({error}); build it from its source"
            unreadable.append(FleetOutcome(name=record.name, version=record.version, status="failed", reason=reason))
    return wanted, unreadable


def _told(outcomes: list[FleetOutcome], workspace: str) -> list[FleetOutcome] | State[Any]:
    report_outcomes(outcomes, workspace)
    get_run_logger().info("%d environments: %s", len(outcomes), told(outcomes))
    failed = [one for one in outcomes if one.status == "failed"]
    if not failed:
        return outcomes
    named = "; ".join(f"{one.name}: {one.reason.splitlines()[0]:.200}" for one in failed[:_NAMED])
    more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return Failed(message=f"{told(outcomes)}. {named}{more}")
