"""The environment variables of a job: the environment's, those of the job's config over them, secrets resolved."""

from collections.abc import Mapping

from prefect_environments.core.build.docker.client_config import hide
from prefect_environments.core.secrets import SecretReference, SecretStore
from prefect_environments.core.secrets import resolve as resolve_secret

DEFAULTS = {"PYTHONUNBUFFERED": "1"}
"""Without it, what a script prints would come in pieces of some kilobytes, or at its end."""


async def resolved(below: Mapping[str, str], over: Mapping[str, str], secrets: SecretStore) -> dict[str, str]:
    """Values for the job's process alone; what was a secret reference is masked in logs from now on.

    Raises `SecretError` for a reference that cannot be resolved.
    """
    wanted = {**DEFAULTS, **below, **over}
    found = {
        name: str(await resolve_secret(value, secrets, f"environment_variables.{name}"))
        for name, value in wanted.items()
    }
    hide({}, {name: found[name] for name, value in wanted.items() if SecretReference.is_reference(value)})
    return found
