"""Configuration kept in Prefect: registries, credentials, workspaces and registered versions."""

from prefect_environments.blocks.credentials import PackageIndexCredentials
from prefect_environments.blocks.registry import ContainerRegistry
from prefect_environments.blocks.version import EnvironmentVersion
from prefect_environments.blocks.workspace import Workspace

__all__ = ["ContainerRegistry", "EnvironmentVersion", "PackageIndexCredentials", "Workspace"]
