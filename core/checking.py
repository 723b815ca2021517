"""`check`: what of a workspace works, asked of the real thing, and what to do about what does not.

Nothing is stored anywhere: an upload is opened and cancelled, a secret is asked for that nobody has.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from prefect_environments.core.distribution.limits import Limits
from prefect_environments.core.errors import NotFound, PrefectEnvironmentsError, RegistryUnreachable, ResolveError
from prefect_environments.core.findings import Finding
from prefect_environments.core.lock import feeds, urls
from prefect_environments.core.redact import redact
from prefect_environments.core.references import feed_logins
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import default_cache
from prefect_environments.core.stores import ImageLocation, open_registry, open_store
from prefect_environments.core.workspace import BuildsElsewhere, KnowsVaults, Workspace

if TYPE_CHECKING:
    from prefect_environments.core.azure.credentials import Identity
    from prefect_environments.core.azure.keyvault import VaultSettings
    from prefect_environments.core.build.acr_tasks.settings import TasksSettings
    from prefect_environments.core.distribution.registry import Registry

_LIMIT = 90.0  # seconds for one check
_PATIENCE = Limits(connect=5, stall=20, answer=30, attempts=2)
_REPOSITORY = "check"
"""The environment whose repository is looked at; it need not be there."""
_FEED_LIMIT = aiohttp.ClientTimeout(total=30, connect=10)
_PYTHON = "3.12.0"  # for the index, any that wheels of pip are for


@dataclass(frozen=True, slots=True)
class _Check:
    """`work` gives what there is, or raises; then `advice` says what to do."""

    name: str
    work: Callable[[], Awaitable[str]]
    advice: str
    required: bool = True


async def check(workspace: Workspace) -> list[Finding]:
    """Look at everything that a build in `workspace` may need. Raises nothing for what does not work."""
    first, others = await asyncio.gather(
        _registry_findings(workspace), asyncio.gather(*(_finding(one) for one in _checks(workspace)))
    )
    return [*first, *others]


async def _finding(one: _Check) -> Finding:
    try:
        async with asyncio.timeout(_LIMIT):
            found = await one.work()
    except TimeoutError:
        return Finding(one.name, False, f"no answer within {_LIMIT:.0f} seconds", one.advice, one.required)
    except PrefectEnvironmentsError as error:
        return Finding(one.name, False, str(error), one.advice, one.required)
    except Exception as error:  # a check says what it finds, also what nobody thought of
        return Finding(one.name, False, redact(f"{type(error).__name__}: {error}"), one.advice, one.required)
    return Finding(one.name, True, redact(found), required=one.required)


def _checks(workspace: Workspace) -> Iterator[_Check]:
    """All but the registry's, which build on each other."""
    vaults = list(workspace.vaults) if isinstance(workspace, KnowsVaults) else []
    yield from _sign_ins(workspace.registry_settings, vaults)
    for vault in vaults:
        yield _Check(
            f"Key Vault {vault.host}",
            lambda vault=vault: _read_vault(vault),  # type: ignore[misc]
            f"Give the role Key Vault Secrets User on {vault.host} to {vault.identity}",
        )
    yield _Check("versions", lambda: _versions(workspace), "Check PREFECT_API_URL and PREFECT_API_KEY of this process")
    if base := workspace.default_base_image:
        yield _Check(
            "default base image",
            lambda: _base_image(workspace, base),
            "Correct the workspace's default_base_image, or sign in to its registry with `docker login`",
        )
    yield from _feed_checks(workspace)
    yield _builder(workspace)


def _sign_ins(settings: RegistrySettings, vaults: "list[VaultSettings]") -> Iterator[_Check]:
    """One for each identity, by the token that it first needs."""
    wanted: dict[Identity, str] = {}
    if settings.azure is not None and settings.azure.identity is not None:
        wanted[settings.azure.identity] = settings.azure.identity.cloud.registry_audience
    for vault in vaults:
        wanted.setdefault(vault.identity, f"https://{vault.identity.cloud.key_vault_suffix}")
    for identity, resource in wanted.items():
        yield _Check(
            "Azure credentials",
            lambda identity=identity, resource=resource: asyncio.to_thread(_sign_in, identity, resource),  # type: ignore[misc]
            "Correct the AzureCredentials block of the workspace, registry or vault; "
            "on Azure prefer kind managed-identity",
        )


