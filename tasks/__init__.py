"""Prefect tasks: one a verb, for people who compose their own flows."""

from prefect_environments.tasks.check import check_workspace
from prefect_environments.tasks.compare import compare_versions
from prefect_environments.tasks.fleet import check_images
from prefect_environments.tasks.jobs import run_job
from prefect_environments.tasks.labels import remove_label, set_label
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
from prefect_environments.tasks.verify import verify_environment

__all__ = [
    "build_image",
    "check_images",
    "check_workspace",
    "compare_versions",
    "find_image",
    "get_environment",
    "hash_environment",
    "inspect_image",
    "list_environments",
    "push_image",
    "register_environment",
    "remove_label",
    "resolve_environment",
    "run_job",
    "set_label",
    "verify_environment",
]
