"""Pure-Python sources into wheels, once: on this machine, only with `allow_source_builds`, kept in a wheel store.

The sources' own code runs here. What it makes is taken only if it is for any platform: what this machine compiles
need not run in the image; that is a Dockerfile's work."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiohttp
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from prefect_environments.core import trees
from prefect_environments.core.errors import NoFittingWheel, PackageError, ResolveError
from prefect_environments.core.files import storage, write_atomically
from prefect_environments.core.lock import feeds, process, urls, wheels
from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.lock.pylock import SourcePackage
from prefect_environments.core.lock.target import Target
from prefect_environments.core.oci import digest as digests

SOURCE_DATE_EPOCH = "315532800"
"""The first moment that a zip archive can tell (1980-01-01): equal sources give equal wheels."""

_OUTPUT_SHOWN = 6_000  # characters of a failed build's output: enough for the traceback
_LINE_SHOWN = 500


class WheelStore(Protocol):
    """Keeps the wheels that were built, by the key of their source."""

    async def find(self, source_key: str) -> LockedPackage | None:
        """The wheel that was built from this source, `None` if there is none. Its `url` is `None`."""

    async def keep(self, source_key: str, wheel: Path) -> LockedPackage:
        """Store a built wheel. If the key has one already, that one stays and is given."""

    async def fetch(self, sha256: str) -> Path | None:
        """A stored wheel as a local file with verified content; `None` if there is none."""


class FolderWheelStore:
    """A wheel store in a local folder: `wheels/<sha256>/<file name>` and `sources/<key>.json`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def find(self, source_key: str) -> LockedPackage | None:
        return await asyncio.to_thread(self._find, source_key)

    async def keep(self, source_key: str, wheel: Path) -> LockedPackage:
        return await asyncio.to_thread(self._keep, source_key, wheel)

    async def fetch(self, sha256: str) -> Path | None:
        return await asyncio.to_thread(self._fetch, digests.hex_of(f"sha256:{sha256}"))

    def _find(self, source_key: str) -> LockedPackage | None:
        try:
            entry = json.loads(self._source(source_key).read_text("utf-8"))
            package = _built(entry["filename"], entry["sha256"], int(entry["size"]))
        except (OSError, ValueError, KeyError, TypeError, PackageError):
            return None  # not there, or half-written by something else: it is built again
        return package if self._fetch(package.sha256) else None

    def _keep(self, source_key: str, wheel: Path) -> LockedPackage:
        if found := self._find(source_key):
            return found
        sha256 = digests.hex_of(digests.of_file(wheel))
        package = _built(wheel.name, sha256, wheel.stat().st_size)
        entry = {"filename": package.filename, "sha256": sha256, "size": package.size}
        scratch = self._path / "tmp"
        with storage("keeping a built wheel", self._path):
            write_atomically(self._path / "wheels" / sha256 / wheel.name, wheel.read_bytes(), scratch)
            write_atomically(self._source(source_key), json.dumps(entry).encode(), scratch)
        return package

    def _fetch(self, sha256: str) -> Path | None:
        try:
            (file,) = (self._path / "wheels" / sha256).iterdir()
            return file if digests.of_file(file) == f"sha256:{sha256}" else None
        except (OSError, ValueError):
            return None

    def _source(self, source_key: str) -> Path:
        return self._path / "sources" / f"{digests.hex_of(digests.of(source_key.encode()))}.json"


def _built(filename: str, sha256: str, size: int) -> LockedPackage:
    try:
        name, version, _, _ = parse_wheel_filename(filename)
    except InvalidWheelFilename as error:
        raise PackageError(f"a build made {filename!r:.200}, which is no wheel file name") from error
    return LockedPackage(str(name), str(version), filename, sha256, size)


def source_key(source: SourcePackage) -> str:
    """What the source is: the sdist's sha256, the git commit, or the content of a local directory.

    Raises `ResolveError` if the directory cannot be read."""
    if source.sha256 is not None:
        return f"sdist:{source.sha256}:{source.subdirectory or ''}"
    if source.commit is not None:
        return f"git:{urls.clean(source.url)}:{source.commit}:{source.subdirectory or ''}"
    folder = _local_path(source.url)
    try:
        return f"directory:{trees.digest(folder)}:{source.subdirectory or ''}"
    except OSError as error:
        raise ResolveError(f"{source.name}: the directory {folder} cannot be read: {error.strerror}") from error


