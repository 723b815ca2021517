"""What may be promoted: everything about a version and two workspaces that is to be refused before any work."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from prefect_environments.core import attachments, steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, NameNotAllowed, NotFound, SecretError, VersionNotFound
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.names import is_curated
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.secrets import SecretReference
from prefect_environments.core.site import Site
from prefect_environments.core.version_record import VersionRecord
from prefect_environments.core.workspace import KnowsVaults, Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that may be promoted, and between which repositories."""

    source: Site
    target: Site
    record: VersionRecord
    definition: EnvironmentDefinition
    """As it will be registered, with the name that it has in the target."""
    definition_hash: str
    newest: VersionRecord | None
    """The newest version that the target has of this environment."""
    lock: Lock | None = None
    notes: tuple[str, ...] = ()

    @property
    def origin(self) -> Repository:
        """Where the source keeps the image, and what is attached to it."""
        return self.source.repository(self.record.name)

    @property
    def goal(self) -> Repository:
        """Where the target will have them."""
        return self.target.repository(self.definition.name)

    @property
    def stays(self) -> bool:
        """Whether the image is somebody's own, which neither workspace has a copy of."""
        return self.definition.stays_where_it_is


async def find(source: Site, target: Site, name: str, version: int | str, goal_name: str) -> Candidate:
    """The version, if it may be promoted; see `promote.promote` for what is raised. One request to each registry."""
    number, label = _read(version)
    record = await steps.find_version(source.workspace, name, number, label=label)
    if not record.reference:
        raise NotFound(
            f"{name} version {record.version} is curated, and nobody has built it in {source.workspace.name!r}; build "
            "it there first"
        )
    if goal_name != name and is_curated(goal_name):
        raise NameNotAllowed(f"{goal_name!r} is the name of a curated environment; choose another target_name")
    stored = EnvironmentDefinition(**record.definition)
    definition = stored if goal_name == name else stored.model_copy(update={"name": goal_name})
    _check_other(source, target, name, goal_name)
    _check_references(target.workspace, record, definition)
    await _check_stores(source, target, record)
    newest = await target.workspace.versions.newest(goal_name)  # raises where another name owns the repository
    await steps.mark_used(source.workspace, record)  # before the image is looked for: see `core.prune`
    lock = await _check_image(source, target, record, definition)
    kept, notes = await _base(source.workspace, target.workspace, record, definition)
    for note in notes:
        logger.warning("%s", note)
    return Candidate(source, target, record, definition, kept, newest, lock, notes)


def _read(version: int | str) -> tuple[int | None, str]:
    """`(number, label)` of `7`, `"7"`, `"staging"`; neither of them for the newest version."""
    text = str(version).strip()
    if text in ("", "0"):
        return None, ""
    return (int(text), "") if text.isascii() and text.isdigit() else (None, text)


def _check_other(source: Site, target: Site, name: str, goal_name: str) -> None:
    here, there = source.repository(name), target.repository(goal_name)
    if (source.workspace.name, here.name) == (target.workspace.name, there.name):
        raise DefinitionError(
            f"{name!r} would be promoted from the workspace {source.workspace.name!r} to itself; choose another "
            "target, or another target_name. set_label makes an older version production again"
        )


async def _check_stores(source: Site, target: Site, record: VersionRecord) -> None:
    """Refuse one workspace with two places for images: its versions would not all be where it looks for them."""
    here, there = ((one.store.repository(one.workspace.repository_prefix).name) for one in (source, target))
    if source.workspace.name != target.workspace.name or here == there:
        return
    try:
        known = await target.workspace.versions.get(record.name, record.version)
    except (VersionNotFound, NameNotAllowed):
        return
    if known.nonce == record.nonce:
        raise DefinitionError(
            f"source and target are one workspace, {record.workspace!r}, with images at {here} and at {there}: they "
            "have the same versions. Give the target's workspace a name of its own"
        )


def _check_references(workspace: Workspace, record: VersionRecord, definition: EnvironmentDefinition) -> None:
    """Refuse references to Key Vaults that the target does not know, all of them at once."""
    problems = []
    for field, text in _secrets(record, definition):
        reference = SecretReference.parse(text, field)
        if reference.form == "block":
            continue
        from prefect_environments.core.azure.store import KeyVaultSecretStore  # noqa: PLC0415  # only if needed

        vaults = workspace.vaults if isinstance(workspace, KnowsVaults) else ()
        known = KeyVaultSecretStore(vaults, allow_unknown=bool(getattr(workspace, "allow_unknown_vaults", False)))
        try:
            known.find(reference)
        except SecretError as error:
            problems.append(f"{field}: {error}")
    if problems:
        raise SecretError(
            f"{record.name} version {record.version} cannot be promoted to the workspace {workspace.name!r}, which "
            f"does not know the Key Vaults that it refers to. {'; '.join(problems)}"
        )


def _secrets(record: VersionRecord, definition: EnvironmentDefinition) -> Iterator[tuple[str, str]]:
    """References by the field that they stand in; variables are those of the version, inherited ones too."""
    fields = {f"environment_variables.{name}": text for name, text in record.environment_variables.items()}
    fields |= {name: getattr(definition, name) for name in ("base_image_username", "base_image_password")}
    fields |= {f"build_secrets.{name}": text for name, text in definition.build_secrets.items()}
    yield from ((field, text) for field, text in fields.items() if SecretReference.is_reference(text))


async def _check_image(
    source: Site, target: Site, record: VersionRecord, definition: EnvironmentDefinition
) -> Lock | None:
    """The image in the source, or where it stays, as it is reached from the target; and the lock, which is given."""
    origin = source.repository(record.name)
    if definition.stays_where_it_is:
        async with steps.open_image(target, definition, record.reference) as repository:
            found = await repository.find_manifest(record.digest)
    else:
        found = await origin.find_manifest(record.digest)
    if found is None:
        raise NotFound(
            f"{record.reference}, the image of {record.name} version {record.version}, is gone from the registry; "
            f"build the environment again in the workspace {record.workspace!r}, and promote that"
        )
    try:
        return await attachments.read_lock(origin, record.lock_digest) if record.lock_digest else None
    except NotFound:
        raise NotFound(
            f"the lock of {record.name} version {record.version} ({record.lock_digest}) is gone from {origin.name}; "
            "build the environment again there, which attaches it anew"
        ) from None


async def _base(
    source: Workspace, target: Workspace, record: VersionRecord, definition: EnvironmentDefinition
) -> tuple[str, tuple[str, ...]]:
    """The definition hash to register, and what to say, of an environment that extends another.

    Its image has all that it needs. But in the target `name:version` may be another environment or none: then a build
    of the same definition there asks for something else, and must not find this image by its definition.
    """
    if not definition.extends:
        return record.definition_hash, ()
    name, version = definition.base_version()
    here, there = await _image_hash(source, name, version), await _image_hash(target, name, version)
    if there and there == here:
        return record.definition_hash, ()
    has = f"has as another image than {source.name}" if there else "does not have"
    return "", (
        f"{definition.name} extends {definition.extends}, which {target.name} {has}: the image is whole by itself and "
        "can be used, but its definition cannot be built or refreshed there as it is",
    )


async def _image_hash(workspace: Workspace, name: str, version: int) -> str:
    try:
        return (await workspace.versions.get(name, version)).image_hash
    except VersionNotFound:
        return ""
