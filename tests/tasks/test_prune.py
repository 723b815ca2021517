"""Pruning and archiving as a flow and tasks: the table, who keeps what, and deployments that name an image."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.states import Completed, Scheduled

from prefect_environments import Workspace
from prefect_environments.core import loop
from prefect_environments.core.errors import VersionNotFound, VersionPruned
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.report import PruneReport, PruneRow
from prefect_environments.core.versions import VersionRecord
from prefect_environments.flows import prune_environments
from prefect_environments.tasks import archive_environment, list_environments, restore_environment
from prefect_environments.tasks.prune import _neighbours, images_in_use
from tests.core.test_versions import draft
from tests.flows.parts import Run, unique

POLICY = PrunePolicy(keep=1, older_than_days=30, unused_days=2)


def registered(workspace: Workspace, number: int) -> VersionRecord:
    """A version that was registered long ago, whose image is lost already."""
    digest = f"sha256:{uuid4().hex * 2}"
    old = replace(
        draft(record_hash=str(number), workspace=workspace.name),
        digest=digest,
        reference=f"registry.example.com/environments/train@{digest}",
        definition={"name": "train", "base_image": "debian:13"},
        created="2020-01-01T00:00:00+00:00",
    )
    return loop.run(workspace.versions.register(old))


def shown(report: object) -> tuple[PruneRow, ...]:
    assert isinstance(report, PruneReport)
    return report.rows


def test_the_flow_shows_what_goes_and_why_and_then_does_it(local: Workspace) -> None:
    one, two = registered(local, 1), registered(local, 2)
    state = prune_environments(local, policy=POLICY, return_state=True)
    assert [row.action for row in shown(state.result())] == ["prune", "keep"]
    (table,) = Run(state.state_details.flow_run_id).artifacts("table")
    rows = json.loads(str(table.data))
    assert rows[0] == {
        "name": "train",
        "version": 1,
        "action": "prune",
        "bytes": 0,
        "reason": "not used since 2020-01-01",
    }
    assert rows[1]["reason"] == "among the newest 1" and str(table.description).startswith("Dry run of")
    assert loop.run(local.versions.get("train", 1)) == one

    done = prune_environments(local, dry_run=False, policy=POLICY, return_state=True)
    assert [row.action for row in shown(done.result())] == ["pruned", "keep"]
    with pytest.raises(VersionPruned):
        loop.run(local.versions.get("train", 1))
    entry = loop.run(local.versions.book("train")).entries[-1]
    assert entry.created_by["flow_run_id"] == str(done.state_details.flow_run_id)
    assert loop.run(local.versions.get("train", 2)) == two


def test_versions_on_the_api_are_pruned_unless_a_run_that_has_not_ended_or_a_deployment_names_them(
    remote: Workspace,
) -> None:
    records = [registered(remote, number) for number in range(4)]

    @flow
    def nothing() -> None:
        pass

    async def deploy() -> None:
        def image(record: VersionRecord) -> dict[str, str]:
            return {"image": record.reference}

        async with get_client() as client:
            flow_id = await client.create_flow(nothing)
            plain = await client.create_deployment(flow_id, unique("d"))
            await client.create_deployment(flow_id, unique("d"), job_variables=image(records[2]))
            later: State[Any] = Scheduled(scheduled_time=datetime(2099, 1, 1, tzinfo=UTC))
            for record, state in ((records[0], later), (records[1], Completed())):
                await client.create_flow_run_from_deployment(plain, state=state, job_variables=image(record))

    loop.run(deploy())
    used = loop.run(images_in_use())
    assert {records[0].digest, records[2].digest} <= used and records[1].digest not in used
    rows = shown(prune_environments(remote, dry_run=False, policy=POLICY))
    assert [row.action for row in rows] == ["keep", "pruned", "keep", "keep"]
    assert rows[0].reason == "a flow run or a deployment names its image"


def test_other_workspaces_with_the_same_repositories_are_found(remote: Workspace) -> None:
    other = Workspace(name=unique("Other"), registry=remote.registry, repository_prefix=remote.repository_prefix)
    elsewhere = Workspace(name=unique("Else"), registry=remote.registry, repository_prefix=unique("environments"))
    for one in (remote, other, elsewhere):
        one.save(unique("prune").lower(), overwrite=True)
    assert [store.workspace for store in loop.run(_neighbours(remote))] == [other.name]


def test_an_archived_environment_is_not_listed_until_it_is_restored(local: Workspace) -> None:
    registered(local, 1)
    names = [one.name for one in list_environments(local)]
    assert archive_environment("train", local, reason="replaced by train-2") is True
    assert [one.name for one in list_environments(local)] == [name for name in names if name != "train"]
    assert restore_environment("train", local) is True and restore_environment("train", local) is False
    assert [one.name for one in list_environments(local)] == names
    with pytest.raises(VersionNotFound, match="nothing"):
        archive_environment("nothing", local)


def test_the_policy_comes_through_the_form_and_a_hurtful_one_is_refused(local: Workspace) -> None:
    registered(local, 1)
    given: Any = {"keep": 1, "older_than_days": 30, "unused_days": 2}
    assert [row.action for row in shown(prune_environments(local, policy=given))] == ["keep"]
    hurtful: Any = {"unused_days": 0}
    assert prune_environments(local, policy=hurtful, return_state=True).is_failed()
