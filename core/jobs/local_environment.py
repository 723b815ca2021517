"""Environments on this machine with a lock's versions: for jobs where there is no Docker engine.

They are kept by what they are made of, are made once, and share their files by hard links. A folder without its mark
is one that somebody died making, and one whose packages are others now was changed by a job that installed some: each
is made anew, unless a job still runs in it.
"""

import asyncio
import fcntl
import json
import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from prefect_environments.core import canonical, files, hashes
from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.concurrency import gather
from prefect_environments.core.errors import JobError, ResolveError
from prefect_environments.core.lock import process
from prefect_environments.core.lock.model import Lock, LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.target import ARCHITECTURES
from prefect_environments.core.lock.uv_environment import plain
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.site import Site

_READY = ".prefect-environments.json"
_RECIPE = 2
_MOST = 100
_SECONDS = 1800.0
_LOOK = 0.1  # seconds between two looks whether another process is done

logger = logging.getLogger(__name__)


async def ensure_environment(site: Site, lock: Lock) -> Path:
    """See `environment`, for who does not say when it is used no more."""
    async with environment(site, lock) as python:
        return python


@asynccontextmanager
async def environment(site: Site, lock: Lock) -> AsyncIterator[Path]:
    """The interpreter of an environment with exactly the lock's packages, found or made; it stays for the block.

    Needs a Python of the lock's minor version on this machine, and never fetches one; conda's locks bring their own.
    Raises `JobError` where this machine cannot have the environment, and `PackageError` for what cannot be fetched.
    """
    _check_machine(lock)
    place = site.cache / "environments"
    with files.storage("making a local environment", place):
        place.mkdir(parents=True, exist_ok=True)  # uv works in the cache already when it looks for a Python
    interpreter = "" if lock.conda else await _find_python(site, lock)
    key = digests.hex_of(canonical.digest([_RECIPE, hashes.image_hash(lock), interpreter]))[:32]
    with ExitStack() as stack:
        with files.storage("making a local environment", place):
            async with _locked(place / f"{key}.lock"):
                folder = await _free(site, lock, interpreter, place / key, stack)
        yield folder / "bin" / "python"


async def _free(site: Site, lock: Lock, interpreter: str, first: Path, stack: ExitStack) -> Path:
    """A whole environment, marked as in use until `stack` ends."""
    for number in range(_MOST):
        folder = first if number == 0 else first.with_name(f"{first.name}-{number}")
        used = stack.enter_context(folder.with_name(f"{folder.name}.used").open("ab"))
        if not _is_whole(folder):
            try:
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # a job runs in what it changed
            await _make(site, lock, interpreter, folder)
        fcntl.flock(used, fcntl.LOCK_SH)
        return folder
    raise JobError(f"{_MOST} jobs run in local environments that they changed, at {first}; wait for their ends")


