"""The Docker engine: where it is, what a build left in it, and taking that away again.

All talking to the engine goes through the `docker` package, which is imported by need: it takes a while to load.
"""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_environments.core.build.docker.client_config import user_config
from prefect_environments.core.errors import BuildError, EngineUnavailable
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.lock.urls import without_user_info

LABEL = "com.prefect-environments.build"
"""The label of everything that a build makes in an engine; its value is the build's id."""

_ANSWER = 60.0  # seconds for one answer of the engine
_FIRST_ANSWER = 10.0  # seconds to find out that nobody is there
_ABANDONED = 24 * 3600.0  # seconds after which a build that still has images here is over

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker engine that answered. `environment` is what a docker command needs to reach the same one."""

    address: str
    environment: Mapping[str, str] = field(default_factory=dict)
    tls: Any = field(default=None, repr=False, compare=False)

    @contextmanager
    def client(self, seconds: float | None = _ANSWER) -> Iterator[Any]:
        """A `docker.APIClient`; its errors come out as `EngineUnavailable` and `BuildError`.

        `seconds` is the time for one answer; `None` for calls that work for long before they answer.
        """
        import requests  # noqa: PLC0415
        from docker.errors import APIError, DockerException  # noqa: PLC0415

        try:
            with closing(_connect(self.address, self.tls, _FIRST_ANSWER)) as api:
                api.timeout = seconds
                yield api
        except APIError as error:
            raise BuildError(f"the Docker engine at {self._shown} refused: {error.explanation or error}") from error
        except (DockerException, requests.RequestException) as error:
            raise EngineUnavailable(
                f"the Docker engine at {self._shown} failed: {_reason(error)}. Check that it still runs"
            ) from error

    @property
    def _shown(self) -> str:
        return without_user_info(self.address)


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image in an engine, built here and not yet anywhere else."""

    id: str
    engine: Engine
    platform: Platform
    build: str
    intermediates: tuple[str, ...] = ()
    """Ids of the untagged images that the classic builder made on the way, the oldest first."""


def new_build_id() -> str:
    """`<seconds since the epoch>-<32 hex digits>`: says when a build began, for who finds what it left."""
    return f"{int(time.time())}-{uuid.uuid4().hex}"


def find_engine(environment: Mapping[str, str] | None = None) -> Engine:
    """The engine that the docker command would use: `DOCKER_HOST`, else the current context, else a local socket.

    Raises `EngineUnavailable` with every place that was tried.
    """
    env = os.environ if environment is None else environment
    tried = []
    for engine in _candidates(env):
        try:
            with closing(_connect(engine.address, engine.tls, _FIRST_ANSWER)):
                return engine
        except Exception as error:  # whatever a connection, a certificate or an ssh command raises
            tried.append(f"{without_user_info(engine.address)}: {_reason(error)}")
    raise EngineUnavailable(
        f"no Docker engine answers. Tried {'; '.join(tried)}. Start Docker, set DOCKER_HOST, or choose a context with "
        "`docker context use`; where permission was denied, the user must be in the group of the socket. Managed "
        "Python on a base image needs no engine"
    )


async def remove_image(image: EngineImage) -> None:
    """Take a built image out of its engine, with what the classic builder made on the way; gone already is fine."""
    await asyncio.to_thread(remove_images, image.engine, [image.id, *reversed(image.intermediates)])


def remove_images(engine: Engine, ids: Iterable[str]) -> None:
    """Remove untagged images by id, children before parents. One that is in use stays, and is told."""
    from docker.errors import APIError, ImageNotFound  # noqa: PLC0415

    with engine.client() as api:
        for found in ids:
            try:
                api.remove_image(found)
            except ImageNotFound:
                pass
            except APIError as error:  # in use by a container, or tagged by its user
                logger.info("the image %s stays in the Docker engine: %s", found, error.explanation)


def remove_labelled(engine: Engine, build: str) -> None:
    """Remove the images of one build that carry its label."""
    with engine.client() as api:
        found = [image["Id"] for image in api.images(all=True, filters={"label": f"{LABEL}={build}"})]
    remove_images(engine, found)


def remove_abandoned(engine: Engine, seconds: float = _ABANDONED) -> None:
    """Remove the images of builds that began more than `seconds` ago and never took them away: killed processes."""
    with engine.client() as api:
        images = api.images(all=True, filters={"label": LABEL})
    latest = time.time() - seconds
    remove_images(engine, [image["Id"] for image in images if _began(image) < latest and is_untagged(image)])


def is_untagged(image: Mapping[str, Any]) -> bool:
    """Whether nobody gave an image a name; older engines write that as one."""
    return not [tag for tag in image.get("RepoTags") or [] if tag != "<none>:<none>"]


def _began(image: Mapping[str, Any]) -> float:
    seconds = str((image.get("Labels") or {}).get(LABEL, "")).partition("-")[0]
    return float(seconds) if seconds.isdecimal() else float("inf")  # not one of ours: never abandoned


def _candidates(env: Mapping[str, str]) -> Iterator[Engine]:
    """In the docker command's order; a place that the user chose is the only one."""
    from docker.context import ContextAPI  # noqa: PLC0415
    from docker.utils import kwargs_from_env  # noqa: PLC0415

    if env.get("DOCKER_HOST"):
        settings = kwargs_from_env(environment=dict(env))
        yield Engine(settings["base_url"], {"DOCKER_HOST": env["DOCKER_HOST"]}, settings.get("tls"))
        return
    name = env.get("DOCKER_CONTEXT") or current_context(env)
    if name and name != "default":
        context = ContextAPI.get_context(name)
        if context is None or not context.Host:
            raise EngineUnavailable(
                f"the Docker context {name!r} does not exist here; choose one with `docker context use`, or unset it"
            )
        yield Engine(context.Host, {"DOCKER_CONTEXT": name}, context.TLSConfig)
        return
    sockets = [Path("/var/run/docker.sock"), Path("~/.docker/run/docker.sock").expanduser()]
    if runtime := env.get("XDG_RUNTIME_DIR"):
        sockets.insert(1, Path(runtime, "docker.sock"))  # rootless
    for socket in sockets:
        yield Engine(f"unix://{socket}", {"DOCKER_HOST": f"unix://{socket}"})


def current_context(env: Mapping[str, str]) -> str:
    """The context that the docker command's configuration names; empty for none."""
    return str(user_config(env).get("currentContext") or "")


def _connect(address: str, tls: Any, seconds: float) -> Any:
    import docker  # noqa: PLC0415

    return docker.APIClient(base_url=address, tls=tls or False, version="auto", timeout=seconds, use_ssh_client=True)


def _reason(error: Exception) -> str:
    """The innermost cause's own words: the outer ones repeat it wrapped in class names."""
    found: BaseException = error
    while (cause := found.__cause__ or found.__context__) is not None:
        found = cause
    reason = getattr(found, "strerror", None) or str(found) or type(found).__name__
    return without_user_info(str(reason))[:300]
