"""`build`: from files to ready images."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from prefect_environments.cli.command import FAILED, Session, command
from prefect_environments.cli.maker import started_by

if TYPE_CHECKING:
    from prefect_environments.cli.output import Part
    from prefect_environments.core.definition import EnvironmentDefinition
    from prefect_environments.core.fleet.outcome import FleetOutcome
    from prefect_environments.core.fleet.specifications import Specifications
    from prefect_environments.core.ready import ReadyImage
    from prefect_environments.core.site import Site
    from prefect_environments.core.workspace import Workspace


@command(
    "build",
    "Turn files and folders into ready images.",
    "prefect-environments build requirements.txt --name iris --base-image python:3.12-slim",
    "prefect-environments build environment.yml Dockerfile --workspace team",
    "prefect-environments build ./environments --workspace ./images --json",
    "prefect-environments build requirements.txt --upgrade",
    codes="0 all are ready, 1 one failed, 2 wrong usage or input, 130 interrupted.",
)
@click.argument("paths", metavar="FILE|FOLDER...", nargs=-1, required=True)
@click.option("-n", "--name", default="", help="Name of the environment; else the file, or its folder, gives it.")
@click.option("-b", "--base-image", default="", metavar="IMAGE", help="Base image of what names none.")
@click.option("--upgrade", is_flag=True, help="Resolve afresh; else the last version's packages stay.")
@click.option("--force", is_flag=True, help="Assemble and push even what the registry has. For one environment.")
@click.option(
    "--concurrency", type=click.IntRange(min=0), default=0, metavar="N", help="Environments at once; 0: by the cores."
)
def build(
    session: Session,
    *,
    paths: tuple[str, ...],
    name: str,
    base_image: str,
    upgrade: bool,
    force: bool,
    concurrency: int,
) -> int:
    """Resolve, build and register environments; what the registry has is found and not built again.

    A FILE is one environment: requirements (*.txt), a conda or Azure ML file (*.yml), pylock.toml, pyproject.toml, a
    Dockerfile. So is a FOLDER with azureml_environment.json, a Dockerfile (its build context) or pyproject.toml; any
    other FOLDER holds many. Many are built at once: what they share is made once, and a failure stops no other.

    Without a terminal a line is: name, version, status (ready, reused, built, failed), reference, seconds, bytes sent.

    \b
    As a flow: prefect deployment run build-environment/build-environment
    Many:      prefect deployment run build-environments/build-environments
    """
    from prefect_environments.cli import specifications

    found = specifications.read(paths, name=name, base_image=base_image)
    many = len(found.definitions) + len(found.unreadable) > 1
    if many and force:
        raise click.UsageError("--force is for one environment; build each by itself", click.get_current_context())
    workspace = session.workspace(create=True)
    if many or found.unreadable:
        rows = _build_many(session, workspace, found, upgrade=upgrade, concurrency=concurrency)
    else:
        rows = [_build_one(session, workspace, found.definitions[0], upgrade=upgrade, force=force)]
    session.tell({"workspace": workspace.name, "environments": rows}, *_shown(rows))
    return FAILED if any(row["status"] == "failed" for row in rows) else 0


def _build_one(
    session: Session, workspace: "Workspace", definition: "EnvironmentDefinition", *, upgrade: bool, force: bool
) -> dict[str, Any]:
    from prefect_environments.cli import output
    from prefect_environments.core import steps

    clock: dict[str, float] = {}

    async def work(site: "Site") -> "tuple[str, ReadyImage]":
        if not (upgrade or force):
            with _timed(clock, "find"):
                ready = await steps.find_registered(site, definition, created_by=started_by("build"))
            if ready is not None:
                return "ready", ready
        with _timed(clock, "resolve"):
            lock = await steps.resolve(site, definition, upgrade=upgrade)
        with _timed(clock, "build"):
            built = await steps.build(site, definition, lock, force=force)
        with _timed(clock, "register"):
            record = await steps.register(site, definition, built, created_by=started_by("build"))
        return "reused" if built.reused else "built", steps.ready_image(record, built, {})

    with output.progress(quiet=session.quiet) as progress:
        status, ready = session.at(workspace, work, progress)
    row = ready.model_dump(exclude={"reused", "seconds"})
    return {**row, "status": status, "reason": "", "seconds": round(sum(clock.values()), 3), "steps": clock}


@contextmanager
def _timed(clock: dict[str, float], step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    clock[step] = round(time.monotonic() - started, 3)


def _build_many(
    session: Session, workspace: "Workspace", found: "Specifications", *, upgrade: bool, concurrency: int
) -> list[dict[str, Any]]:
    from prefect_environments.core.fleet import build as fleet

    total = len(found.definitions)

    async def work(site: "Site") -> "list[FleetOutcome]":
        return await fleet.build_environments(
            site,
            found.definitions,
            upgrade=upgrade,
            concurrency=concurrency,
            on_outcome=_count(total, quiet=session.quiet),
            created_by=started_by("build"),
        )

    outcomes = [*found.unreadable, *session.at(workspace, work)]
    return [outcome.model_dump() for outcome in outcomes]


def _count(total: int, *, quiet: bool) -> "Callable[[FleetOutcome], None]":
    """Tells of each environment as it ends."""
    done = 0

    def count(outcome: "FleetOutcome") -> None:
        nonlocal done
        done += 1
        if not quiet:
            version = f" version {outcome.version}" if outcome.version else ""
            click.echo(f"[{done}/{total}] {outcome.name}{version} {outcome.status}", err=True)

    return count


def _shown(rows: list[dict[str, Any]]) -> "Iterator[Part]":
    from prefect_environments.cli.output import Bytes, Seconds, Table, write_error

    lines = []
    for row in rows:
        sent = Bytes(row["bytes_sent"]) if "bytes_sent" in row else ""  # many share what they send
        lines.append(
            (row["name"], row["version"] or "", row["status"], row["reference"], Seconds(row["seconds"]), sent)
        )
    yield Table(("name", "version", "status", "reference", "time", "sent"), lines)
    for row in rows:
        if row["status"] == "failed":
            write_error(f"{row['name']}: {row['reason']}")
