"""A run that waited for approval and ended is retried: it looks again, and asks again."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Failed

from prefect_environments import Workspace
from prefect_environments.core import loop
from prefect_environments.flows import build_environments, refresh_environments
from tests.flows.parts import Run, define, unique
from tests.flows.test_refresh import Waiting
from tests.support.base import BaseLayout
from tests.support.wheels import make_wheel


def execute(run: FlowRun, workspace: Workspace) -> State[Any] | None:
    """What a worker's process does with a run that was handed to it; `None` where it is suspended."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run.id)
    try:
        parameters = {"workspace": workspace, "policy": "approve", "exclude_newer_days": 0}
        found = run_flow(refresh_environments, flow_run=run, parameters=parameters, return_type="state")
    except Pause:
        return None
    return found if isinstance(found, State) and not found.is_paused() else None


def retried(run: FlowRun) -> None:
    """As by the button of the UI, once nobody decided in time."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Failed(message="This pause timed out"), force=True)
        client.set_flow_run_state(run.id, AwaitingRetry())


@pytest.mark.slow
def test_a_run_that_nobody_answered_looks_and_asks_again_when_it_is_retried(
    base_layout: BaseLayout, wheels: Path, remote: Workspace
) -> None:
    """The inputs of its first pause are still there, and their keys taken; what came out since then is in the second
    form, and it is that form's answer that counts."""
    remote.registry.save(unique("registry"))
    block = remote.save(unique("workspace"))
    wanted = define(base_layout, wheels, "ham")
    build_environments(remote, [wanted])
    make_wheel(wheels, "ham", "3.1")
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(refresh_environments), name=unique("again"))
        run = client.create_flow_run_from_deployment(
            deployment,
            parameters={"workspace": {"$ref": {"block_document_id": str(block)}}, "policy": "approve"},
        )
    assert execute(run, remote) is None
    _, _, text = Waiting(run=Run(run.id)).form()
    assert "~ ham 3.0 → 3.1" in text
    retried(run)
    make_wheel(wheels, "ham", "3.2")
    assert execute(run, remote) is None
    waiting = Waiting(run=Run(run.id))
    paused, _, text = waiting.form()
    assert "~ ham 3.0 → 3.2" in text
    assert waiting.answer(paused, decision="build", environments=[wanted.name]) == "ACCEPT"
    make_wheel(wheels, "ham", "3.3")
    state = execute(run, remote)
    assert state is not None and (state.name, state.message) == ("Completed", "1 built")
    newest = loop.run(remote.versions.get(wanted.name, 2))
    assert newest.created_by["refreshed_from"] == 1
