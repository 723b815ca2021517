"""`refresh_environments`: what is registered, resolved afresh; its drift reported, approved, built."""

import time
from typing import Any, Literal

from prefect import State, flow
from prefect.exceptions import FlowPauseTimeout
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from prefect_environments.blocks import Workspace
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.history import check_label
from prefect_environments.core.lock.age import AgeLimit
from prefect_environments.core.refresh.outcome import RefreshOutcome, in_order, told
from prefect_environments.flows import approval
from prefect_environments.flows.form import ask_in_order
from prefect_environments.tasks.refresh import DAYS, build_drifted, find_drift, report_drift, report_refreshed

Policy = Literal["report", "build", "approve"]

_NAMED = 5  # failures that the run's message names
_LONGEST = 24 * 365  # hours


def _run_name() -> str:
    workspace: Any = flow_run.parameters.get("workspace")
    start = f"refresh-{getattr(workspace, 'name', None) or 'workspace'}-"
    if str(flow_run.name).startswith(start):  # it goes on after an approval
        return str(flow_run.name)
    return f"{start}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


@flow(name="refresh-environments", flow_run_name=_run_name, persist_result=False)
def refresh_environments(  # noqa: PLR0917 - as the form asks
    workspace: Workspace,
    policy: Policy = "report",
    exclude_newer_days: int = DAYS,
    names: list[str] = [],  # noqa: B006 - never changed; the form shows an empty list
    label: str = "",
    allow_undated: bool = False,
    approval_hours: int = 72,
) -> list[RefreshOutcome] | State[Any]:
    """Resolve registered environments afresh, and report what drifted: a base tag that moved, newer packages.

    The newest version of each is looked at; archived ones are left out. Drift fails no run. The run fails at its end
    if an environment could not be looked at or built, and builds the others.

    Args:
        workspace: Whose environments are looked at.
        policy: report tells the drift, build also makes the next versions, approve asks on the run's page before it.
        exclude_newer_days: Days since its upload before a package is taken; 0 takes any.
        names: Environments to look at; without any, all that are registered.
        label: Label to set on new versions, such as staging; empty sets none. No other label moves.
        allow_undated: Take packages of indexes that tell no upload times, whatever their age.
        approval_hours: With the policy approve: hours to decide; after them the run fails, and nothing is built.
    """
    if label:
        check_label(label)
    if not 0 < approval_hours <= _LONGEST:
        raise DefinitionError(f"approval_hours is {approval_hours}; give 1 to {_LONGEST} hours")
    AgeLimit.of_days(exclude_newer_days)
    outcomes = approval.seen_before() if policy == "approve" else None
    if outcomes is None:
        keep = policy != "report"
        outcomes = find_drift(workspace, names, exclude_newer_days, allow_undated, keep)
        report_drift(outcomes, workspace.name)
    if policy == "report" or not any(one.status == "drifted" for one in outcomes):
        return _told(outcomes, workspace.name)
    if policy == "build":
        return _told(build_drifted(outcomes, workspace, label), workspace.name)
    try:
        decided = approval.ask(outcomes, workspace.name, approval_hours)
    except FlowPauseTimeout:
        # the server gives the state words of its own
        said = f"nobody decided within {approval_hours} hours, and nothing was built; refresh again"
        get_run_logger().error(said)
        report_refreshed(outcomes, workspace.name)
        return Failed(message=said)
    chosen = [_decided(one, decided) for one in outcomes]
    built = build_drifted(chosen, workspace, label, decided.reason) if decided.names else chosen
    return _told(built, workspace.name)


ask_in_order(
    refresh_environments,
    *("workspace", "names", "policy", "approval_hours", "label", "exclude_newer_days", "allow_undated"),
)


def _decided(outcome: RefreshOutcome, decided: approval.Approval) -> RefreshOutcome:
    if outcome.status != "drifted" or outcome.name in decided.names:
        return outcome
    get_run_logger().info("%s refused%s", outcome.label(), f": {decided.reason}" if decided.reason else "")
    reason = f"refused: {decided.reason}" if decided.reason else "refused in the UI"
    return outcome.model_copy(update={"status": "refused", "reason": reason})


def _told(outcomes: list[RefreshOutcome], workspace: str) -> State[Any]:
    report_refreshed(outcomes, workspace)
    get_run_logger().info("%d environments: %s", len(outcomes), told(outcomes))
    failed = [one for one in in_order(outcomes) if one.status == "failed"]
    if not failed:
        return Completed(message=told(outcomes), data=outcomes)
    named = "; ".join(f"{one.name}: {one.reason.splitlines()[0]:.200}" for one in failed[:_NAMED])
    more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return Failed(message=f"{told(outcomes)}. {named}{more}")
