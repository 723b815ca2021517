"""Prefect flows: what users deploy, schedule and trigger in the UI.

Names are handed on lazily: the container of a job loads its own flow alone, and has nothing that builds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_environments.flows.build import build_environment
    from prefect_environments.flows.build_many import build_environments
    from prefect_environments.flows.check import check_workspace
    from prefect_environments.flows.promote import promote_environment
    from prefect_environments.flows.prune import prune_environments
    from prefect_environments.flows.refresh import refresh_environments
    from prefect_environments.flows.train import run_training_job

_WHERE = {
    "build_environment": "build",
    "build_environments": "build_many",
    "check_workspace": "check",
    "promote_environment": "promote",
    "prune_environments": "prune",
    "refresh_environments": "refresh",
    "run_training_job": "train",
}

__all__ = [
    "build_environment",
    "build_environments",
    "check_workspace",
    "promote_environment",
    "prune_environments",
    "refresh_environments",
    "run_training_job",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
