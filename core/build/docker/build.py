"""A Dockerfile and its context become an image in a Docker engine: by BuildKit where that can be, else by the classic
builder. A build that fails or is cancelled leaves nothing behind."""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefect_environments.core import files
from prefect_environments.core.build.docker import buildkit, classic
from prefect_environments.core.build.docker.classic_log import ClassicReader
from prefect_environments.core.build.docker.client_config import Logins, client_folder, hide, user_config
from prefect_environments.core.build.docker.engine import (
    Engine,
    EngineImage,
    find_engine,
    new_build_id,
    remove_abandoned,
    remove_images,
    remove_labelled,
)
from prefect_environments.core.build.docker.inputs import BuildInputs, pack_context, stage_context
from prefect_environments.core.build.docker.log import BuildLog
from prefect_environments.core.concurrency import settled
from prefect_environments.core.distribution.credentials import Credentials, DockerConfig
from prefect_environments.core.distribution.reference import Reference, check_host
from prefect_environments.core.errors import BuildError, DefinitionError, EngineUnavailable, SecretError
from prefect_environments.core.progress import SILENT, Progress

Builder = Literal["auto", "buildkit", "classic"]
NETWORK_VARIABLE = "PREFECT_ENVIRONMENTS_BUILD_NETWORK"

_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_CLEANUP = 60.0  # seconds for the engine to take away what a failed build left

logger = logging.getLogger(__name__)


async def build_image(
    inputs: BuildInputs,
    *,
    secrets: Mapping[str, str],
    logins: Logins,
    scratch: Path,
    progress: Progress = SILENT,
    builder: Builder = "auto",
    network: str | None = None,
    pull: bool = True,
    engine: Engine | None = None,
) -> EngineImage:
    """Build `inputs` in the Docker engine; the image there has no tag. Push it, then take it away with `remove_image`.

    `secrets` are values by the id that the Dockerfile uses, `logins` are for private images that it starts from.
    `network` is the engine's network mode for the steps (default: `PREFECT_ENVIRONMENTS_BUILD_NETWORK`, else the
    engine's own). `pull` asks the registry for each tag, so that what is built on is not what the engine once got.
    Raises `EngineUnavailable` where no engine, or none that can do this, is there, and `BuildError` with the failed
    step and its last lines.
    """
    network = network or os.environ.get(NETWORK_VARIABLE) or None
    _check(inputs, secrets, logins, builder, network)
    hide(logins, secrets)
    progress.step("docker build")
    place: Engine = engine if engine is not None else await asyncio.to_thread(find_engine)
    await _tidy(lambda: remove_abandoned(place))
    task = _Build(place, inputs, new_build_id(), network, pull, BuildLog(progress), scratch)
    with files.storage("preparing a Docker build", scratch):
        files.sweep(scratch)
        image = None
        if builder != "classic":
            image = await task.by_buildkit(secrets, logins)
        if image is None and (builder == "buildkit" or secrets):
            wanted = "build secrets need BuildKit" if secrets else "BuildKit was asked for"
            raise EngineUnavailable(f"{wanted}, but {_NO_BUILDKIT}")
        if image is None:
            image = await task.by_classic(logins, asked=builder == "classic")
    await _check_platform(image)
    return image


_NO_BUILDKIT = (
    "no docker command on PATH can build with it: each was asked by `docker buildx version` and `docker build --help`. "
    "Install Docker's command with the buildx plugin where this runs"
)