def _sign_in(identity: "Identity", resource: str) -> str:
    from azure.core.exceptions import AzureError  # noqa: PLC0415

    from prefect_environments.core.azure.credentials import token_credential  # noqa: PLC0415
    from prefect_environments.core.azure.failures import sign_in_failure  # noqa: PLC0415

    try:
        token = token_credential(identity).get_token(f"{resource}/.default")
    except (AzureError, OSError, ValueError) as error:
        said = sign_in_failure(error, identity)
    else:
        ends = datetime.fromtimestamp(token.expires_on, UTC)
        return f"{identity} signed in; its token is valid until {ends:%H:%M} UTC"
    raise PrefectEnvironmentsError(said)


async def _read_vault(vault: "VaultSettings") -> str:
    from prefect_environments.core.azure.keyvault import open_vault  # noqa: PLC0415

    await asyncio.to_thread(open_vault(vault).check)
    return f"{vault.identity} may read secrets"


async def _versions(workspace: Workspace) -> str:
    names = await workspace.versions.names()
    return f"{len(names)} environments are registered in workspace {workspace.name!r}"


async def _registry_findings(workspace: Workspace) -> list[Finding]:
    """Reached, read from, written to: after the first failure the rest is not asked."""
    settings = replace(workspace.registry_settings, limits=_PATIENCE)
    if settings.folder is not None:
        folder = settings.folder
        advice = "Choose another folder, or give this process the right to write there"
        return [await _finding(_Check("registry", lambda: asyncio.to_thread(_writable, folder), advice))]
    try:
        resolved = await settings.resolved(workspace.secrets)
    except PrefectEnvironmentsError as error:
        advice = "Correct the reference in the registry's block, or see the findings about the Key Vault"
        return [Finding("registry", False, str(error), advice)]
    path = f"{workspace.repository_prefix}/{_REPOSITORY}"
    found: list[Finding] = []
    async with open_registry(resolved) as registry:
        for one in _registry_checks(registry, settings, path):
            if found and not found[-1].ok:
                unasked = f"not asked, because this failed: {found[-1].name}"
                found.append(Finding(one.name, False, unasked, f"See {found[-1].name}"))
            else:
                found.append(await _finding(one))
    return found


def _registry_checks(registry: "Registry", settings: RegistrySettings, path: str) -> Iterator[_Check]:
    repository = registry.repository(path)

    async def reach() -> str:
        await registry.ping()
        return f"{settings.address} answers, and takes the sign-in of {_who(settings)}"

    async def pull() -> str:
        await repository.find_manifest(_REPOSITORY)
        return f"{_who(settings)} may pull from {path}"

    async def push() -> str:
        await repository.check_push()
        return f"{_who(settings)} may push to {path}"

    yield _Check("registry", reach, f"Check the address {settings.address}, this network, and the registry's block")
    yield _Check("pull", pull, _role(settings, "AcrPull", "pull from"))
    yield _Check("push", push, _role(settings, "AcrPush", "push to"))


def _who(settings: RegistrySettings) -> str:
    if settings.username is not None:
        return "the user of the registry's block"
    if settings.azure is not None and settings.azure.identity is not None:
        return str(settings.azure.identity)
    return "whoever Docker's settings name, or nobody"


def _role(settings: RegistrySettings, role: str, action: str) -> str:
    if settings.azure is None:
        return f"Give the user the right to {action} repositories below the workspace's prefix, or correct the block"
    if settings.azure.identity is not None and settings.username is None:
        return f"Give the role {role} on the registry {settings.azure.name} to {settings.azure.identity}"
    return f"Let the token's scope map {action} the workspace's repositories, or set credentials with the role {role}"


def _writable(folder: Path) -> str:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise PrefectEnvironmentsError(f"the folder {folder} of the images cannot be written, because of {place}")
    return f"images are kept in the folder {folder}"


