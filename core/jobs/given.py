"""What users write into a job's config, in the forms that it keeps: forms' empty fields, paths, numbers, and the names
of Azure ML's SDK v1.
"""

import os
from collections.abc import Mapping
from typing import Any

from prefect_environments.core.errors import DefinitionError

_RENAMED = {"distributed_job_config": "distribution", "max_run_duration_seconds": "time_limit_seconds"}
_REFUSED = {
    "docker_runtime_config": "give shm_size, cpus, memory and gpus, and compute_target local:docker or local:process",
    "run_config": "give environment, environment_variables and compute_target themselves",
    "resume_from": "give the folder of an earlier job's outputs as an argument of the script",
}
_PATHS = ("source_directory", "script", "bootstrap", "outputs")
_LISTS = ("arguments", "command")


def fields_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a job's config. Raises `DefinitionError` for one of SDK v1 that has no equal here."""
    found = {name: value for name, value in data.items() if value is not None}  # forms and v1 send null for nothing
    for name, advice in _REFUSED.items():
        if name in found:
            raise DefinitionError(f"{name} of Azure ML's SDK v1 is not taken here: {advice}")
    for old, new in _RENAMED.items():
        if old in found:
            if new in found:
                raise DefinitionError(f"{old} and {new} are given, and are the same: keep {new}")
            found[new] = found.pop(old)
    for name in _PATHS:
        if isinstance(found.get(name), os.PathLike):
            found[name] = os.fspath(found[name])
    for name in _LISTS:
        if isinstance(found.get(name), list | tuple):
            found[name] = tuple(map(_text, found[name]))
    target = found.get("compute_target")
    named = getattr(target, "name", None)
    if not isinstance(target, str) and isinstance(named, str):
        found["compute_target"] = named
    return found


def _text(word: Any) -> Any:
    """A word of a command: scripts give numbers and paths as they are."""
    return str(word) if isinstance(word, int | float) else os.fspath(word) if isinstance(word, os.PathLike) else word