def _is_whole(folder: Path) -> bool:
    try:
        known = json.loads((folder / _READY).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(known, dict) and known.get("content") == _content(folder)


def _content(folder: Path) -> str:
    """What is installed, by the names that installers write: modules, descriptions of packages, scripts."""
    places = [folder / "bin", folder / "conda-meta", *sorted(folder.glob("lib/python*/site-packages"))]
    names = [
        [place.name, *sorted({path.name for path in place.iterdir()} - {"__pycache__"})]
        for place in places
        if place.is_dir()
    ]
    return canonical.digest(names)


def _check_machine(lock: Lock) -> None:
    told = "choose a machine with Docker, where the image itself runs"
    if not lock.managed:
        raise JobError(
            f"the environment is the image {lock.base.name} as it is, and its packages are not known: a local process "
            f"cannot have them; {told}"
        )
    machine = ARCHITECTURES[lock.target.platform.architecture]
    if sys.platform != "linux" or platform.machine() != machine:
        raise JobError(
            f"the environment is for {lock.target.platform}, this machine is {sys.platform} on {platform.machine()}; "
            f"{told}, or build it for this platform"
        )


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """An exclusive lock between processes, waited for in a way that can be cancelled."""
    with path.open("ab") as file:
        waited = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    logger.info("another process is making this environment; waiting for it")
                waited = True
                await asyncio.sleep(_LOOK)
        yield


async def _find_python(site: Site, lock: Lock) -> str:
    """A Python of the lock's minor version: this process's own, else one that uv finds here."""
    minor = lock.target.python_minor
    own = Path(getattr(sys, "_base_executable", None) or sys.executable)
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == minor and sys.implementation.name == "cpython":
        return f"{own.resolve()} {platform.python_version()}"
    found = await _uv(site, ["python", "find", "--system", "--no-project", "--show-version", minor], may_fail=True)
    place = await _uv(site, ["python", "find", "--system", "--no-project", minor], may_fail=True)
    if not found or not place:
        raise JobError(
            f"the environment needs Python {minor}, which is not on this machine; this is {platform.python_version()}. "
            f"Install Python {minor}, use Docker, or choose a base image with Python {sys.version_info[0]}."
            f"{sys.version_info[1]}"
        )
    return f"{Path(place).resolve()} {found}"


async def _make(site: Site, lock: Lock, interpreter: str, folder: Path) -> None:
    if folder.exists():
        await asyncio.to_thread(shutil.rmtree, folder)
    logger.info("making a local environment of %d packages", len(lock.packages) + len(lock.conda))
    wheel_store = site.wheel_store
    async with WheelCache(site.cache / "wheels", store=wheel_store, credentials=site.index_credentials) as cache:
        conda = await gather(_named(site, cache, package) for package in lock.conda)
        wheels = await gather(_named(site, cache, package) for package in lock.packages)
    if conda:
        await _install_conda(site, lock, conda, folder)
    else:
        await _uv(
            site, ["venv", "--no-project", "--no-config", "--python", interpreter.rpartition(" ")[0], str(folder)]
        )
    if wheels:
        await _install_wheels(site, lock, wheels, folder)
    known = {"image-hash": hashes.image_hash(lock), "python": interpreter, "content": _content(folder)}
    ready = json.dumps(known).encode()
    await asyncio.to_thread(files.write_atomically, folder / _READY, ready, site.scratch)


async def _named(site: Site, cache: WheelCache, package: LockedPackage | LockedCondaPackage) -> Path:
    """The verified archive under its own name, which installers read, and always at one place, by which uv knows it."""
    path = await cache.get(package)
    named = site.cache / "named" / package.sha256 / package.filename
    named.parent.mkdir(parents=True, exist_ok=True)
    if not named.exists():
        with files.temporary_folder(named.parent) as folder:
            (folder / "link").symlink_to(path.absolute())
            (folder / "link").replace(named)
    return named


async def _install_wheels(site: Site, lock: Lock, wheels: list[Path], folder: Path) -> None:
    lines = [
        f"{package.name} @ {wheel.as_uri()} --hash=sha256:{package.sha256}"
        for package, wheel in zip(lock.packages, wheels, strict=True)
    ]
    with files.temporary_folder(site.scratch) as scratch:
        wanted = scratch / "requirements.txt"
        wanted.write_text("\n".join(lines) + "\n", "utf-8")
        options = ["--no-deps", "--no-index", "--offline", "--no-config", "--require-hashes", "--link-mode=hardlink"]
        options += ["--compile-bytecode"] if lock.bytecode else []
        python = ["--python", str(folder / "bin" / "python"), "--break-system-packages"]
        await _uv(site, ["pip", "install", *options, *python, "--requirements", str(wanted)])


async def _install_conda(site: Site, lock: Lock, archives: list[Path], folder: Path) -> None:
    """conda's packages by rattler, as it would install them; their archives are checked first."""
    import rattler  # noqa: PLC0415 - heavy, and for conda environments only
    from rattler.platform.subdir import Subdir  # noqa: PLC0415

    from prefect_environments.core.build.conda.contents import read_contents  # noqa: PLC0415

    minor = lock.target.python_minor
    records = []
    for package, archive in zip(lock.conda, archives, strict=True):
        await asyncio.to_thread(read_contents, package, archive, minor)
        record = await rattler.RepoDataRecord.from_package_archive(archive)
        record.url = archive.as_uri()
        records.append(record)
    subdir = {"amd64": "linux-64", "arm64": "linux-aarch64"}[lock.target.platform.architecture]
    with files.temporary_folder(site.scratch) as scratch:
        try:
            await rattler.install(
                records,
                folder,
                cache_dir=scratch / "cache",
                installed_packages=[],
                platform=Subdir(subdir),
                execute_link_scripts=False,
                show_progress=False,
            )
        except OSError:
            raise
        except Exception as error:  # rattler has an exception class for each of its parts
            raise JobError(f"the local conda environment could not be made: {error}") from error


async def _uv(site: Site, arguments: list[str], *, may_fail: bool = False) -> str:
    from uv import find_uv_bin  # noqa: PLC0415

    env = plain(os.environ) | {"UV_CACHE_DIR": str(site.cache / "uv"), "UV_NO_PROGRESS": "1"}
    try:
        done = await process.run([find_uv_bin(), *arguments], env=env, cwd=site.cache, seconds=_SECONDS)
    except (ResolveError, FileNotFoundError) as error:
        raise JobError(f"uv, which makes local environments, failed: {error}") from error
    if done.status != 0:
        if may_fail:
            return ""
        said = re.sub(r"\s+", " ", done.stderr).strip()
        raise JobError(
            f"the local environment could not be made here (uv {' '.join(arguments[:2])}): {said}. With Docker, the "
            "image itself would run"
        )
    return done.stdout.strip()
