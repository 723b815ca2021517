"""From a definition to its lock: the base image pinned, and the packages of conda and pip for it."""

import asyncio
import logging
from dataclasses import dataclass, replace

from prefect_environments.core import attachments
from prefect_environments.core.bases import open_base
from prefect_environments.core.build import recipe
from prefect_environments.core.build.base import BaseImage
from prefect_environments.core.build.bytecode import find_interpreter
from prefect_environments.core.build.inspect import check_interpreter, inspect_base
from prefect_environments.core.build.private_wheels import PrivateWheelResolver
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, NotFound, ResolveError
from prefect_environments.core.extend import Effective, directly_named, effective
from prefect_environments.core.formats.pylock import check_python
from prefect_environments.core.lock.age import AgeLimit
from prefect_environments.core.lock.model import Lock, LockedBase, LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.resolver import Resolver, ResolveRequest
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.lock.uv import UvResolver
from prefect_environments.core.site import Site

logger = logging.getLogger(__name__)


async def resolve(
    site: Site,
    definition: EnvironmentDefinition,
    *,
    upgrade: bool,
    age: AgeLimit | None = None,
    settled: tuple[LockedPackage, ...] = (),
) -> Lock:
    """See `steps.resolve`."""
    asked = await effective(site, definition)
    wanted = asked.definition
    _check_conda(wanted)
    limit = _Limit(age, settled)
    async with open_base(site, wanted, lock=asked.base) as base:
        if wanted.user_managed:
            return as_it_is(wanted, base.locked)
        facts = await _target(site, base, Platform.parse(wanted.platform))
        previous = _held(asked, None if upgrade else await _previous_lock(site, definition.name))
        afresh = upgrade and asked.base is None  # what is extended holds: only what is added is resolved afresh
        plan = await _interpreter(site, asked, base, facts, previous, limit=limit, upgrade=afresh)
        check_python(wanted.requires_python, plan.target, f"the environment {wanted.name!r}")
        if wanted.compile_bytecode:
            await asyncio.to_thread(find_interpreter, plan.target.python)  # an error now, not after the work
        lock = await _pip(site, replace(plan, holds=asked.base), base.locked, previous, limit=limit, upgrade=afresh)
        _check_holds(definition, asked.base, lock)
        logger.info(
            "resolved %d requirements to %d packages%s",
            len(wanted.requirements) + len(wanted.conda_dependencies),
            len(lock.packages) + len(lock.conda),
            f", {len(lock.conda)} of them conda's" if lock.conda else "",
        )
        return replace(lock, bytecode=lock.target.python) if wanted.compile_bytecode else lock


def _check_conda(definition: EnvironmentDefinition) -> None:
    """Raise `SpecificationError` for specs and channels that conda would not read, before any network."""
    if not definition.conda_dependencies:
        return
    from prefect_environments.core.lock import conda  # noqa: PLC0415  # rattler: only where conda is asked for

    for spec in definition.conda_dependencies:
        conda.normalise_spec(spec)
    for channel in definition.conda_channels:
        conda.check_channel(channel)


def as_it_is(definition: EnvironmentDefinition, base: LockedBase) -> Lock:
    """The lock of a user-managed image: nothing is installed. Where its Python is, is the version's to tell."""
    target = Target("", "", "", "", Platform.parse(definition.platform))
    return Lock(base, target, (), managed=False)


@dataclass(frozen=True, slots=True)
class _Limit:
    """How old packages must be, and which of them stay whatever their age."""

    age: AgeLimit | None
    settled: tuple[LockedPackage, ...]

    @property
    def moment(self) -> str | None:
        return str(self.age) if self.age else None

    @property
    def allow_undated(self) -> bool:
        return self.age is not None and self.age.allow_undated


