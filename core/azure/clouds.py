"""The clouds of Azure: where each signs in, and how its vaults and registries are called."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from prefect_environments.core.errors import DefinitionError

CloudName = Literal["public", "us-government", "china"]
_SUFFIX = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.-]*[0-9A-Za-z])?(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Cloud:
    """The endpoints of one cloud. A leading dot of a suffix, as `az cloud show` tells it, is dropped.

    Raises `DefinitionError` for what is no https URL, or no suffix of a host.
    """

    authority_host: str
    """Where Entra ID gives tokens, as an https URL."""
    key_vault_suffix: str
    registry_suffix: str
    registry_audience: str
    """What tokens for container registries are for."""
    resource_manager: str
    """Azure Resource Manager, as an https URL."""

    def __post_init__(self) -> None:
        for name in ("authority_host", "registry_audience", "resource_manager"):
            parts = urlsplit(getattr(self, name))
            if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc:
                raise DefinitionError(f"{name} is an https URL, such as https://login.example.com")
        for name in ("key_vault_suffix", "registry_suffix"):
            suffix = getattr(self, name).removeprefix(".")
            if not _SUFFIX.fullmatch(suffix):
                raise DefinitionError(f"{name} is the end of a host name, such as vault.example.com")
            object.__setattr__(self, name, suffix)


CLOUDS: Mapping[CloudName, Cloud] = {
    "public": Cloud(
        authority_host="https://login.microsoftonline.com",
        key_vault_suffix="vault.azure.net",
        registry_suffix="azurecr.io",
        registry_audience="https://containerregistry.azure.net",
        resource_manager="https://management.azure.com",
    ),
    "us-government": Cloud(
        authority_host="https://login.microsoftonline.us",
        key_vault_suffix="vault.usgovcloudapi.net",
        registry_suffix="azurecr.us",
        registry_audience="https://containerregistry.azure.net",
        resource_manager="https://management.usgovcloudapi.net",
    ),
    "china": Cloud(
        authority_host="https://login.chinacloudapi.cn",
        key_vault_suffix="vault.azure.cn",
        registry_suffix="azurecr.cn",
        registry_audience="https://containerregistry.azure.net",
        resource_manager="https://management.chinacloudapi.cn",
    ),
}
"""By the names that users choose from; each endpoint can be replaced."""

PUBLIC = CLOUDS["public"]
