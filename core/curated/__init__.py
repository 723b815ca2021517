"""Curated environments: definitions that come with this package, under names that nobody else can register.

They are read-only. A workspace shows each as the version that building it would register; it has an image once somebody
has built it. To change one, clone it: `Environment.get(workspace, "AzureML-sklearn").clone("mine")`.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import NameNotAllowed, VersionNotFound
from prefect_environments.core.names import is_curated
from prefect_environments.core.versions import VersionRecord


@cache
def environments() -> Mapping[str, EnvironmentDefinition]:
    """The definitions by name. None names a base image: the workspace's default one counts."""
    import tomllib  # noqa: PLC0415 - only for those who ask

    files = (file for file in resources.files(__name__).iterdir() if file.name.endswith(".toml"))
    found = [EnvironmentDefinition(**tomllib.loads(file.read_text("utf-8"))) for file in files]
    return MappingProxyType({definition.name: definition for definition in sorted(found, key=lambda d: d.name)})


def get(name: str) -> EnvironmentDefinition:
    """One definition; `VersionNotFound` names those that there are."""
    if name not in environments():
        raise VersionNotFound(f"there is no curated environment {name!r:.150}; there are {', '.join(environments())}")
    return environments()[name]


def check_unchanged(definition: EnvironmentDefinition) -> None:
    """Raise `NameNotAllowed` for a definition that has a curated environment's name and another content."""
    if is_curated(definition.name) and definition != get(definition.name):
        raise NameNotAllowed(
            f"{definition.name!r} is a curated environment and cannot be changed: give the definition a name of its "
            f'own, as in clone("my-{definition.name.removeprefix("AzureML-")}")'
        )


def unbuilt_version(
    definition: EnvironmentDefinition, newest: VersionRecord | None, workspace: str, definition_hash: str
) -> VersionRecord | None:
    """The version that building a curated definition would register; `None` if `newest` is a version of it already.

    Its `reference` is empty: there is no image yet.
    """
    if newest is not None and newest.definition_hash == definition_hash:
        return None
    return VersionRecord(
        workspace=workspace,
        name=definition.name,
        version=newest.version + 1 if newest else 1,
        reference="",
        definition_hash=definition_hash,
        definition=definition.model_dump(mode="json"),
        platform=definition.platform,
        environment_variables=dict(definition.environment_variables),
        description=definition.description,
        tags=dict(definition.tags),
    )
