"""The clouds of Azure: where each signs in, and how its vaults and registries are called."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CloudName = Literal["public", "us-government", "china"]


@dataclass(frozen=True, slots=True)
class Cloud:
    """The endpoints of one cloud. Suffixes have no leading dot."""

    authority_host: str
    """Where Entra ID gives tokens, as an https URL."""
    key_vault_suffix: str
    registry_suffix: str
    registry_audience: str
    """What tokens for container registries are for."""
    resource_manager: str
    """Azure Resource Manager, as an https URL."""


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
