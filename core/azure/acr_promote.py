"""A version's image into a Container Registry that Azure copies itself, where it can."""

import logging

from prefect_environments.core.azure.acr_import import import_image, managed
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.errors import DefinitionError, RegistryError, SecretError
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.stores import tool_login
from prefect_environments.core.workspace import Workspace

logger = logging.getLogger(__name__)

_ID = "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.ContainerRegistry/registries/{}"


async def import_version(source: Workspace, target: Workspace, reference: str, path: str) -> bool:
    """Have Azure copy `reference`, by digest, to the repository `path` of the target's registry, without a byte here.

    `False`, with a log line that says why, where it cannot or does not: then the image is to be sent.
    """
    settings, giver = target.registry_settings, source.registry_settings
    try:
        if giver.folder is not None or giver.plain_http:
            raise DefinitionError(f"Azure cannot reach {giver.address}")
        managed(settings, "an import")
        registry = _resource_id(giver)
        login = None if registry else await _login(source, giver)
        resolved = await settings.resolved(target.secrets)
        await import_image(resolved, reference, path, login=login, source_registry_id=registry)
    except DefinitionError as error:
        logger.info("%s is sent from here: %s", reference, error)
        return False
    except (RegistryError, SecretError) as error:
        logger.warning("Azure did not import %s, so that it is sent from here: %s", reference, error)
        return False
    logger.info("Azure imported %s", reference)
    return True


def _resource_id(giver: RegistrySettings) -> str | None:
    """The Azure resource id of the source, where its block says where it is managed and names no user of its own."""
    azure = giver.azure
    if azure is None or giver.username is not None or not (azure.subscription_id and azure.resource_group):
        return None
    return _ID.format(azure.subscription_id, azure.resource_group, azure.name)


async def _login(source: Workspace, giver: RegistrySettings) -> Credentials | None:
    found = await tool_login(giver, source.secrets)
    return Credentials(*found) if found else None