@dataclass(frozen=True, slots=True)
class _Plan:
    """What pip's part starts from: the interpreter, conda's packages with it, and what is asked of pip."""

    definition: EnvironmentDefinition
    target: Target
    requirements: tuple[str, ...]
    conda: tuple[LockedCondaPackage, ...] = ()
    holds: Lock | None = None
    """The lock that is extended: its wheels stay, also where conda would bring the same versions."""


async def _target(site: Site, base: BaseImage, platform: Platform) -> Target:
    site.progress.step("inspect")
    found = await site.catalog.find_base(base.locked.digest)
    if found is None or found.platform != platform:
        found = await inspect_base(base, platform, site.scratch)
        await site.catalog.keep_base(base.locked.digest, found)
    told = f"Python {found.python}" if found.python else "no Python"
    logger.info("base image %s: %s, %s %s", base.locked.name, told, found.libc, found.libc_version)
    return found


async def _previous_lock(site: Site, name: str) -> Lock | None:
    newest = await site.workspace.versions.newest(name)
    if newest is None or not newest.lock_digest:
        return None
    try:
        return await attachments.read_lock(site.repository(name), newest.lock_digest)
    except NotFound:
        logger.warning("the lock of %s version %d is gone; resolving afresh", name, newest.version)
        return None


def _held(asked: Effective, previous: Lock | None) -> Lock | None:
    """The lock to prefer: what is extended, and for all else the newest version's."""
    if asked.base is None or previous is None:
        return asked.base or previous
    names, conda_names = {p.name for p in asked.base.packages}, {p.name for p in asked.base.conda}
    return replace(
        asked.base,
        packages=(*asked.base.packages, *(p for p in previous.packages if p.name not in names)),
        conda=(*asked.base.conda, *(p for p in previous.conda if p.name not in conda_names)),
    )


def _check_holds(definition: EnvironmentDefinition, base: Lock | None, lock: Lock) -> None:
    """Raise `ResolveError` where a package of the environment that is extended is not in the lock as it was."""
    if base is None:
        return
    there = {p.identity() for p in lock.packages} | {p.identity() for p in lock.conda}
    moved = [p.filename for p in base.packages if p.identity() not in there]
    moved += [p.filename for p in base.conda if p.identity() not in there]
    if moved:
        raise ResolveError(
            f"{definition.name!r} extends {definition.extends}, and what that has does not move, but these files are "
            f"no longer offered, or something else takes their place: {', '.join(moved[:10])}. "
            "Drop the addition that needs another one, or define the environment anew from the base's requirements"
        )


async def _interpreter(
    site: Site, asked: Effective, base: BaseImage, facts: Target, held: Lock | None, *, limit: _Limit, upgrade: bool
) -> _Plan:
    """Whose Python it is: the base's where conda is asked for nothing that it has not, else conda's."""
    wanted = asked.definition
    if not wanted.conda_dependencies:
        check_interpreter(base, facts)
        return _Plan(wanted, facts, wanted.requirements)
    from prefect_environments.core.lock import conda  # noqa: PLC0415  # rattler: only where conda is asked for

    plain = conda.plain_python(wanted.conda_dependencies)
    inside = facts.interpreter.startswith(f"{recipe.PREFIX}/")
    if plain is not None and facts.python and not inside and conda.satisfies_python(plain.python, facts.python):
        logger.info("the base image's Python %s is what conda is asked for, and serves", facts.python)
        return _Plan(wanted, facts, (*wanted.requirements, *plain.pip))
    if not wanted.conda_channels:
        has = f"Python {facts.python}" if facts.python else "no Python"
        raise DefinitionError(
            f"the environment {wanted.name!r} needs packages of conda ({', '.join(wanted.conda_dependencies)}; the "
            f"base image has {has}), but names no channel: add one, such as conda-forge, to the channels"
        )
    packages = await _solve(site, asked, base, facts, held, limit=limit, upgrade=upgrade)
    python = conda.python_version(packages)
    logger.info("conda brings Python %s", python)
    target = replace(facts, python=python, interpreter=recipe.executable())
    return _Plan(wanted, target, wanted.requirements, packages)


