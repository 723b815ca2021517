"""Who started the current run, for the record of what it registers."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.runtime import flow_run


def current_origin() -> dict[str, Any]:
    """Id and name of the current flow run, its flow, deployment and user as far as Prefect knows them; empty outside
    of one. Asks the API only in a task that runs apart from its flow."""
    if not flow_run.id:
        return {}
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(flow_run.id)
    return {**origin_of(run), "flow_name": str(flow_run.flow_name)}


def origin_of(run: FlowRun) -> dict[str, Any]:
    """What a flow run says of where it came from. On a server without users there is no `user`."""
    found = {"flow_run_id": str(run.id), "flow_run_name": run.name, "deployment_id": str(run.deployment_id or "")}
    if run.created_by is not None:  # a user, an automation
        found[(run.created_by.type or "user").lower()] = run.created_by.display_value or str(run.created_by.id)
    return {key: value for key, value in found.items() if value}
