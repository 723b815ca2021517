"""The runtime of job images: Prefect's client and this package in a prefix of their own, with their own venv.

The user's packages never meet them. One set of layers serves all images with the same Python minor release, libc and
architecture: it is resolved and built once, and kept in the registry under its key.
"""

import asyncio
import logging
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from prefect_environments.core import canonical, files
from prefect_environments.core.build import catalog as catalogs
from prefect_environments.core.build import plan, recipe
from prefect_environments.core.build.bytecode import (
    Compiler,
    find_interpreter,
    installed_versions,
)
from prefect_environments.core.build.convert import convert_wheels
from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.build.layer import LayerBlob
from prefect_environments.core.build.skeleton import write_skeleton
from prefect_environments.core.concurrency import gather
from prefect_environments.core.errors import BaseImageError, BuildError, NotFound
from prefect_environments.core.jobs.own_wheel import write_own_wheel
from prefect_environments.core.lock.model import LockedBase, LockedPackage
from prefect_environments.core.lock.resolver import ResolveRequest
from prefect_environments.core.lock.target import Target
from prefect_environments.core.lock.uv import UvResolver
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.append import AddedLayer
from prefect_environments.core.oci.artifact import EMPTY, EMPTY_DESCRIPTOR
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.site import Site

PREFIX = "/opt/runtime"
PYTHON = recipe.executable(PREFIX)
OLDEST = (3, 11)
"""The oldest Python that this package runs on."""
LAYERS_MAX = 8
"""Layers of a runtime at most: the packages', the empty venv, this package."""
VAULT_PACKAGES = ("azure-identity", "azure-keyvault-secrets")
"""What resolves references to Key Vaults, for the jobs that have some."""
RUNTIME_ARTIFACT = "application/vnd.prefect-environments.runtime.v1+json"

_BASELINES = {"glibc": (28, 17), "musl": (2,)}
"""Minor releases of a libc for which packages are chosen: the newest one that the image's is not older than."""

logger = logging.getLogger(__name__)


def check_host(target: Target, image: str) -> None:
    """Raise `BaseImageError` for an image whose Python cannot run the runtime."""
    advice = "run the job on this machine (compute_target local), or in an environment with"
    if not target.python:
        raise BaseImageError(
            f"{image} has no Python 3 on its PATH, and a job in a work pool needs one to talk to Prefect: {advice} one"
        )
    if tuple(map(int, target.python_minor.split("."))) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BaseImageError(
            f"{image} has Python {target.python}, and a job in a work pool needs {oldest} or newer to talk to Prefect: "
            f"{advice} Python {oldest}"
        )
    if target.interpreter.startswith(f"{PREFIX}/"):
        raise BaseImageError(f"{image} has its Python at {target.interpreter}, where the runtime of jobs will be")


async def ensure_runtime(
    site: Site, repository: Repository, target: Target, extra: Sequence[str] = (), *, anew: bool = False
) -> tuple[AddedLayer, ...]:
    """The layers of the runtime for images that offer `target`, in `repository`, where they are made if they are not
    there. `extra` are requirements beside Prefect's client; `anew` builds also what is said to be there.

    Raises `BaseImageError`, `ResolveError`, `NoFittingWheel`, `PackageError`, and the registry's errors.
    """
    maker = _Maker(site, repository, target, anew)
    await repository.write_blob(EMPTY_DESCRIPTOR, EMPTY)
    return (await maker.skeleton(), *await maker.packages(requirements(extra)), await maker.own())


def requirements(extra: Sequence[str] = ()) -> tuple[str, ...]:
    """What a job's image gets beside this package: Prefect's client, of the release that starts the job."""
    return (f"prefect-client=={version('prefect')}", *sorted(extra))


def baseline(target: Target) -> Target:
    """What all images that share a set of layers offer: the first patch of their Python, the older libc."""
    major, minor = map(int, target.libc_version.split(".")[:2])
    fitting = [known for known in _BASELINES.get(target.libc, ()) if known <= minor]
    libc = f"{major}.{fitting[0]}" if fitting else target.libc_version
    return replace(target, python=f"{target.python_minor}.0", interpreter="", libc_version=libc)