def _local_path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


@dataclass(frozen=True)
class BuildSettings:
    """How sources are built: uv's path, its environment (index settings included), and credentials for sdists."""

    uv: str
    env: Mapping[str, str] = field(repr=False)
    target: Target
    credentials: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    timeout: float = 900
    options: tuple[str, ...] = ()
    """More arguments for `uv build`, such as `--find-links`."""


async def find_or_build(source: SourcePackage, *, store: WheelStore, settings: BuildSettings) -> LockedPackage:
    """The stored wheel of this source; it is built and stored if there is none. Errors are those of `build_wheel`."""
    key = await asyncio.to_thread(source_key, source)
    if found := await store.find(key):
        if wheels.fits(found.filename, settings.target):
            return found
        raise _not_fitting(source, found.filename, settings.target)
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        built = await build_wheel(source, into=Path(folder), settings=settings)
        return await store.keep(key, Path(folder) / built.filename)


async def build_wheel(source: SourcePackage, *, into: Path, settings: BuildSettings) -> LockedPackage:
    """Build the wheel of a source into the folder `into`, under the `filename` of what is returned.

    Raises `ResolveError` with the build's output if it fails, `NoFittingWheel` if the wheel is compiled or is for
    another Python, `PackageError` if an sdist is not what its hash says."""
    with tempfile.TemporaryDirectory(prefix="source-") as folder:
        tree = await _unpacked(source, Path(folder), settings)
        wheel = await _uv_build(source, tree, into, settings)
    sha256 = digests.hex_of(await asyncio.to_thread(digests.of_file, wheel))
    built = _built(wheel.name, sha256, wheel.stat().st_size)
    if built.name != canonicalize_name(source.name):
        raise ResolveError(f"building {source} gave {wheel.name}, a wheel of another package")
    tags = parse_wheel_filename(wheel.name)[3]
    if any(tag.platform != "any" or tag.abi != "none" for tag in tags) or not wheels.fits(wheel.name, settings.target):
        raise _not_fitting(source, wheel.name, settings.target)
    return built


def _not_fitting(source: SourcePackage, filename: str, target: Target) -> NoFittingWheel:
    return NoFittingWheel(
        f"{source} was built from source into {filename}, which is not a pure-Python wheel for the image "
        f"({wheels.describe(target)}); compiled packages need an environment from a Dockerfile"
    )


