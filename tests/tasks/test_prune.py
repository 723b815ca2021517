"""Pruning and archiving as a flow and tasks: the table, who keeps what, and deployments that name an image."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import State, flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import BlockDocumentUpdate, DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Completed, Pending, Scheduled

from prefect_environments import Workspace
from prefect_environments.core import loop
from prefect_environments.core.errors import VersionError, VersionNotFound, VersionPruned
from prefect_environments.core.names import document_name, use_name
from prefect_environments.core.prune.policy import PrunePolicy
from prefect_environments.core.prune.report import PruneReport, PruneRow
from prefect_environments.core.versions import VersionRecord
from prefect_environments.flows import prune_environments
from prefect_environments.tasks import archive_environment, check_images, list_environments, prune, restore_environment
from prefect_environments.tasks.prune import _neighbours, images_in_use
from tests.core.test_versions import draft
from tests.flows.parts import Run, unique

POLICY = PrunePolicy(keep=1, older_than_days=30, unused_days=2)


def registered(workspace: Workspace, number: int) -> VersionRecord:
    """A version that was registered long ago, whose image is lost already."""
    digest = f"sha256:{uuid4().hex * 2}"
    settings, path = workspace.registry_settings, f"{workspace.repository_prefix}/train"
    old = replace(
        draft(record_hash=str(number), workspace=workspace.name),
        digest=digest,
        reference=f"{settings.address}{':' if settings.folder else '/'}{path}@{digest}",
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
    assert rows[0].reason == "a flow run or a deployment names it"


def test_versions_that_parameters_name_are_in_use_by_number_by_digest_and_by_block(remote: Workspace) -> None:
    records = [registered(remote, number) for number in range(3)]

    @flow
    def train(config: Any = None, environment: Any = None) -> None:
        pass

    made: list[UUID] = []

    async def queue() -> None:
        async with get_client() as client:
            document = await client.read_block_document_by_name(
                document_name(remote.name, "train", records[2].version), "environment-version"
            )
            later: State[Any] = Scheduled(scheduled_time=datetime(2099, 1, 1, tzinfo=UTC))
            for parameters in (
                {"config": {"environment": f"train:{records[0].version}"}},
                {"config": {"environment": f"other:7@{records[1].digest}"}},
                {"environment": {"$ref": {"block_document_id": str(document.id)}}},
            ):
                made.append((await client.create_flow_run(train, parameters=parameters, state=later)).id)

    async def forget() -> None:
        async with get_client() as client:  # other tests have versions of these names, on the same server
            for run_id in made:
                await client.delete_flow_run(run_id)

    loop.run(queue())
    used = loop.run(images_in_use())
    assert {f"train:{records[0].version}", records[1].digest, f"train:{records[2].version}", "other:7"} <= used
    registered(remote, 3)
    rows = shown(prune_environments(remote, dry_run=False, policy=POLICY))
    loop.run(forget())
    assert {row.action for row in rows} == {"keep"}


def test_runs_that_end_while_they_are_listed_hide_no_other(remote: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [registered(remote, number) for number in range(6)]

    @flow
    def nothing() -> None:
        pass

    async def start() -> set[UUID]:
        async with get_client() as client:
            deployment = await client.create_deployment(await client.create_flow(nothing), unique("d"))
            made = [
                await client.create_flow_run_from_deployment(
                    deployment, state=Pending(), job_variables={"image": record.reference}
                )
                for record in records
            ]
            return {run.id for run in made}

    ours, real, seen = loop.run(start()), PrefectClient.read_flow_runs, set[str]()

    async def ending(self: PrefectClient, **options: Any) -> Any:
        page = await real(self, **options)
        for run in page:
            if run.id in ours:
                seen.add(str(run.job_variables))
                await self.set_flow_run_state(run.id, Completed(), force=True)
        return page

    monkeypatch.setattr(PrefectClient, "read_flow_runs", ending)
    monkeypatch.setattr(prune, "_PAGE", 2)
    assert {record.digest for record in records} <= loop.run(images_in_use())
    assert len(seen) == len(records)


def test_an_api_that_cannot_be_asked_is_told_as_what_it_is(remote: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise httpx.ConnectError("no")

    monkeypatch.setattr(PrefectClient, "read_flow_runs", broken)
    with pytest.raises(VersionError, match=r"could not be asked.*run again"):
        loop.run(images_in_use())


def test_a_mark_of_use_that_somebody_edited_is_written_anew_and_hides_nothing(remote: Workspace) -> None:
    one = registered(remote, 0)
    assert loop.run(remote.versions.mark_used(one)) is True

    async def edit() -> None:
        async with get_client() as client:
            name = use_name(remote.name, "train", one.version)
            found = await client.read_block_document_by_name(name, "environment-history")
            await client.update_block_document(found.id, BlockDocumentUpdate(data={**found.data, "created": "soon"}))

    loop.run(edit())
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    assert loop.run(remote.versions.book("train")).used[one.version] == yesterday
    assert loop.run(remote.versions.mark_used(one)) is True
    assert loop.run(remote.versions.book("train")).used[one.version] > yesterday


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
    assert [(one.name, one.state) for one in check_images(local, ["train"])] == [("train", "missing")]
    assert check_images(local) == []
    with pytest.raises(VersionNotFound, match="nothing: not registered"):
        check_images(local, ["train", "nothing"])
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


def test_an_api_that_knows_no_workspace_block_has_no_neighbours_and_one_that_fails_is_told(
    remote: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server where nobody saved a workspace yet."""
    monkeypatch.setattr(Workspace, "get_block_type_slug", classmethod(lambda _cls: unique("never-saved").lower()))
    assert loop.run(_neighbours(remote)) == []

    async def broken(*_: Any, **__: Any) -> Any:
        raise httpx.ConnectError("no")

    monkeypatch.setattr(PrefectClient, "read_block_documents_by_type", broken)
    with pytest.raises(VersionError, match=r"could not be asked which workspaces.*run again"):
        loop.run(_neighbours(remote))


def test_what_a_paused_schedule_of_a_deployment_names_is_in_use(remote: Workspace) -> None:
    digest = f"sha256:{uuid4().hex * 2}"

    @flow
    def train(image: str = "") -> None:
        pass

    async def deploy() -> None:
        yearly = DeploymentScheduleCreate(
            schedule=CronSchedule(cron="0 0 1 1 *"),
            active=False,
            parameters={"image": f"registry.example.com/a@{digest}"},
        )
        async with get_client() as client:
            await client.create_deployment(await client.create_flow(train), unique("d"), schedules=[yearly])

    loop.run(deploy())
    assert digest in loop.run(images_in_use())
