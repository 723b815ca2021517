"""What `Environment` does with a workspace: build, register, look up. Synchronous, also where a loop runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from prefect_environments.core import loop, steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import DefinitionError, NotFound, VersionNotFound
from prefect_environments.core.names import version_number
from prefect_environments.core.progress import Progress, current
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import VersionRecord
from prefect_environments.core.workspace import Workspace

_SHOWN = ("reference", "name", "version", "digest", "image_hash", "platform", "python_path", "packages", "size")


def register(workspace: Workspace, definition: EnvironmentDefinition) -> VersionRecord:
    """The version of a definition, whose image is found or built."""

    return loop.run(registered(workspace, definition, current()))


async def registered(workspace: Workspace, definition: EnvironmentDefinition, progress: Progress) -> VersionRecord:
    """`register` for who runs in a loop."""
    async with open_site(workspace, progress=progress) as site:
        ready = await steps.find_registered(site, definition)
        if ready is not None:
            return await workspace.versions.get(ready.name, ready.version)
        lock = await steps.resolve(site, definition)
        built = await steps.build(site, definition, lock)
        return await steps.register(site, definition, built)


def get(workspace: Workspace, name: str, version: int | str | None, label: str | None = None) -> VersionRecord:
    """A registered version, the newest without number or label. Raises `VersionNotFound` that names what there is."""
    number = None if version is None else _number(version)
    return loop.run(steps.find_version(workspace, name, number, label=label or ""))


def newest(workspace: Workspace) -> list[VersionRecord]:
    """The newest version of every environment, by name."""
    return loop.run(steps.newest_versions(workspace))


def find(workspace: Workspace, definition: EnvironmentDefinition, version: int | None) -> VersionRecord:
    """The version of this number, or the newest one that has this definition."""
    if version is not None:
        return get(workspace, definition.name, version)
    for record in reversed(loop.run(workspace.versions.versions(definition.name))):
        if EnvironmentDefinition(**record.definition) == definition:
            return record
    raise VersionNotFound(
        f"the environment {definition.name!r} is not registered in the workspace {workspace.name!r} as it is; "
        "register(workspace) builds and registers it"
    )


def details(workspace: Workspace, record: VersionRecord) -> ReadyImage:
    """The image of a version; `NotFound` if the registry no longer has it."""

    if not record.reference:
        raise NotFound(f"{record.name} is curated, and not built in this workspace yet; register(workspace) builds it")

    async def work() -> bool:
        async with open_site(workspace) as site:
            return await steps.has_image(site, record)

    if not loop.run(work()):
        raise NotFound(
            f"{record.reference}, the image of {record.name} version {record.version}, is gone from the registry; "
            "register(workspace) builds it again"
        )
    return ReadyImage(**{field: getattr(record, field) for field in _SHOWN}, reused=True)


def add_wheel(workspace: Workspace, wheel: Path, *, exist_ok: bool) -> str:
    """The requirement that names a wheel, which is then in the registry."""
    from prefect_environments.core.build import private_wheels  # noqa: PLC0415  # only where it is needed

    async def work() -> str:
        async with open_site(workspace) as site:
            return await private_wheels.add(site.wheel_store, wheel, exist_ok=exist_ok)

    return loop.run(work())


class Environments(Mapping[str, Environment]):
    """`workspace.environments`: the newest version of each environment by its name, read when it is asked for."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._found: dict[str, Environment] | None = None

    def _all(self) -> dict[str, Environment]:
        if self._found is None:
            self._found = Environment.list(self._workspace)
        return self._found

    def __getitem__(self, name: str) -> Environment:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"Environments({', '.join(self)})"


def _number(version: int | str) -> int:
    number = None if isinstance(version, bool) else version_number(str(version).strip())
    if number is None:
        raise DefinitionError(f"a version is a number from 1, got {version!r:.80}; Environment.list shows the newest")
    return number
