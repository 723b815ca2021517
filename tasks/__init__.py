"""Prefect tasks: one a verb, for people who compose their own flows."""

from prefect_environments.tasks.check import check_workspace
from prefect_environments.tasks.compare import compare_versions
from prefect_environments.tasks.fleet import check_images
from prefect_environments.tasks.jobs import run_job
from prefect_environments.tasks.labels import remove_label, set_label
from prefect_environments.tasks.promote import promote_version
from prefect_environments.tasks.prune import archive_environment, prune_versions, restore_environment
from prefect_environments.tasks.refresh import build_drifted, find_drift
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
    "archive_environment",
    "build_drifted",
    "build_image",
    "check_images",
    "check_workspace",
    "compare_versions",
    "find_drift",
    "find_image",
    "get_environment",
    "hash_environment",
    "inspect_image",
    "list_environments",
    "promote_version",
    "prune_versions",
    "push_image",
    "register_environment",
    "remove_label",
    "resolve_environment",
    "restore_environment",
    "run_job",
    "set_label",
    "verify_environment",
]