async def _uv_build(source: SourcePackage, tree: Path, into: Path, settings: BuildSettings) -> Path:
    env = dict(settings.env) | {"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH}
    arguments = [settings.uv, "build", "--wheel", "--no-config", "--no-sources", "--color", "never"]
    arguments += ["--python", await _python(settings), "--out-dir", str(into)]
    arguments += [*settings.options, str(tree)]
    done = await process.run(arguments, env=env, cwd=tree if tree.is_dir() else tree.parent, seconds=settings.timeout)
    built = sorted(into.glob("*.whl"))
    if done.status or len(built) != 1:
        raise ResolveError(
            f"building a wheel of {source} from source failed; its output is below. "
            f"Correct the source, pin a version that has a wheel, or use a Dockerfile\n{_end_of(done)}"
        )
    return built[0]


def _end_of(done: process.Finished) -> str:
    """The end of a failed build's output. Long lines are cut: uv mixes what a build prints and its traceback as they
    come, and one must not push the other out."""
    lines = (done.stdout + done.stderr).strip().splitlines()
    output = "\n".join(line if len(line) <= _LINE_SHOWN else line[:_LINE_SHOWN] + "…" for line in lines)
    return output if len(output) <= _OUTPUT_SHOWN else "…" + output[-_OUTPUT_SHOWN:]


def host_has(target: Target) -> bool:
    """Whether the interpreter that runs this has the target's minor version."""
    return target.python_minor == f"{sys.version_info.major}.{sys.version_info.minor}"


async def _python(settings: BuildSettings) -> str:
    """An interpreter of the target's minor version if there is one here, else the one that runs this."""
    if host_has(settings.target):
        return sys.executable
    arguments = [settings.uv, "python", "find", "--no-project", "--no-config", settings.target.python_minor]
    with tempfile.TemporaryDirectory() as folder:
        done = await process.run(arguments, env=settings.env, cwd=Path(folder), seconds=60)
    return done.stdout.strip() if done.status == 0 else sys.executable


async def _unpacked(source: SourcePackage, folder: Path, settings: BuildSettings) -> Path:
    """A private copy of the source: an sdist's file, or a tree that the build may write into."""
    tree = folder / "tree"
    if source.sha256 is not None:
        file = await _sdist(source, folder, settings)
        if source.subdirectory is None and file.name.endswith(".tar.gz"):
            return file
        await asyncio.to_thread(shutil.unpack_archive, file, tree)
        inner = list(tree.iterdir())
        tree = inner[0] if len(inner) == 1 else tree
    elif source.commit is not None:
        await _checkout(source, tree, settings)
    else:
        ignore = shutil.ignore_patterns(*trees.LEFT_OUT)
        await asyncio.to_thread(shutil.copytree, _local_path(source.url), tree, symlinks=True, ignore=ignore)
    return tree / (source.subdirectory or "")


async def _checkout(source: SourcePackage, tree: Path, settings: BuildSettings) -> None:
    git = shutil.which("git")
    if git is None or source.commit is None:
        raise ResolveError(f"{source} comes from git, which is not installed here; install it")
    env = dict(settings.env) | {"GIT_TERMINAL_PROMPT": "0"}
    # History and tags come along (contents only as needed): many builds take their version from them.
    clone = ["clone", "--quiet", "--no-checkout", "--filter=blob:none", "--", source.url, str(tree)]
    checkout = ["-C", str(tree), "checkout", "--quiet", "--detach", source.commit]
    submodules = ["-C", str(tree), "submodule", "--quiet", "update", "--init", "--recursive"]
    for words in (clone, checkout, submodules):
        done = await process.run([git, *words], env=env, cwd=tree.parent, seconds=settings.timeout)
        if done.status:
            raise ResolveError(
                f"the commit {source.commit} of {source} cannot be read from {urls.clean(source.url)}; check that it "
                f"exists and that git may read it here\n{done.stderr.strip()[-_OUTPUT_SHOWN:]}"
            )


async def _sdist(source: SourcePackage, folder: Path, settings: BuildSettings) -> Path:
    file = folder / (Path(unquote(urlsplit(source.url).path)).name or "source.tar.gz")
    if urlsplit(source.url).scheme == "file":
        try:
            await asyncio.to_thread(shutil.copyfile, _local_path(source.url), file)
        except OSError as error:
            raise ResolveError(f"{source}: {_local_path(source.url)} cannot be read: {error.strerror}") from error
    else:
        await _download(source, file, settings)
    if await asyncio.to_thread(digests.of_file, file) != f"sha256:{source.sha256}":
        raise PackageError(
            f"the source distribution of {source} at {urls.clean(source.url)} does not have the sha256 "
            f"{source.sha256} that its index gives; resolve again with upgrade, or tell the index's owner"
        )
    return file


async def _download(source: SourcePackage, file: Path, settings: BuildSettings) -> None:
    limit = aiohttp.ClientTimeout(total=settings.timeout, sock_read=60)
    try:
        async with (
            feeds.open_session(limit) as session,
            feeds.request(session, "GET", source.url, settings.credentials) as response,
        ):
            response.raise_for_status()
            with file.open("wb") as out:
                async for chunk in response.content.iter_chunked(1 << 16):
                    out.write(chunk)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        reason = f"HTTP {error.status}" if isinstance(error, aiohttp.ClientResponseError) else type(error).__name__
        raise ResolveError(
            f"the source distribution of {source} cannot be downloaded from {urls.clean(source.url)}: {reason}; "
            "check the address, the network and the index's credentials"
        ) from error