async def _solve(
    site: Site, asked: Effective, base: BaseImage, facts: Target, held: Lock | None, *, limit: _Limit, upgrade: bool
) -> tuple[LockedCondaPackage, ...]:
    from prefect_environments.core.lock import conda  # noqa: PLC0415  # rattler: only where conda is asked for

    site.progress.step("resolve")
    wanted = asked.definition
    pins = asked.base.conda if asked.base else ()
    specs = (*wanted.conda_dependencies, *(f'{p.name}[version="=={p.version}",build="{p.build}"]' for p in pins))
    if not conda.names_python(specs):  # an environment has a Python: of the base's minor, where it has one
        specs = (*specs, f"python={facts.python_minor}.*" if facts.python else "python")
    request = conda.CondaRequest(
        specs=specs,
        channels=wanted.conda_channels,
        platform=facts.platform,
        libc=facts.libc,
        libc_version=facts.libc_version,
        cuda=".".join(base.config.environment.get("CUDA_VERSION", "").split(".")[:2]) or None,
        preferences=held.conda if held and not upgrade else (),
        upgrade=upgrade,
        exclude_newer=limit.moment,
        allow_undated=limit.allow_undated,
        credentials=site.index_credentials,
    )
    return await conda.CondaResolver(cache=site.cache / "conda").resolve(request)


async def _pip(site: Site, plan: _Plan, base: LockedBase, held: Lock | None, *, limit: _Limit, upgrade: bool) -> Lock:
    """What pip installs, for the plan's interpreter. Versions that conda brings are kept where that is possible."""
    if plan.conda and not plan.requirements:
        return Lock(base, plan.target, (), conda=plan.conda)
    site.progress.step("resolve")
    uv = UvResolver(wheel_store=site.wheel_store, scratch=site.cache / "resolve")
    resolver: Resolver = PrivateWheelResolver(uv, site.wheel_store, site.cache / "private-wheels")
    request = replace(
        _request(site, plan, base),
        preferences=held,
        upgrade=upgrade,
        exclude_newer=limit.moment,
        allow_undated=limit.allow_undated,
        settled=limit.settled,
    )
    kept = _kept(plan.conda)
    try:
        lock = await resolver.resolve(replace(request, constraints=(*request.constraints, *kept)))
    except ResolveError:
        if not kept:
            raise
        lock = await resolver.resolve(request)
        logger.warning("the pip requirements don't fit the versions that conda brings: some are replaced by pip's")
    brought, stay = set(kept), directly_named(plan.requirements)
    stay |= {package.name for package in plan.holds.packages} if plan.holds else set()
    own = tuple(p for p in lock.packages if p.name in stay or f"{p.name}=={p.version}" not in brought)
    requested = (*plan.definition.conda_dependencies, *lock.requested)
    return replace(lock, packages=own, conda=plan.conda, requested=requested)


def _kept(packages: tuple[LockedCondaPackage, ...]) -> tuple[str, ...]:
    """The Python packages that conda brings, as constraints."""
    if not packages:
        return ()
    from prefect_environments.core.lock import conda  # noqa: PLC0415  # rattler: only where conda is asked for

    return conda.pip_constraints(packages)


def _request(site: Site, plan: _Plan, base: LockedBase) -> ResolveRequest:
    definition = plan.definition
    return ResolveRequest(
        packages=plan.requirements,
        target=plan.target,
        base=base,
        constraints=definition.constraints,
        index_url=definition.index_url or site.workspace.index_url,
        extra_index_urls=definition.extra_index_urls,
        find_links=definition.find_links,
        no_index=definition.no_index,
        pre=definition.pre,
        require_hashes=definition.require_hashes,
        only_binary=definition.only_binary,
        allow_source_builds=definition.allow_source_builds or site.workspace.allow_source_builds,
        with_pip="pip" not in {package.name for package in plan.conda},
        pylock=definition.pylock,
        index_credentials=site.index_credentials,
    )
