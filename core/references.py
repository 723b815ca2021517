"""Secret references resolved at the last moment, in the process that needs the values.

Errors begin with the field that a reference stands in and with the reference itself, never with a value.
"""

from collections.abc import Mapping
from typing import Any

from prefect_environments.core.errors import SecretError
from prefect_environments.core.secrets import SecretStore, resolve
from prefect_environments.core.workspace import HasFeeds, Workspace


async def resolve_variables(
    secrets: SecretStore, variables: Mapping[str, Any], field: str = "environment_variables"
) -> dict[str, Any]:
    """`variables` with their values: environment variables, or job variables, in which mappings and lists nest.

    What was read is masked in logs and errors from now on. Raises `SecretError` that names every reference that could
    not be resolved, each by its field, as in `job_variables.env.TOKEN`.
    """
    failures: list[str] = []
    found = await _resolved(secrets, variables, field, failures)
    if failures:
        raise SecretError("\n".join(failures))
    return dict(found)


async def _resolved(store: SecretStore, value: Any, field: str, failures: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: await _resolved(store, item, f"{field}.{key}", failures) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [await _resolved(store, item, f"{field}.{number}", failures) for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    try:
        # str: what is handed to another process is pickled or written as JSON, which a `SecretValue` refuses
        return str(await resolve(value, store, field))
    except SecretError as error:
        failures.append(str(error))
        return None


async def feed_logins(workspace: Workspace) -> dict[str, tuple[str, str]]:
    """User and password of the workspace's private indexes and channels by URL, references resolved.

    Raises `SecretError`, `DefinitionError` for a feed that is gone, and `VersionError` without the Prefect API.
    """
    known = dict(workspace.index_credentials)
    if isinstance(workspace, HasFeeds):
        known = {**await workspace.feed_credentials(), **known}
    logins = {}
    for url, (user, password) in known.items():
        name = await resolve(user, workspace.secrets, f"username of the package index {url}")
        word = await resolve(password, workspace.secrets, f"password of the package index {url}")
        logins[url] = str(name), str(word)
    return logins
