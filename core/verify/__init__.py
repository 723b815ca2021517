"""Verify a registered version: recompute what its record, its lock and its image say of each other."""

from prefect_environments.core import loop, steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, NotFound, VersionError, VersionNotFound
from prefect_environments.core.findings import Finding
from prefect_environments.core.redact import redact
from prefect_environments.core.site import Site, open_site
from prefect_environments.core.verify import planned, stored
from prefect_environments.core.verify.look import ANEW, Look
from prefect_environments.core.verify.rebuild import rebuild as rebuilt
from prefect_environments.core.verify.report import Verification
from prefect_environments.core.workspace import Workspace

__all__ = ["Verification", "verify", "verify_version"]

_RESTORE = "Restore the record from a backup, or register the environment again as a new version"
_ATTACH = "Build the environment again with force=True, which attaches definition, lock and SBOM anew"
_WHEEL = f"{ANEW}. Where rebuild=True gives the same digest, the package itself came with a wrong list of files"
_REBUILD = "See the other checks: without another failure, the index or channel no longer has the packages of the lock"


async def verify_version(
    site: Site, name: str, version: int | None = None, *, full: bool = False, rebuild: bool = False
) -> Verification:
    """All checks of a version, the newest one without a number; what is wrong is in the result, not raised.

    Quick reads manifests, config and attachments, and asks for each blob. `full` reads every byte, one layer at a time,
    and looks into the layers of packages. `rebuild` assembles the image once more and compares the digest. Raises
    `VersionNotFound`, `NotFound` for a curated version that is not built, and errors of registries out of reach.
    """
    try:
        record = await steps.find_version(site.workspace, name, version)
        definition = EnvironmentDefinition(**record.definition)
    except VersionNotFound:
        raise
    except (VersionError, DefinitionError, ValueError, TypeError) as error:  # what somebody wrote there may be anything
        finding = Finding("record", False, redact(str(error)), _RESTORE)
        return Verification(name, version, None, (finding,), (("image", "the record cannot be trusted"),))
    if not record.reference:
        raise NotFound(f"{name} version {record.version} is curated and not built in this workspace; build it first")
    async with steps.open_image(site, definition, record.reference) as repository:
        look = Look(site, record, definition, repository)
        await _checks(look, full=full, rebuild=rebuild)
    return Verification(name, record.version, record, tuple(look.findings), tuple(look.skipped))


async def _checks(look: Look, *, full: bool, rebuild: bool) -> None:
    await look.check("record", _RESTORE, stored.record)
    await look.check("image", ANEW, stored.manifest)
    await look.check("tag", ANEW, stored.tag)
    await look.check("manifest and config", ANEW, stored.config)
    await look.check("blobs", ANEW, stored.blobs)
    await look.check("lock", _ATTACH, stored.lock)
    await look.check("definition", _ATTACH, stored.definition)
    await look.check("SBOM", _ATTACH, stored.bill)
    await look.check("layers of the lock", ANEW, planned.layers)
    await look.check("base and config", ANEW, planned.base)
    if full:
        await look.check("contents", _WHEEL, planned.contents)
    else:
        look.skipped.append(("contents", "full=True reads every layer"))
    if rebuild:
        await look.check("rebuild", _REBUILD, rebuilt)
    else:
        look.skipped.append(("rebuild", "rebuild=True assembles the image once more"))


def verify(
    workspace: Workspace, name: str, version: int | None = None, *, full: bool = False, rebuild: bool = False
) -> Verification:
    """`verify_version`, synchronous, also where a loop runs."""

    async def work() -> Verification:
        async with open_site(workspace) as site:
            return await verify_version(site, name, version, full=full, rebuild=rebuild)

    return loop.run(work())
