"""The environment variables of a job: the environment's, those of the job's config over them, secrets resolved."""

from collections.abc import Mapping

from prefect_environments.core.build.docker.client_config import hide
from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.references import resolve_variables
from prefect_environments.core.secrets import SecretReference, SecretStore

DEFAULTS = {"PYTHONUNBUFFERED": "1"}
"""Without it, what a script prints would come in pieces of some kilobytes, or at its end."""


async def resolved(below: Mapping[str, str], over: Mapping[str, str], secrets: SecretStore) -> dict[str, str]:
    """Values for the job's process alone; what was a secret reference is masked in logs from now on.

    Raises `DefinitionError` for a name that none can have, `SecretError` for a reference that cannot be resolved.
    """
    wanted = {**DEFAULTS, **below, **over}
    for name in wanted:
        if not name or "=" in name or "\0" in name:  # of an environment; those of a job are checked with its config
            raise DefinitionError(f"{name!r:.100} is no name of an environment variable; correct the environment")
    found: dict[str, str] = await resolve_variables(secrets, wanted)
    for name, value in found.items():
        if "\0" in value:
            raise SecretError(f"the value of the environment variable {name} holds a NUL character; correct it")
    hide({}, {name: found[name] for name, value in wanted.items() if SecretReference.is_reference(value)})
    return found
