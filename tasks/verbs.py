"""One task a verb, for any flow. None keeps a Prefect result or cache, which would guess existence."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_environments.blocks import AzureContainerRegistry, ContainerRegistry, EnvironmentVersion, Workspace
from prefect_environments.core import hashes, looking, loop, steps
from prefect_environments.core.build.inspection import ImageReport
from prefect_environments.core.copy import copy_image
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.steps import BuiltImage
from prefect_environments.core.versions import VersionRecord
from prefect_environments.tasks.provenance import current_origin
from prefect_environments.tasks.report import report_image, run_progress
from prefect_environments.tasks.site import at, is_transient

Definition = EnvironmentDefinition | Environment
AnyRegistry = AzureContainerRegistry | ContainerRegistry

_F = TypeVar("_F", bound=Callable[..., Any])
_quiet: dict[str, Any] = {"persist_result": False, "cache_policy": NO_CACHE}
_network: dict[str, Any] = {**_quiet, "retries": 1, "retry_delay_seconds": 5, "retry_condition_fn": is_transient}


def definition_of(environment: Definition) -> EnvironmentDefinition:
    """The frozen definition of either model."""
    return environment.definition() if isinstance(environment, Environment) else environment


@task(name="resolve-environment", **_network)
def resolve_environment(environment: Definition, workspace: Workspace, upgrade: bool = False) -> Lock:
    """Pin everything: base image by digest, packages by sha256. `upgrade` ignores the last version's lock."""
    definition = definition_of(environment)
    if not (definition.dockerfile or definition.build_context):
        return at(workspace, lambda site: steps.resolve(site, definition, upgrade=upgrade))
    with run_progress("Building the Dockerfile") as progress:
        return at(workspace, lambda site: steps.resolve(site, definition, upgrade=upgrade), progress=progress)


@task(name="hash-environment", **_quiet)
def hash_environment(environment: Definition, workspace: Workspace, lock: Lock | None = None) -> dict[str, str]:
    """The definition hash, and with a lock the image hash and record hash.

    Nothing is looked up but the variables of an environment that is extended, which are in the record hash.
    """
    definition = definition_of(environment)
    found = {"definition_hash": steps.definition_hash(workspace, definition)}
    if lock is not None:
        found["image_hash"] = hashes.image_hash(lock)
        variables: dict[str, str] | None = None
        if definition.extends:
            variables = at(workspace, lambda site: steps.inherited_variables(site, definition))
        found["record_hash"] = hashes.record_hash(found["image_hash"], definition, variables)
    return found


@task(name="find-image", **_network)
def find_image(environment: Definition, workspace: Workspace) -> ReadyImage | None:
    """The registered image of a definition if the registry still has it; one request, nothing resolved."""
    definition = definition_of(environment)
    origin = current_origin()
    return at(workspace, lambda site: steps.find_registered(site, definition, created_by=origin))


@task(name="build-image", **_network)
def build_image(environment: Definition, lock: Lock, workspace: Workspace, force: bool = False) -> BuiltImage:
    """The image of a lock in the workspace's registry: found by its hash, else assembled and pushed."""
    definition = definition_of(environment)
    with run_progress() as progress:
        return at(workspace, lambda site: steps.build(site, definition, lock, force=force), progress=progress)


@task(name="push-image", **_network)
def push_image(
    reference: str,
    registry: AnyRegistry,
    repository: str,
    source: AnyRegistry,
    workspace: Workspace | None = None,
) -> str:
    """Copy an image with its attachments from one registry or layout to another; the digest stays.

    `reference` is `repository@sha256:…` or `repository:tag` in `source`. Credentials and Key Vaults of `workspace`
    count where the registries name none of their own. Gives the new `repository@sha256:…`.
    """
    if workspace is not None:
        source = source.model_copy().within(workspace.context)  # a copy: it may be in another one
        registry = registry.model_copy().within(workspace.context)

    async def copied() -> str:
        giver, taker = await source.resolved_settings(), await registry.resolved_settings()
        return await copy_image(reference, giver, taker, repository, source.secrets)

    return loop.run(copied())


@task(name="register-environment", **_network)
def register_environment(environment: Definition, built: BuiltImage, workspace: Workspace) -> EnvironmentVersion:
    """Register a built image as the next version; an equal newest version comes back as it is."""
    definition = definition_of(environment)
    origin = current_origin()
    record = at(workspace, lambda site: steps.register(site, definition, built, created_by=origin))
    return EnvironmentVersion.from_record(record)


@task(name="get-environment", **_quiet)
def get_environment(name: str, workspace: Workspace, version: int | None = None, label: str = "") -> EnvironmentVersion:
    """A registered version, the newest without number or label. Raises `VersionNotFound` that names what there is."""
    if version is not None and label:
        raise DefinitionError("version and label are both given; give one of them")
    return EnvironmentVersion.from_record(loop.run(steps.find_version(workspace, name, version, label=label)))


@task(name="list-environments", **_quiet)
def list_environments(workspace: Workspace, name: str | None = None, curated: bool = False) -> list[EnvironmentVersion]:
    """The newest version of every environment, or every version of one.

    With `curated`, also the curated environments that nobody has built yet: their `reference` is empty.
    """
    found: Coroutine[Any, Any, list[VersionRecord]]
    if name:
        found = workspace.versions.versions(name)
    else:
        found = steps.newest_versions(workspace) if curated else workspace.versions.names()
    return [EnvironmentVersion.from_record(record) for record in loop.run(found)]


@task(name="inspect-image", **_network)
def inspect_image(
    image: str, workspace: Workspace, platform: str = "linux/amd64", username: str = "", password: str = ""
) -> ImageReport:
    """What is in an image: interpreters, libc, system, and what Azure ML asks of a base image. No container is run.

    `password` is a secret reference. What was found is kept in the workspace's registry by the image's digest.
    """
    report = at(
        workspace,
        lambda site: looking.look_inside(site, image, username=username, password=password, platform=platform),
    )
    report_image(report)
    return report
