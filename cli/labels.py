"""`label`: names that move from version to version."""

from typing import TYPE_CHECKING

import click

from prefect_environments.cli.command import Session, command
from prefect_environments.cli.maker import started_by
from prefect_environments.cli.target import METAVAR, Target
from prefect_environments.cli.target import target as parse_target

if TYPE_CHECKING:
    from prefect_environments.core.site import Site
    from prefect_environments.core.versions import VersionRecord


@click.group(
    short_help="Set and remove labels such as production.",
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
def label() -> None:
    """Set and remove labels such as production; `show` tells them and their history.

    Every move is kept, and the image is tagged with the label. Rolling back is setting it to the older version.
    """


@command(
    "set",
    "Let a label name a version.",
    "prefect-environments label set iris:3 production",
    'prefect-environments label set iris:2 production --reason "3 is too slow"',
    "prefect-environments label set iris@staging production --workspace team",
)
@click.argument("target", type=parse_target, metavar=METAVAR)
@click.argument("name", metavar="LABEL")
@click.option("--reason", default="", help="Why; kept in the history.")
def set_(session: Session, target: Target, name: str, reason: str) -> int:
    """Let LABEL name a version, the newest one if only the environment is given."""
    from prefect_environments.cli.output import facts
    from prefect_environments.core import labels

    workspace = session.workspace()

    async def work(site: "Site") -> "VersionRecord":
        version = (await target.find(workspace)).version if target.label else target.version
        by = started_by("label set")
        return await labels.set_label(site, target.name, name, version, reason=reason, created_by=by)

    record = session.at(workspace, work)
    found = {"name": record.name, "label": name, "version": record.version, "reference": record.reference}
    session.tell(found, facts(found))
    return 0


@command(
    "remove",
    "Take a label away.",
    "prefect-environments label remove iris staging",
    'prefect-environments label remove iris staging --reason "no longer used" --workspace team',
)
@click.argument("environment", metavar="NAME")
@click.argument("name", metavar="LABEL")
@click.option("--reason", default="", help="Why; kept in the history.")
def remove(session: Session, environment: str, name: str, reason: str) -> int:
    """Take LABEL away from an environment. It is no failure if it was not set."""
    from prefect_environments.cli.output import facts
    from prefect_environments.core import labels

    workspace = session.workspace()

    async def work(site: "Site") -> bool:
        by = started_by("label remove")
        return await labels.remove_label(site, environment, name, reason=reason, created_by=by)

    found = {"name": environment, "label": name, "removed": session.at(workspace, work)}
    session.tell(found, facts(found))
    return 0


for _command in (set_, remove):
    label.add_command(_command)
