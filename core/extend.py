"""An environment based on a registered one: the base's lock holds, so that nothing it has moves."""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from prefect_environments.core import attachments
from prefect_environments.core.build import private_wheels
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, VersionNotFound
from prefect_environments.core.lock.model import Lock, LockedPackage
from prefect_environments.core.names import is_curated
from prefect_environments.core.site import Site

_DEPTH = 20
_TAKEN = (
    "base_image",
    "base_image_username",
    "base_image_password",
    "base_image_registry",
    "platform",
    "dockerfile",
    "build_context",
    "dockerfile_path",
    "build_arguments",
    "build_target",
    "build_secrets",
)
"""Fields that say what the base is: the base environment's count."""


@dataclass(frozen=True, slots=True)
class Effective:
    """A definition as it is built, what it extends worked in; `base` is the lock that must hold."""

    definition: EnvironmentDefinition
    base: Lock | None = None


async def effective(site: Site, definition: EnvironmentDefinition, _depth: int = 0) -> Effective:
    """`definition` as it is built. One that extends nothing comes back as it is, at no cost.

    Raises `VersionNotFound` where the base is not registered, `DefinitionError` where it cannot be added to.
    """
    if not definition.extends:
        return Effective(definition)
    if _depth > _DEPTH:
        raise DefinitionError(f"{definition.extends} stands on more than {_DEPTH} environments; flatten some of them")
    name, version = definition.base_version()
    try:
        record = await site.workspace.versions.get(name, version)
        await site.workspace.versions.mark_used(record)  # before its lock is read: see `core.prune`
    except VersionNotFound as error:
        advice = "; it is curated: build and register it first" if is_curated(name) else ""
        raise VersionNotFound(f"{definition.name!r} extends {definition.extends}: {error}{advice}") from None
    stored = EnvironmentDefinition(**record.definition)
    if stored.user_managed:
        raise DefinitionError(
            f"{definition.name!r} extends {definition.extends}, whose image is user-managed: packages are added to "
            f"environments that were resolved here. Use its image as base_image instead: {record.reference}"
        )
    lock = await attachments.read_lock(site.repository(record.name), record.lock_digest)
    below = (await effective(site, stored, _depth + 1)).definition
    return Effective(_merged(definition, below, lock), lock)


def _merged(definition: EnvironmentDefinition, below: EnvironmentDefinition, lock: Lock) -> EnvironmentDefinition:
    own = definition.model_dump()
    own.update({name: getattr(below, name) for name in _TAKEN})
    _refuse_contradictions(definition, below, lock)
    # a given lock's files may be in no index: they are named themselves
    pins = tuple(map(_as_it_is if below.pylock else _by_version, lock.packages))
    requirements = below.requirements or pins
    own.update(
        extends="",
        requirements=(*requirements, *definition.requirements),
        constraints=(*definition.constraints, *_pinned(lock, requirements)),
        conda_channels=tuple(dict.fromkeys((*below.conda_channels, *definition.conda_channels))),
        conda_dependencies=(*below.conda_dependencies, *definition.conda_dependencies),
        index_url=definition.index_url or below.index_url,
        extra_index_urls=tuple(dict.fromkeys((*definition.extra_index_urls, *below.extra_index_urls))),
        find_links=tuple(dict.fromkeys((*below.find_links, *definition.find_links))),
        no_index=definition.no_index or below.no_index,
        pre=definition.pre or below.pre,
        allow_source_builds=definition.allow_source_builds or below.allow_source_builds,
        compile_bytecode=definition.compile_bytecode or below.compile_bytecode,
        environment_variables={**below.environment_variables, **definition.environment_variables},
        allow_literal_secrets=definition.allow_literal_secrets or below.allow_literal_secrets,
    )
    return EnvironmentDefinition(**own)


def _pinned(lock: Lock, requirements: Iterable[str]) -> tuple[str, ...]:
    """The lock's versions as constraints, but for those that a requirement names by an address."""
    direct = directly_named(requirements)
    return tuple(_by_version(p) for p in lock.packages if canonicalize_name(p.name) not in direct)


def directly_named(requirements: Iterable[str]) -> set[str]:
    """Normalised names of the packages that requirement lines name by an address (PEP 508, `NAME @ URL`)."""
    return {canonicalize_name(line.split(" @ ")[0].split("[")[0]) for line in requirements if " @ " in line}


def _by_version(package: LockedPackage) -> str:
    return f"{package.name}=={package.version}"


def _as_it_is(package: LockedPackage) -> str:
    """A requirement for the very file; one without an address was built from source, and is in the registry."""
    where = package.url or f"{private_wheels.SCHEME}{package.sha256}/{quote(package.filename)}"
    return f"{package.name} @ {where}"


def _refuse_contradictions(definition: EnvironmentDefinition, below: EnvironmentDefinition, lock: Lock) -> None:
    """What asks for another version of a package than the base has, or another platform: told here, in better words
    than a resolver's."""
    if definition.platform not in (below.platform, EnvironmentDefinition.model_fields["platform"].default):
        raise DefinitionError(
            f"{definition.name!r} is for {definition.platform}, but {definition.extends}, which it extends, is for "
            f"{below.platform}: extend an environment of that platform"
        )
    has: dict[str, LockedPackage] = {canonicalize_name(package.name): package for package in lock.packages}
    for line in definition.requirements:
        try:
            asked = Requirement(line.split(" --hash")[0])
        except InvalidRequirement:
            continue  # a path or an address: the resolver reads it
        package = has.get(canonicalize_name(asked.name))
        if package and not asked.specifier.contains(package.version, prereleases=True):
            raise DefinitionError(
                f"{definition.name!r} asks for {line}, but {definition.extends}, which it extends, has {package.name} "
                f"{package.version}, and what it has does not move. Drop the requirement, or define the environment "
                "anew from the base's requirements"
            )
