"""Which workspace a command works in: a folder, without Prefect, or a block of the Prefect API."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

from prefect_environments.core import loop
from prefect_environments.core.errors import DefinitionError, VersionError
from prefect_environments.core.folder_shelf import FolderShelf
from prefect_environments.core.registry_settings import LAYOUT_PREFIX, RegistrySettings
from prefect_environments.core.secrets import SecretReference, SecretStore
from prefect_environments.core.versions import FolderVersionStore, VersionStore
from prefect_environments.core.workspace import Workspace

_IMAGES, _VERSIONS = "images", "versions"
_WITHOUT_SERVER = "On the command line a folder needs neither server nor block: --workspace ./environments"


class _Secrets:
    """Secret blocks of the Prefect API, which is asked only if something refers to one."""

    async def get(self, reference: SecretReference) -> str:
        from prefect_environments.blocks.secrets import PrefectSecretStore

        return await PrefectSecretStore().get(reference)


@dataclass(frozen=True, slots=True)
class FolderWorkspace:
    """What `Workspace.local(folder)` is, without Prefect."""

    folder: Path
    name: str = "local"
    repository_prefix: str = "environments"
    default_base_image: str | None = None
    allow_source_builds: bool = False
    index_url: str | None = None
    index_credentials: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def registry_settings(self) -> RegistrySettings:
        return RegistrySettings(f"{LAYOUT_PREFIX}{self.folder / _IMAGES}")

    @property
    def versions(self) -> VersionStore:
        return FolderVersionStore(self.folder / _VERSIONS, self.name)

    def neighbours(self) -> list[VersionStore]:
        """Versions of other names in the folder: their images are in the same place."""
        names = sorted(_names_in(self.folder) - {self.name})
        return [FolderVersionStore(self.folder / _VERSIONS, name) for name in names]

    @property
    def secrets(self) -> SecretStore:
        return _Secrets()


def find_workspace(named: str = "", *, create: bool = False, quiet: bool = False) -> Workspace:
    """The workspace in a folder, or the block of that name; without one as `Workspace.from_config` chooses.

    A folder with Azure ML's `config.json` in it means the block that this file names. Raises `DefinitionError` where
    there is none; `create` allows for a folder that is yet to be made.
    """
    if not _is_folder(named):
        return _read_block(named, quiet=quiet)
    folder = Path(named).expanduser().absolute()
    if not create and not (folder / _VERSIONS).is_dir():
        raise DefinitionError(
            f"the folder {named!r:.300} is no workspace: nothing was registered in it yet. Correct --workspace, or "
            f"register something: prefect-environments build requirements.txt --workspace {named:.300}"
        )
    return FolderWorkspace(folder, _name_in(folder))


def _read_block(named: str, *, quiet: bool) -> Workspace:
    from prefect.settings import get_current_settings

    from prefect_environments.blocks import Workspace as Block  # Prefect's client and all

    settings = get_current_settings()
    if not quiet and settings.api.url is None and settings.server.ephemeral.enabled:  # which takes a while
        click.echo("PREFECT_API_URL is not set: starting a temporary Prefect server …", err=True)
    try:
        return Block.from_config(named or None)
    except (DefinitionError, VersionError) as error:
        raise type(error)(f"{error}. {_WITHOUT_SERVER}") from None


def _is_folder(named: str) -> bool:
    """Whether a folder is meant: by the rule for paths of `Workspace.from_config`, and not one with a config file."""
    if not named or not any(sign in named for sign in "/.~\\"):
        return False
    place = Path(named).expanduser()
    if place.is_file() or named.endswith(".json"):
        return False
    return not any(_names_workspace(place / path) for path in (".azureml/config.json", "config.json"))


def _names_workspace(path: Path) -> bool:
    with suppress(OSError, ValueError, RecursionError):
        data = json.loads(path.read_text("utf-8-sig"))
        return isinstance(data, dict) and "workspace_name" in data
    return False


def _name_in(folder: Path) -> str:
    """The name under which somebody registered in the folder: `Workspace.local(folder, name=…)` may give another."""
    with suppress(VersionError):  # an altered record: whoever reads it says so
        return min(_names_in(folder), default="local", key=lambda name: (name != "local", name))
    return "local"


def _names_in(folder: Path) -> set[str]:
    books = loop.run(FolderShelf(folder / _VERSIONS).read_books())
    return {book.load(book.numbers[-1]).workspace for book in books}
