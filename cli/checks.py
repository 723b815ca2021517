"""`diff`, `verify`, `status` and `inspect`: what differs, what is wrong, what is there, what is in an image."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from prefect_environments.cli.command import FAILED, WRONG, Session, command
from prefect_environments.cli.target import METAVAR, Target, Version
from prefect_environments.cli.target import target as parse_target
from prefect_environments.cli.target import version as parse_version

if TYPE_CHECKING:
    from prefect_environments.cli.output import Part
    from prefect_environments.core.build.inspection import ImageReport
    from prefect_environments.core.compare import VersionDiff
    from prefect_environments.core.fleet.outcome import ImageStatus
    from prefect_environments.core.site import Site
    from prefect_environments.core.verify import Verification
    from prefect_environments.core.versions import VersionRecord

_OPTIONS = {
    "full=True reads every layer": "--full reads every layer",
    "rebuild=True assembles the image once more": "--rebuild assembles the image once more",
}
"""What a verification was not asked for, as a terminal asks for it."""


@command(
    "diff",
    "What differs between two versions.",
    "prefect-environments diff iris 1 2",
    "prefect-environments diff iris production --json",
    "prefect-environments diff iris staging production --workspace team",
    trouble=WRONG,
    codes="0 the versions are equal, 1 they differ, 2 trouble, 130 interrupted.",
)
@click.argument("name")
@click.argument("a", type=parse_version, metavar="A")
@click.argument("b", type=parse_version, metavar="[B]", required=False)
def diff(session: Session, name: str, a: Version, b: Version | None) -> int:
    """What differs between versions A and B of an environment: numbers or labels; B is the newest if left out.

    Packages, base image, environment variables (names only), description and tags, sizes, and layers that both share.
    """
    from prefect_environments.core.compare import compare_versions

    workspace = session.workspace()

    async def work(site: "Site") -> "VersionDiff":
        first, second = [
            (await Target(name, *version).find(workspace)).version if version[1] else version[0]
            for version in (a, b or (None, ""))
        ]
        return await compare_versions(site, name, first or 0, second)

    found = session.at(workspace, work)
    session.tell(found.to_dict(), *found.to_text().splitlines())
    return FAILED if found.changes or not found.digest_equal else 0


@command(
    "verify",
    "Is a version still what was registered?",
    "prefect-environments verify iris",
    "prefect-environments verify iris@production --full --rebuild",
    "prefect-environments verify iris:3 --json --workspace team",
    codes="0 it is what was registered, 1 it is not, or could not be looked at, 2 wrong usage, 130 interrupted.",
)
@click.argument("target", type=parse_target, metavar=METAVAR)
@click.option("--full", is_flag=True, help="Read every byte of every layer.")
@click.option("--rebuild", is_flag=True, help="Assemble the image once more; the digest must be the same.")
def verify(session: Session, target: Target, full: bool, rebuild: bool) -> int:
    """Whether a version still is what was registered: its record, image, layers, lock, definition and SBOM.

    As a task of a flow: prefect_environments.tasks.verify_environment.
    """
    from prefect_environments.cli.output import Table
    from prefect_environments.core.verify import verify_version

    workspace = session.workspace()

    async def work(site: "Site") -> "Verification":
        number = (await target.find(workspace)).version if target.label else target.version
        return await verify_version(site, target.name, number, full=full, rebuild=rebuild)

    found = session.at(workspace, work)
    rows = [tuple(_OPTIONS.get(value, value) for value in row.values()) for row in found.rows()]
    told = f"{found.title}: {'as registered' if found.ok else 'not as registered'}"
    session.tell(found.to_dict(), told, Table(("check", "state", "what to do", "found"), rows))
    return 0 if found.ok else FAILED


@command(
    "status",
    "Is each registered image still there?",
    "prefect-environments status",
    "prefect-environments status iris churn --json --workspace team",
    codes="0 every image is there, 1 one is missing or gave no answer, 2 wrong usage, 130 interrupted.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
def status(session: Session, names: tuple[str, ...]) -> int:
    """Whether the registry still has the image of each environment's newest version, by one request for each.

    Without a terminal a line is: name, version, state (there, missing, unknown), reference, reason.

    \b
    A flow that builds what is missing: prefect deployment run build-environments/build-environments
    """
    from prefect_environments.cli.output import Table
    from prefect_environments.core import loop
    from prefect_environments.core.errors import NotFound
    from prefect_environments.core.fleet.status import check_images

    workspace = session.workspace()

    async def wanted() -> "list[VersionRecord]":
        return [await Target(name).find(workspace) for name in names] if names else await workspace.versions.names()

    records = loop.run(wanted())
    if unbuilt := [record.name for record in records if not record.reference]:
        raise NotFound(f"{', '.join(unbuilt)}: curated and not built in this workspace yet, so there is no image")

    async def work(site: "Site") -> "list[ImageStatus]":
        return await check_images(site, records)

    found = session.at(workspace, work)
    rows = [(one.name, one.version, one.state, one.reference, one.reason) for one in found]
    session.tell(
        {"workspace": workspace.name, "images": [one.model_dump() for one in found]},
        Table(("name", "version", "state", "reference", "reason"), rows),
    )
    return 0 if all(one.state == "there" for one in found) else FAILED


@command(
    "inspect",
    "What is in an image.",
    "prefect-environments inspect python:3.12-slim --workspace ./environments",
    "prefect-environments inspect registry.example.com/base:1 --username ann --password secret:base-registry",
    "prefect-environments inspect oci:./images:base --platform linux/arm64 --json",
)
@click.argument("image")
@click.option("--platform", default="linux/amd64", show_default=True, help="Of an image for several platforms.")
@click.option("--username", default="", help="For the image's registry; else the login of docker or podman counts.")
@click.option("--password", default="", metavar="REFERENCE", help="Reference to a secret: secret:NAME.")
def inspect(session: Session, image: str, platform: str, username: str, password: str) -> int:
    """What is in an image: interpreters, libc, system, and what Azure ML asks of a base image. Nothing of it is run.

    What was found is kept in the workspace's registry, so that the next look is quick.
    """
    from prefect_environments.cli import output
    from prefect_environments.core.looking import look_inside

    workspace = session.workspace(create=True)

    async def work(site: "Site") -> "ImageReport":
        return await look_inside(site, image, username=username, password=password, platform=platform)

    with output.progress(quiet=session.quiet) as progress:
        found = session.at(workspace, work, progress)
    session.tell(found.to_json(), *_parts(found))
    return 0


def _parts(found: "ImageReport") -> "Iterator[Part]":
    from prefect_environments.cli.output import Bytes, Table, facts

    yield facts(
        {
            "reference": found.reference,
            "digest": found.digest,
            "platform": found.platform,
            "size": Bytes(found.size),
            "layers": found.layers,
            "system": found.system,
            "libc": found.libc,
        }
    )
    pythons = [(one.path, one.version) for one in found.interpreters]
    yield Table(("Python", "version"), pythons, kind="python")
    rows = [
        (one.name, "there" if one.found else "missing", one.version or one.where, "" if one.found else one.without)
        for one in found.capabilities
    ]
    yield Table(("for Azure ML", "state", "version", "without it"), rows, kind="capability")