@dataclass(frozen=True, slots=True)
class _Build:
    """One build, whose failure in any way leaves nothing in the engine."""

    engine: Engine
    inputs: BuildInputs
    id: str
    network: str | None
    pull: bool
    log: BuildLog
    scratch: Path

    async def by_buildkit(self, secrets: Mapping[str, str], logins: Logins) -> EngineImage | None:
        """`None` where no docker command can."""
        with client_folder(logins, secrets, self.scratch, os.environ) as folder:
            command = await buildkit.find_command(buildkit.client_environment(self.engine, folder.path))
            if command is None:
                return None
            logger.info("building with BuildKit (%s)", " ".join(command.words[:2]))
            try:
                found = await buildkit.build(
                    command,
                    self.inputs,
                    await settled(asyncio.to_thread(stage_context, self.inputs, folder.path), _CLEANUP),
                    folder,
                    build_id=self.id,
                    network=self.network,
                    pull=self.pull,
                    log=self.log,
                )
            except BaseException:
                await _tidy(lambda: remove_labelled(self.engine, self.id))
                raise
        return EngineImage(found, self.engine, self.inputs.platform, self.id)

    async def by_classic(self, logins: Logins, *, asked: bool) -> EngineImage:
        """By the engine itself; what the steps made comes with the image."""
        logger.info("building with the engine's classic builder%s", "" if asked else f", because {_NO_BUILDKIT}")
        reader = ClassicReader(self.log)
        credentials = await _credentials(self.inputs, logins)
        try:
            with files.temporary_file(self.scratch) as context:
                await settled(asyncio.to_thread(pack_context, self.inputs, context), _CLEANUP)
                context.seek(0)
                found = await classic.build(
                    self.engine,
                    self.inputs,
                    context,
                    reader,
                    logins=credentials,
                    proxies=classic.proxies(user_config(os.environ), self.engine.address),
                    build_id=self.id,
                    network=self.network,
                    pull=self.pull,
                )
            made = await asyncio.to_thread(classic.leftovers, self.engine, reader)
        except BaseException:
            await _tidy(lambda: remove_images(self.engine, classic.leftovers(self.engine, reader)))
            raise
        others = tuple(image for image in reversed(made) if image != found)
        return EngineImage(found, self.engine, self.inputs.platform, self.id, others)


def _check(inputs: BuildInputs, secrets: Mapping[str, str], logins: Logins, builder: str, network: str | None) -> None:
    """Refuse what cannot be built before anything is done."""
    inputs.images()
    if builder not in ("auto", "buildkit", "classic"):
        raise DefinitionError(f"the builder is auto, buildkit or classic, not {builder!r}")
    if set(secrets) != set(inputs.secrets):
        missing = ", ".join(sorted(set(inputs.secrets) ^ set(secrets)))
        raise SecretError(f"the build's secrets and the values given for them differ in {missing}; give each a value")
    if secrets and builder == "classic":
        raise EngineUnavailable("build secrets need BuildKit, which the classic builder is not; build with it instead")
    if network and not _NETWORK.fullmatch(network):
        raise DefinitionError(
            f"the build's network is a mode or name such as host, none or default, not {network!r:.100}"
        )
    for host in logins:
        check_host(host)


async def _check_platform(image: EngineImage) -> None:
    def ask() -> tuple[str, str]:
        with image.engine.client() as api:
            found = api.inspect_image(image.id)
            return str(found.get("Os")), str(found.get("Architecture"))

    try:
        found = await asyncio.to_thread(ask)
        if found != (image.platform.os, image.platform.architecture):
            raise BuildError(
                f"the build was for {image.platform}, but gave an image for {'/'.join(found)}: a FROM names an image "
                "of another platform; remove its --platform, or choose an image that has this one"
            )
    except BaseException:
        await _tidy(lambda: remove_images(image.engine, [image.id, *reversed(image.intermediates)]))
        raise


async def _credentials(inputs: BuildInputs, logins: Logins) -> dict[str, Credentials]:
    """The logins that the images of a Dockerfile need: those given, else what the user's configuration knows."""
    found = {check_host(host): Credentials(*login) for host, login in logins.items()}
    config = DockerConfig()
    for host in {Reference.parse(image).host for image in inputs.images()} - found.keys():
        if known := await config.get(host):
            found[host] = known
    return found


async def _tidy(work: Callable[[], None]) -> None:
    """Take away what is left, in any case to its end; a failure of that is told, and hides no other one."""

    def guarded() -> None:
        try:
            work()
        except BuildError as error:
            logger.warning("what a build left in the Docker engine could not be removed: %s", error)

    await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(guarded))], timeout=_CLEANUP)
