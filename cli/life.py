"""`refresh`, `promote`, `prune`, `archive` and `restore`: what is done with environments week after week."""

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, cast

import click

from prefect_environments.cli.command import FAILED, Session, command
from prefect_environments.cli.maker import started_by
from prefect_environments.cli.target import METAVAR, Target
from prefect_environments.cli.target import target as parse_target

if TYPE_CHECKING:
    from prefect_environments.cli.output import Part
    from prefect_environments.core.progress import Progress
    from prefect_environments.core.promotion import Promotion
    from prefect_environments.core.prune.policy import PrunePolicy
    from prefect_environments.core.prune.report import PruneReport
    from prefect_environments.core.refresh.outcome import RefreshOutcome
    from prefect_environments.core.site import Site
    from prefect_environments.core.versions import VersionStore
    from prefect_environments.core.workspace import Workspace

DAYS = 3  # as the flow has it

Flag = Callable[..., Awaitable[bool]]


@command(
    "refresh",
    "What drifted: newer packages, base tags that moved.",
    "prefect-environments refresh",
    "prefect-environments refresh iris --exclude-newer-days 7 --json",
    "prefect-environments refresh --build --label staging --workspace team",
    codes="0 nothing drifted, or with --build all is built; 1 something drifted or failed; 2 wrong usage or input, "
    "130 interrupted.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--build", "building", is_flag=True, help="Build and register the next version of what drifted.")
@click.option("--label", default="", help="With --build: set on the new versions, such as staging.")
@click.option(
    "--exclude-newer-days",
    "days",
    type=int,
    default=DAYS,
    show_default=True,
    metavar="N",
    help="Leave out packages that were published since; 0 takes any.",
)
@click.option("--allow-undated", is_flag=True, help="Take packages of indexes that tell no upload times.")
def refresh(
    session: Session, *, names: tuple[str, ...], building: bool, label: str, days: int, allow_undated: bool
) -> int:
    """Resolve registered environments afresh and say what would change; nothing is built unless asked.

    Without a terminal a line is: name, version, status (failed, drifted, built, unchanged), new version, reason; then
    a line of each change.

    \b
    As a flow: prefect deployment run refresh-environments/refresh-environments
    """
    from prefect_environments.core.history import check_label
    from prefect_environments.core.lock.age import AgeLimit
    from prefect_environments.core.refresh import build, look

    if label and not building:
        raise click.UsageError("--label is for new versions: give --build, too", click.get_current_context())
    if label:
        check_label(label)
    age = AgeLimit.of_days(days, allow_undated=allow_undated)
    workspace = session.workspace()

    async def work(site: "Site") -> "list[RefreshOutcome]":
        found = await look.find_drift(site, names, age=age, keep=building)
        if not building:
            return found
        return await build.build_drifted(site, found, label=label, created_by=started_by("refresh"))

    found = session.at(workspace, work)
    rows = [one.model_dump(mode="json") for one in found]
    session.tell({"workspace": workspace.name, "environments": rows}, *_drift(found))
    return FAILED if any(one.status in ("failed", "drifted") for one in found) else 0


def _drift(found: "list[RefreshOutcome]") -> "Iterator[Part]":
    from prefect_environments.cli.output import Table
    from prefect_environments.core.refresh.outcome import in_order

    rows = [(one.name, one.version, one.status, one.new_version or "", one.reason) for one in in_order(found)]
    yield Table(("name", "version", "status", "new version", "reason"), rows)
    changes = [(one.name, change) for one in in_order(found) for change in one.changes]
    yield Table(("name", "change"), changes, kind="change")


@command(
    "promote",
    "Copy a version to another workspace.",
    "prefect-environments promote iris@staging --workspace dev --to prod",
    "prefect-environments promote iris:3 --workspace ./dev --to ./prod --label production --json",
)
@click.argument("target", type=parse_target, metavar=METAVAR)
@click.option("--to", required=True, metavar="NAME|FOLDER", help="The workspace that gets it.")
@click.option("--label", default="", help="Set there when all is copied, such as production.")
@click.option("--name", default="", help="The environment's name there; else it keeps its name.")
def promote(session: Session, *, target: Target, to: str, label: str, name: str) -> int:
    """Copy a version with its image, lock and SBOM to another workspace; the digest stays.

    A version that is there already is not registered again.

    \b
    As a flow: prefect deployment run promote-environment/promote-environment
    """
    from prefect_environments.cli import output
    from prefect_environments.cli.workspaces import find_workspace
    from prefect_environments.core import loop
    from prefect_environments.core import promote as promotion
    from prefect_environments.core.site import open_site

    source, goal = session.workspace(), find_workspace(to, create=True, quiet=session.quiet)

    async def work(progress: "Progress") -> "Promotion":
        version = target.label or target.version or ""
        async with open_site(source) as giver, open_site(goal, progress=progress) as taker:
            return await promotion.promote(
                giver, taker, target.name, version, label=label, target_name=name, created_by=started_by("promote")
            )

    with output.progress(quiet=session.quiet) as progress:
        done = loop.run(work(progress))
    found = {
        "workspace": done.record.workspace,
        "name": done.record.name,
        "version": done.record.version,
        "status": "promoted" if done.is_new else "ready",
        "reference": done.record.reference,
        "label": done.label,
        "from": {"workspace": done.source.workspace, "name": done.source.name, "version": done.source.version},
        "bytes_sent": done.bytes_sent,
        "notes": list(done.notes),
    }
    sent = output.Bytes(done.bytes_sent)
    session.tell(found, output.facts({**found, "from": done.source.reference, "bytes_sent": sent, "notes": ""}))
    for note in done.notes:
        click.echo(f"warning: {output.clean(note)}", err=True)
    return 0


