"""Images from another registry into a Container Registry, copied by Azure itself (Azure Resource Manager)."""

import asyncio
from typing import TYPE_CHECKING, Any

from prefect_environments.core.azure.credentials import token_credential
from prefect_environments.core.azure.failures import is_sign_in, sign_in_failure
from prefect_environments.core.azure.registry import AzureRegistry
from prefect_environments.core.azure.transport import client_options
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.reference import Reference, check_path, check_tag
from prefect_environments.core.errors import DefinitionError, RegistryAuthError, RegistryUnreachable
from prefect_environments.core.registry_settings import RegistrySettings

if TYPE_CHECKING:
    from azure.core.polling import LROPoller
    from azure.mgmt.containerregistry import ContainerRegistryManagementClient

_RETRIES = 4
_POLL = 5  # seconds, where Azure does not say
_GLANCE = 0.2  # seconds


async def import_image(
    settings: RegistrySettings,
    source: str,
    target: str,
    *,
    login: Credentials | None = None,
    source_registry_id: str | None = None,
    overwrite: bool = False,
    time_limit: float = 1800,
) -> None:
    """Copy `source` (an image reference) to `target` (`path` or `path:tag`) of the registry, without a byte here.

    `login` is for the source's registry, or `source_registry_id`, the Azure resource id of a Container Registry that
    the identity may read. Without a tag in `target`, the image keeps the source's; one by digest gets none.
    Raises `DefinitionError` before any network, `RegistryAuthError`, `NotFound`, `RegistryUnreachable` after
    `time_limit` seconds, and `RegistryError`.
    """
    reference, azure = Reference.parse(source), managed(settings, "import_image")
    path, _, tag = target.partition(":")
    tag = check_tag(tag) if tag else reference.tag or ""
    image = f"{reference.path}{'@' if reference.digest else ':'}{reference.identifier}"
    origin: dict[str, Any] = {"sourceImage": image}
    if source_registry_id:
        origin["resourceId"] = source_registry_id
    else:
        origin["registryUri"] = reference.host
        if login is not None:
            origin["credentials"] = {"username": login.username, "password": login.password}
    names = {"targetTags": [f"{check_path(path)}:{tag}"]} if tag else {"untaggedTargetRepositories": [check_path(path)]}
    body = {"source": origin, **names, "mode": "Force" if overwrite else "NoForce"}
    await _import(azure, settings.ca_file, body, f"import of {source} to {target}", time_limit)


def managed(settings: RegistrySettings, what: str) -> AzureRegistry:
    """The Azure side of settings that say where the registry is managed. Raises `DefinitionError` that names what is
    missing."""
    azure = settings.azure
    if azure is None:
        raise DefinitionError(f"{what} is for an Azure Container Registry; {settings.address} is not set up as one")
    missing = [
        name
        for name, value in (
            ("credentials", azure.identity),
            ("subscription_id", azure.subscription_id),
            ("resource_group", azure.resource_group),
        )
        if not value
    ]
    if missing:
        raise DefinitionError(f"{azure.where}: {what} is done by Azure itself; set {', '.join(missing)} for it")
    return azure


def management_client(azure: AzureRegistry, ca_file: str | None) -> "ContainerRegistryManagementClient":
    """The SDK's client of Azure Resource Manager. Raises `DefinitionError` where the extra is not installed."""
    try:
        from azure.mgmt.containerregistry import ContainerRegistryManagementClient  # noqa: PLC0415
    except ImportError:
        raise DefinitionError(
            "azure-mgmt-containerregistry is not installed; pip install 'prefect-environments[azure-tasks]'"
        ) from None
    assert azure.identity is not None and azure.subscription_id is not None  # noqa: S101 - `managed` looked
    manager = azure.identity.cloud.resource_manager.rstrip("/")
    return ContainerRegistryManagementClient(
        token_credential(azure.identity),
        azure.subscription_id,
        manager,
        credential_scopes=[f"{manager}/.default"],
        polling_interval=_POLL,
        **client_options(azure.identity.ca_file or ca_file, _RETRIES),
    )


async def _import(azure: AzureRegistry, ca_file: str | None, body: dict[str, Any], step: str, limit: float) -> None:
    from azure.core.exceptions import AzureError  # noqa: PLC0415

    from prefect_environments.core.azure.acr_failures import explain  # noqa: PLC0415

    assert azure.identity is not None  # noqa: S101 - `managed` looked
    advice = (
        f"{azure.identity} needs the role Container Registry Data Importer and Data Reader (or Contributor) on "
        f"registry {azure.name}"
    )
    client = await asyncio.to_thread(management_client, azure, ca_file)
    try:
        begin = client.registries.begin_import_image
        poller = await asyncio.to_thread(begin, str(azure.resource_group), azure.name, body)
        if not await _ended(poller, limit):
            raise RegistryUnreachable(
                f"{azure.where}: {step} did not end within {limit:g} s; it may go on in the registry"
            )
        poller.result()
    except OSError as error:  # a workload identity's file
        raise RegistryAuthError(f"{azure.where}: {step}: {sign_in_failure(error, azure.identity)}") from None
    except AzureError as error:
        if is_sign_in(error, azure.identity.cloud.resource_manager.partition("://")[2].rstrip("/")):
            raise RegistryAuthError(f"{azure.where}: {step}: {sign_in_failure(error, azure.identity)}") from None
        raise explain(error, azure.where, step, advice) from None
    finally:
        client.close()


async def _ended(poller: "LROPoller[None]", limit: float) -> bool:
    """Whether it came to its end within `limit` seconds. The SDK's own waiting would hold a thread, and with that the
    end of the process, after a cancellation."""
    try:
        async with asyncio.timeout(limit):
            while not poller.done():  # noqa: ASYNC110 - its callback cannot be added once it has ended
                await asyncio.sleep(_GLANCE)
    except TimeoutError:
        return False
    return True
