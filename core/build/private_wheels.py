"""Wheels of one's own, kept in the workspace's registry and named in requirements by what they hold.

`NAME @ wheel://sha256/HEX/FILE` says which wheel it is, and not where: definitions that name one stay valid when the
registry moves, and their hash changes only with the wheel. Resolvers get a local file for it, and the lock names it
by its sha256, so that a build on another machine takes it out of the registry.
"""

import asyncio
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from prefect_environments.core import files
from prefect_environments.core.errors import AlreadyExists, PackageError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.lock.resolver import Resolver, ResolveRequest
from prefect_environments.core.lock.source_builds import WheelStore
from prefect_environments.core.oci import digest as digests

SCHEME = "wheel://sha256/"

_URL = re.compile(rf"{SCHEME}([0-9a-f]{{64}})/([^\s/]+\.whl)(?=[\s;]|$)")


async def add(store: WheelStore, wheel: Path, *, exist_ok: bool) -> str:
    """Keep a wheel; gives the requirement that names it.

    Raises `PackageError` for what is no wheel, `AlreadyExists` for one that is there unless `exist_ok`, and the
    registry's errors.
    """
    name = _checked_name(wheel)
    sha256 = digests.hex_of(await asyncio.to_thread(digests.of_file, wheel))
    key = f"wheel:{sha256}:{wheel.name}"
    if await store.find(key) is not None and not exist_ok:
        raise AlreadyExists(f"the registry has {wheel.name} with the sha256 {sha256} already; pass exist_ok=True")
    await store.keep(key, wheel)
    return f"{name} @ {SCHEME}{sha256}/{quote(wheel.name)}"


class PrivateWheelResolver:
    """A `Resolver` over another one, which gets a file below `folder` for every private wheel."""

    def __init__(self, inner: Resolver, store: WheelStore, folder: Path) -> None:
        self._inner = inner
        self._store = store
        self._folder = folder

    async def resolve(self, request: ResolveRequest) -> Lock:
        """The lock, as any machine can use it: its private wheels are the registry's. Raises `PackageError` for one
        that the registry does not have, and the inner resolver's errors."""
        given = (*request.packages, *request.constraints)
        private = {found[1] for line in given if (found := _URL.search(line))}
        if not private:
            return await self._inner.resolve(request)
        local = [await _local(line, self._store, self._folder) for line in given]
        count = len(request.packages)
        lock = await self._inner.resolve(
            replace(request, packages=tuple(local[:count]), constraints=tuple(local[count:]))
        )
        packages = tuple(replace(p, url=None) if p.sha256 in private else p for p in lock.packages)
        return replace(lock, packages=packages, requested=request.packages)


async def _local(line: str, store: WheelStore, folder: Path) -> str:
    found = _URL.search(line)
    if found is None:
        return line
    sha256, name = found[1], unquote(found[2])
    path = folder / sha256 / name
    if not await asyncio.to_thread(_is_sound, path, sha256):
        source = await store.fetch(sha256)
        if source is None:
            raise PackageError(
                f"the registry has no wheel {name} with the sha256 {sha256}; add it again by "
                "Environment.add_private_pip_wheel(workspace, FILE)"
            )
        await asyncio.to_thread(_copy, source, path)
    return f"{line[: found.start()]}{path.absolute().as_uri()}{line[found.end() :]}"


def _copy(source: Path, path: Path) -> None:
    with files.storage("keeping a private wheel", path), files.temporary_file(path.parent) as file:
        with source.open("rb") as given:
            shutil.copyfileobj(given, file)
        file.flush()
        files.publish(Path(file.name), path)


def _is_sound(path: Path, sha256: str) -> bool:
    return path.is_file() and digests.of_file(path) == f"sha256:{sha256}"


def _checked_name(wheel: Path) -> str:
    try:
        name = str(parse_wheel_filename(wheel.name)[0])
    except InvalidWheelFilename:
        raise PackageError(
            f"{wheel.name!r:.200} is not named like a wheel: name-version-python-abi-platform.whl, as it was built"
        ) from None
    if not wheel.is_file():
        raise PackageError(f"there is no file {wheel}; correct the path")
    if not zipfile.is_zipfile(wheel):
        raise PackageError(f"{wheel} is not a wheel: it is no zip archive; build it again")
    return name