@command(
    "prune",
    "Remove versions that nobody needs; by default it only says which.",
    "prefect-environments prune",
    "prefect-environments prune iris churn --keep 5 --older-than-days 30",
    "prefect-environments prune --delete --json --workspace team",
    codes="0 fine, 1 something could not be removed, 2 wrong usage or input, 130 interrupted; the next run goes on.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--delete", is_flag=True, help="Do it; without this it is a dry run.")
@click.option("--keep", type=int, default=3, show_default=True, metavar="N", help="Newest versions that stay.")
@click.option("--keep-archived", type=int, default=1, show_default=True, metavar="N", help="The same of archived ones.")
@click.option("--older-than-days", type=int, default=90, show_default=True, metavar="N", help="Younger ones stay.")
@click.option("--unused-days", type=int, default=30, show_default=True, metavar="N", help="Those used since then stay.")
def prune(
    session: Session,
    *,
    names: tuple[str, ...],
    delete: bool,
    keep: int,
    keep_archived: int,
    older_than_days: int,
    unused_days: int,
) -> int:
    """Remove old versions that nobody needs, with their images, and what is left over of jobs and builds.

    Labelled versions, the newest, those used lately or extended by others stay, and what flow runs and deployments
    name. Without a terminal a line is: name, version, action (keep, prune, pruned, spared, failed), bytes, reason.

    \b
    As a flow: prefect deployment run prune-environments/prune-environments
    """
    from pydantic import ValidationError

    from prefect_environments.cli.output import Bytes, Table
    from prefect_environments.core.prune.policy import PrunePolicy

    try:
        policy = PrunePolicy(
            keep=keep,
            keep_archived=keep_archived,
            older_than_days=older_than_days,
            unused_days=unused_days,
            names=names,
        )
    except ValidationError as error:
        wrong = "; ".join(f"--{str(one['loc'][0]).replace('_', '-')}: {one['msg']}" for one in error.errors())
        raise click.UsageError(wrong, click.get_current_context()) from None
    workspace = session.workspace()
    found = _pruned(session, workspace, policy, dry_run=not delete)
    rows = [(one.name, one.version or "", one.action, Bytes(one.bytes), one.reason) for one in found.rows]
    session.tell(
        {"workspace": workspace.name, "bytes": found.bytes, **found.model_dump(mode="json")},
        Table(("name", "version", "action", "size", "reason"), rows),
    )
    if not session.quiet:
        click.echo(f"{'dry run: ' if found.dry_run else ''}{found}", err=True)
    return FAILED if found.failed else 0


def _pruned(session: Session, workspace: "Workspace", policy: "PrunePolicy", *, dry_run: bool) -> "PruneReport":
    from prefect_environments.cli.workspaces import FolderWorkspace
    from prefect_environments.core.prune.run import prune_environments

    if not isinstance(workspace, FolderWorkspace):  # flow runs and other workspaces may need what it has
        from prefect_environments.blocks import Workspace as Block
        from prefect_environments.tasks.prune import prune_versions

        return prune_versions.fn(cast(Block, workspace), policy, dry_run)
    neighbours: list[VersionStore] = workspace.neighbours()

    async def work(site: "Site") -> "PruneReport":
        return await prune_environments(
            site, policy, dry_run=dry_run, neighbours=neighbours, created_by=started_by("prune")
        )

    return session.at(workspace, work)


@command(
    "archive",
    "No longer list, refresh or build an environment with all.",
    "prefect-environments archive iris",
    'prefect-environments archive iris --reason "replaced by iris-2" --workspace team',
)
@click.argument("name")
@click.option("--reason", default="", help="Why; kept in the history.")
def archive(session: Session, name: str, reason: str) -> int:
    """No longer list, refresh or build an environment with all others. It still works for whoever names it."""
    from prefect_environments.core.archive import archive as write

    return _set(session, name, reason, "archive", write)


@command(
    "restore",
    "List an archived environment again.",
    "prefect-environments restore iris",
    "prefect-environments restore iris --workspace team --json",
)
@click.argument("name")
@click.option("--reason", default="", help="Why; kept in the history.")
def restore(session: Session, name: str, reason: str) -> int:
    """List an archived environment again. It is no failure if it was not archived."""
    from prefect_environments.core.archive import restore as write

    return _set(session, name, reason, "restore", write)


def _set(session: Session, name: str, reason: str, what: str, write: Flag) -> int:
    from prefect_environments.cli.output import facts
    from prefect_environments.core import loop

    versions = session.workspace().versions

    async def work() -> bool:
        return await write(versions, name, reason=reason, created_by=started_by(what))

    found = {"name": name, "state": "archived" if what == "archive" else "registered", "changed": loop.run(work())}
    session.tell(found, facts(found))
    return 0