async def _base_image(workspace: Workspace, reference: str) -> str:
    location = ImageLocation.parse(reference)
    settings = workspace.registry_settings
    if location.address != settings.address:
        settings = RegistrySettings(location.address)
    store = await open_store(replace(settings, limits=_PATIENCE), workspace.secrets)
    try:
        found = await store.repository(location.path).find_manifest(location.identifier)
    finally:
        await store.close()
    if found is None:
        raise NotFound(f"the image {reference} does not exist")
    return f"{reference} is there ({found.digest[:19]}…)"


def _feed_checks(workspace: Workspace) -> Iterator[_Check]:
    """The index by what each build does, resolving pip; other feeds by one request."""

    async def index() -> str:
        from prefect_environments.core.lock.model import LockedBase  # noqa: PLC0415
        from prefect_environments.core.lock.resolver import ResolveRequest  # noqa: PLC0415
        from prefect_environments.core.lock.target import Target  # noqa: PLC0415
        from prefect_environments.core.lock.uv import UvResolver  # noqa: PLC0415

        target, base = Target(_PYTHON, "/usr/bin/python3", "glibc", "2.36"), LockedBase("check", f"sha256:{'0' * 64}")
        logins = await feed_logins(workspace)
        asked = ResolveRequest(("pip",), target, base, index_url=workspace.index_url, index_credentials=logins)
        lock = await UvResolver(scratch=default_cache() / "resolve", timeout=_LIMIT - 10).resolve(asked)
        (pip,) = (package for package in lock.packages if package.name == "pip")
        return f"{workspace.index_url or 'the default index'} has pip {pip.version}"

    async def further() -> str:
        logins = {url: login for url, login in (await feed_logins(workspace)).items() if url != workspace.index_url}
        async with feeds.open_session(_FEED_LIMIT) as session:
            found = [await _ask_feed(session, url, login) for url, login in logins.items()]
        return "; ".join(found) or "no further feed wants a sign-in"

    named = workspace.index_url is not None
    yield _Check(
        "package index",
        index,
        "Correct the PackageIndexCredentials block of the workspace's index, or this network's proxy; every managed "
        "environment takes pip from the index",
        required=named,
    )
    if getattr(workspace, "feeds", None):
        yield _Check("private feeds", further, "Correct the PackageIndexCredentials blocks that feeds names")


async def _ask_feed(session: aiohttp.ClientSession, url: str, login: tuple[str, str]) -> str:
    try:
        async with feeds.request(session, "GET", url, {url: login}) as answer:
            status = answer.status
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RegistryUnreachable(f"the feed {url} could not be reached: {type(error).__name__}") from None
    if status in (401, 403):
        raise ResolveError(f"the feed {url} refused user and password (HTTP {status})")
    if status >= 500:
        raise RegistryUnreachable(f"the feed {url} answered HTTP {status}")
    if status >= 400:  # some have no page of their own, and yet packages below it
        return f"{url} answers HTTP {status}, so it is not known whether it takes user and password: check its address"
    return f"{url} let us in"


def _builder(workspace: Workspace) -> _Check:
    """What builds Dockerfiles. An engine may be missing where nobody builds any."""
    tasks = workspace.acr_tasks if isinstance(workspace, BuildsElsewhere) else None
    if tasks is not None:
        advice = (
            f"Give the role Container Registry Tasks Contributor (or Contributor) on the registry {tasks.registry} to "
            f"{tasks.identity}"
        )
        return _Check("ACR Tasks", lambda: _tasks(tasks), advice)
    advice = "Only Dockerfiles and build contexts need it: start Docker here, or set the workspace's builder"
    return _Check("Docker engine", lambda: asyncio.to_thread(_engine), advice, required=False)


async def _tasks(settings: "TasksSettings") -> str:
    from prefect_environments.core.build.acr_tasks.client import TasksClient  # noqa: PLC0415

    async with TasksClient(settings) as client:
        await client.source_upload()
    return f"{settings} takes builds of {settings.identity}"


def _engine() -> str:
    from prefect_environments.core.build.docker.engine import find_engine  # noqa: PLC0415

    engine = find_engine()
    with engine.client() as api:
        version = api.version()["Version"]
    return f"Docker {version} at {urls.without_user_info(engine.address)}"
