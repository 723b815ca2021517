"""Prefect tasks: one a verb, for people who compose their own flows."""

from prefect_environments.tasks.check import check_workspace
from prefect_environments.tasks.jobs import run_job
from prefect_environments.tasks.verbs import (
    build_image,
    find_image,
    get_environment,
    hash_environment,
    inspect_image,
    list_environments,
    push_image,
    register_environment,
    resolve_environment,
)

__all__ = [
    "build_image",
    "check_workspace",
    "find_image",
    "get_environment",
    "hash_environment",
    "inspect_image",
    "list_environments",
    "push_image",
    "register_environment",
    "resolve_environment",
    "run_job",
]
