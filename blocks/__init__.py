"""Configuration kept in Prefect: registries, credentials, Key Vaults, workspaces and registered versions."""

from prefect_environments.blocks.azure import AzureCredentials
from prefect_environments.blocks.azure_registry import AzureContainerRegistry
from prefect_environments.blocks.credentials import PackageIndexCredentials
from prefect_environments.blocks.history import EnvironmentHistory
from prefect_environments.blocks.keyvault import Keyvault, KeyvaultSecret
from prefect_environments.blocks.registry import ContainerRegistry
from prefect_environments.blocks.version import EnvironmentVersion
from prefect_environments.blocks.workspace import Workspace

__all__ = [
    "AzureContainerRegistry",
    "AzureCredentials",
    "ContainerRegistry",
    "EnvironmentHistory",
    "EnvironmentVersion",
    "Keyvault",
    "KeyvaultSecret",
    "PackageIndexCredentials",
    "Workspace",
]