@dataclass(frozen=True, slots=True)
class _Maker:
    site: Site
    repository: Repository
    target: Target
    anew: bool

    async def skeleton(self) -> AddedLayer:
        """The empty venv on the image's own interpreter."""
        title = f"empty runtime for Python {self.target.python}"
        key = digests.hex_of(canonical.digest(recipe.skeleton_inputs(self.target, PREFIX)))
        if (found := await self._find(key)) is not None:
            return found[0]
        with files.storage("writing a layer", self.site.scratch), files.temporary_file(self.site.scratch) as file:
            layer = await self._sent(key, write_skeleton(self.target, file, prefix=PREFIX), title, file)
        await self._tag(key, (layer,))
        return layer

    async def packages(self, wanted: tuple[str, ...]) -> tuple[AddedLayer, ...]:
        """The layers of Prefect's client and what it needs."""
        common = baseline(self.target)
        inputs = [common.to_json(), recipe.VERSION, PREFIX, list(wanted)]
        tag = f"runtime-{digests.hex_of(canonical.digest(inputs))}"
        if (found := await self._find(tag)) is not None:
            return found
        self.site.progress.step("runtime")
        logger.info("making the runtime of jobs for Python %s: once for all images with it", common.python_minor)
        locked = await self._resolve(wanted, common)
        bytecode = await asyncio.to_thread(compiling_python, self.target)
        cache = WheelCache(
            self.site.cache / "wheels",
            store=self.site.wheel_store,
            credentials=self.site.index_credentials,
            on_bytes=self.site.progress.downloaded,
        )
        async with cache as wheels:
            with _compiler(bytecode) as compiler:
                groups = plan.group(locked, LAYERS_MAX - 2)
                layers = await gather(self._built(group, wheels, compiler) for group in groups)
        ordered = tuple(sorted(layers, key=lambda layer: (-layer.descriptor.size, layer.title)))
        await self._tag(tag, ordered)
        return ordered

    async def own(self) -> AddedLayer:
        """The layer of this package."""
        with (
            files.storage("packing this package", self.site.scratch),
            files.temporary_folder(self.site.scratch) as folder,
        ):
            package, path = await asyncio.to_thread(write_own_wheel, folder)
            tag = digests.hex_of(canonical.digest(recipe.layer_inputs((package,), self.target, prefix=PREFIX)))
            if (found := await self._find(tag)) is not None:
                return found[0]
            with _compiler(await asyncio.to_thread(compiling_python, self.target)) as compiler:
                layer = await self._layer((package,), [path], compiler)
            await self._tag(tag, (layer,))
            return layer

    async def _resolve(self, wanted: tuple[str, ...], common: Target) -> tuple[LockedPackage, ...]:
        resolver = UvResolver(wheel_store=self.site.wheel_store, scratch=self.site.cache / "resolve")
        request = ResolveRequest(
            packages=wanted,
            target=common,
            base=LockedBase("runtime", digests.of(b"")),
            index_url=self.site.workspace.index_url,
            with_pip=False,
            index_credentials=self.site.index_credentials,
        )
        return (await resolver.resolve(request)).packages

    async def _built(
        self, group: tuple[LockedPackage, ...], wheels: WheelCache, compiler: Compiler | None
    ) -> AddedLayer:
        return await self._layer(group, await gather(wheels.get(package) for package in group), compiler)

    async def _layer(
        self, group: tuple[LockedPackage, ...], paths: list[Path], compiler: Compiler | None
    ) -> AddedLayer:
        inputs = recipe.layer_inputs(group, self.target, compiler.version if compiler else "", PREFIX)
        key, scratch = digests.hex_of(canonical.digest(inputs)), self.site.scratch
        with files.storage("writing a layer", scratch), files.temporary_file(scratch) as file:
            given = list(zip(group, paths, strict=True))
            blob, _, _ = await asyncio.to_thread(
                convert_wheels, given, self.target, file, scratch, compiler=compiler, prefix=PREFIX
            )
            title = ", ".join(f"{package.name} {package.version}" for package in group[:4])
            return await self._sent(key, blob, f"{title}{', …' * (len(group) > 4)}", file)

    async def _sent(self, key: str, blob: LayerBlob, title: str, file: BinaryIO) -> AddedLayer:
        layer = catalogs.annotated(key, blob, title)
        file.flush()
        await self.repository.write_blob(layer.descriptor, Path(file.name), on_bytes=self.site.progress.sent)
        return layer

    async def _find(self, tag: str) -> tuple[AddedLayer, ...] | None:
        if self.anew:
            return None
        try:
            manifest = ImageManifest.from_bytes((await self.repository.get_manifest(tag)).content)
        except NotFound:
            return None
        found = tuple(catalogs.layers_by_key(manifest).values())
        return found if len(found) == len(manifest.layers) and manifest.artifact_type == RUNTIME_ARTIFACT else None

    async def _tag(self, tag: str, layers: tuple[AddedLayer, ...]) -> None:
        listed = tuple(layer.descriptor for layer in layers)
        manifest = ImageManifest(EMPTY_DESCRIPTOR, listed, artifact_type=RUNTIME_ARTIFACT)
        await self.repository.put_manifest(manifest.to_bytes(), types.IMAGE_MANIFEST, tag=tag)


def compiling_python(target: Target) -> str:
    """The full version of the Python that compiles the runtime's bytecode: this one where it is of the image's minor
    release, whose patches all read it, else another of that release on this machine; empty where there is none.

    Without bytecode a job's first line comes some seconds later, which is no reason to refuse it.
    """
    serves = re.compile(rf"{re.escape(target.python_minor)}\.\d+")  # no pre-release, which has bytecode of its own
    ours = platform.python_version()
    if sys.implementation.name == "cpython" and serves.fullmatch(ours):
        return ours
    with suppress(BuildError):
        for found in filter(serves.fullmatch, installed_versions()):
            find_interpreter(found)
            return found
    logger.warning(
        "no CPython %s is on this machine to compile the runtime of jobs, so that they start some seconds later; it "
        "serves all jobs with that Python. Install one (uv python install %s) before their first",
        target.python_minor,
        target.python_minor,
    )
    return ""


def _compiler(version: str) -> AbstractContextManager[Compiler | None]:
    return Compiler(version) if version else nullcontext()
