"""ML environment definitions become ready, pinned, registered images. See README.md.

Names are handed on lazily, so that importing the package (every Prefect worker does) stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_environments.blocks import ContainerRegistry as ContainerRegistry
    from prefect_environments.blocks import Keyvault as Keyvault
    from prefect_environments.blocks import Workspace as Workspace
    from prefect_environments.core.conda_dependencies import CondaDependencies as CondaDependencies
    from prefect_environments.core.definition import EnvironmentDefinition as EnvironmentDefinition
    from prefect_environments.core.environment import Environment as Environment
    from prefect_environments.core.jobs.config import ScriptRunConfig as ScriptRunConfig
    from prefect_environments.core.jobs.distribution import MpiConfiguration as MpiConfiguration
    from prefect_environments.core.jobs.distribution import PyTorchConfiguration as PyTorchConfiguration
    from prefect_environments.core.jobs.inside.run import Run as Run
    from prefect_environments.core.jobs.launcher import JobResult as JobResult
    from prefect_environments.core.ready import ReadyImage as ReadyImage
    from prefect_environments.core.sections import DockerBuildContext as DockerBuildContext

_WHERE = {
    "CondaDependencies": "prefect_environments.core.conda_dependencies",
    "ContainerRegistry": "prefect_environments.blocks",
    "DockerBuildContext": "prefect_environments.core.sections",
    "Environment": "prefect_environments.core.environment",
    "EnvironmentDefinition": "prefect_environments.core.definition",
    "JobResult": "prefect_environments.core.jobs.launcher",
    "Keyvault": "prefect_environments.blocks",
    "MpiConfiguration": "prefect_environments.core.jobs.distribution",
    "PyTorchConfiguration": "prefect_environments.core.jobs.distribution",
    "ReadyImage": "prefect_environments.core.ready",
    "Run": "prefect_environments.core.jobs.inside.run",
    "ScriptRunConfig": "prefect_environments.core.jobs.config",
    "Workspace": "prefect_environments.blocks",
}

__all__ = [
    "CondaDependencies",
    "ContainerRegistry",
    "DockerBuildContext",
    "Environment",
    "EnvironmentDefinition",
    "JobResult",
    "Keyvault",
    "MpiConfiguration",
    "PyTorchConfiguration",
    "ReadyImage",
    "Run",
    "ScriptRunConfig",
    "Workspace",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
