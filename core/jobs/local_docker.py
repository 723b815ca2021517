"""Jobs in a Docker engine on this machine: the ready image by its digest, the source and the outputs mounted."""

import asyncio
import contextvars
import fcntl
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from prefect_environments.core.build.docker.engine import Engine
from prefect_environments.core.concurrency import gather, settled
from prefect_environments.core.errors import BuildError, DefinitionError, JobError
from prefect_environments.core.jobs.bootstrap import (
    INSIDE,
    JobNode,
    make_folder,
    node_count,
    nodes_of,
    source_of,
    together,
)
from prefect_environments.core.jobs.config import ScriptRunConfig, bytes_of
from prefect_environments.core.jobs.docker_network import job_network, leading_address, remove_networks
from prefect_environments.core.jobs.engine_image import api_of, ensure_image
from prefect_environments.core.jobs.launcher import GRACE, JobExit, JobRequest
from prefect_environments.core.jobs.log import JobLog, Lines
from prefect_environments.core.site import Site

LABEL = "com.prefect-environments.job"
"""The label of every container that runs a job; its value is the job's id."""
NETWORK_VARIABLE = "PREFECT_ENVIRONMENTS_JOB_NETWORK"

SOURCE = "/job"
"""The working directory of a job in its container."""
HOME = "/home/job"

_HOST_LABEL = f"{LABEL}.host"
_MARKER_LABEL = f"{LABEL}.marker"
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_END = 4.0  # seconds for the engine to take a stopped container away
_KILLED = 137

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DockerLauncher:
    """Runs jobs in containers of `engine`. `network` is a network mode or name (default:
    `PREFECT_ENVIRONMENTS_JOB_NETWORK`, else the engine's own)."""

    site: Site
    engine: Engine
    network: str = ""

    elsewhere: ClassVar[bool] = False

    @property
    def target(self) -> str:
        return "docker"

    async def run(self, request: JobRequest, log: JobLog) -> JobExit:
        """See `Launcher.run`. Raises `JobError`, and `EngineUnavailable` where the engine stops to answer."""
        network = self.network or os.environ.get(NETWORK_VARIABLE, "")
        if network and not _NETWORK.fullmatch(network):
            raise DefinitionError(f"the job's network is a mode or name such as host or none, not {network!r:.100}")
        self._check_engine()
        await asyncio.to_thread(remove_abandoned, self.engine)
        started = time.monotonic()
        image = await ensure_image(self.site, request.record, self.engine)
        seconds = {"image": time.monotonic() - started}
        started = time.monotonic()
        count, name = node_count(request.config), f"prefect-environments-{request.id}"
        containers = [_Container(self.engine, f"{name}-{rank}" if count > 1 else name) for rank in range(count)]
        async with job_network(self.engine, network, name, count, _labels(request)) as mode:
            code, timed_out, killed = await self._run(request, image, mode, containers, log)
        seconds["run"] = time.monotonic() - started
        return JobExit(code, seconds, out_of_memory=killed and code != 0, timed_out=timed_out)

    async def _run(
        self, request: JobRequest, image: str, network: str, containers: Sequence["_Container"], log: JobLog
    ) -> tuple[int, bool, bool]:
        """Gives the exit status, and whether the time limit or a lack of memory ended the job."""
        folder, count = make_folder(request), len(containers)
        threads = ThreadPoolExecutor(count, "job")
        try:
            async with request.channel.serve(folder, _host_name()):
                nodes = nodes_of(
                    request,
                    python=request.record.python_path,
                    folder=folder,
                    seen=INSIDE,
                    master=leading_address(network, containers[0].name, count),
                    python_path=await asyncio.to_thread(_python_path, self.engine, image),
                )
                limit = request.config.time_limit_seconds or None
                with _explaining(request.config):
                    for container, node in zip(containers, nodes, strict=True):
                        await settled(asyncio.to_thread(container.create, image, request, node, network), _END)
                    code, timed_out = await together(container.follow(log, limit, threads) for container in containers)
                # an inner process may be what was killed: its parent then ends as it likes
                killed = any(await gather(asyncio.to_thread(container.out_of_memory) for container in containers))
                return code, timed_out, killed
        finally:
            threads.shutdown(wait=False)
            await gather(container.remove() for container in containers)

    def _check_engine(self) -> None:
        if not self.engine.address.startswith(("unix://", "http+docker://", "npipe://")):
            raise JobError(
                "a local job's folders are mounted, which needs a Docker engine on this machine; the one that is set "
                "(DOCKER_HOST, or docker's context) is elsewhere: unset it, or choose compute_target local:process"
            )


@dataclass(frozen=True, slots=True)
class _Container:
    """One job's container; its methods but `follow` and `remove` block."""

    engine: Engine
    name: str

    def create(self, image: str, request: JobRequest, node: JobNode, network: str) -> None:
        with api_of(self.engine) as api:
            options = _security_options(api)
            api.create_container(
                image,
                name=self.name,
                entrypoint=list(node.command[:1]),  # the image's own would take the command as its arguments
                command=list(node.command[1:]),
                environment=_variables(node.variables),
                working_dir=SOURCE,
                user=_user(options),
                labels=_labels(request),
                healthcheck={"test": ["NONE"]},
                use_config_proxy=True,
                host_config=api.create_host_config(**_host_config(request, node, network, options)),
            )

    async def follow(self, log: JobLog, limit: float | None, threads: ThreadPoolExecutor) -> tuple[int, bool]:
        """Start it and read what it prints; gives its exit status, and whether the time limit ended it."""
        # not in the loop's own threads: many nodes would leave none to stop them with
        work = partial(contextvars.copy_context().run, self._run, log)
        thread: asyncio.Future[int] = asyncio.get_running_loop().run_in_executor(threads, work)
        try:
            done, _ = await asyncio.wait([thread], timeout=limit)
            if done:
                return thread.result(), False
            await asyncio.to_thread(self._stop)
            return await thread, True
        except asyncio.CancelledError:
            stopping = asyncio.ensure_future(asyncio.to_thread(self._stop))
            await asyncio.wait([asyncio.gather(stopping, thread, return_exceptions=True)], timeout=GRACE + _END)
            raise

    def _run(self, log: JobLog) -> int:
        with api_of(self.engine, None) as api:
            stream = api.attach(self.name, stdout=True, stderr=True, stream=True, demux=True)
            api.start(self.name)
            out, err = Lines(log), Lines(log)
            for pieces in stream:
                for lines, piece in zip((out, err), pieces, strict=True):
                    if piece:
                        lines.feed(piece)
            out.close()
            err.close()
            return int(api.wait(self.name)["StatusCode"])

    def _stop(self) -> None:
        """Ask it to end, and after some seconds end it."""
        with suppress(JobError), api_of(self.engine) as api:  # gone already
            api.stop(self.name, timeout=int(GRACE))

    def out_of_memory(self) -> bool:
        with api_of(self.engine) as api:
            return bool(api.inspect_container(self.name)["State"].get("OOMKilled"))

    async def remove(self) -> None:
        """Take the container away, also while a cancellation is on its way."""

        def work() -> None:
            from docker.errors import NotFound  # noqa: PLC0415

            try:
                with suppress(NotFound), api_of(self.engine) as api:
                    api.remove_container(self.name, force=True, v=True)
            except (BuildError, JobError) as error:
                if not isinstance(error.__cause__, NotFound) and "No such container" not in str(error):
                    logger.warning("the container %s could not be removed: %s", self.name, error)

        await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(work))], timeout=2 * _END)


def remove_abandoned(engine: Engine) -> None:
    """Remove the containers of jobs whose process on this machine is gone: killed, so that it could not do it."""
    with api_of(engine) as api:
        ours = {"label": [LABEL, f"{_HOST_LABEL}={socket.gethostname()}"]}
        for container in api.containers(all=True, filters=ours):
            if not _is_held(Path(container["Labels"].get(_MARKER_LABEL, ""))):
                logger.info("removing the container of the job %s, whose process is gone", container["Labels"][LABEL])
                with suppress(Exception):  # another process removes it, too
                    api.remove_container(container["Id"], force=True, v=True)
        remove_networks(api, ours, lambda labels: _is_held(Path(labels.get(_MARKER_LABEL, ""))))


def _is_held(marker: Path) -> bool:
    """Whether a process holds the lock of a temporary folder's marker, as it does for as long as it lives."""
    try:
        with marker.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True  # another user's is theirs to look after
    except OSError:
        return False
    return False


@contextmanager
def _explaining(config: ScriptRunConfig) -> Iterator[None]:
    """Say in words that help what the engine says of GPUs that it has not, and of folders that it does not see."""
    try:
        yield
    except JobError as error:
        said = str(error)
        if config.gpus and "device driver" in said:
            raise JobError(
                "the job wants GPUs, and the Docker engine has none to give: install the NVIDIA Container Toolkit on a "
                f"machine that has some, choose a work pool, or set gpus to 0 ({said})"
            ) from error
        if "bind source path does not exist" in said:
            raise JobError(
                "the Docker engine does not see this machine's folders, which a local job mounts: it may be outside of "
                f"the container that this runs in. Choose a work pool, or compute_target local:process ({said})"
            ) from error
        raise


def _labels(request: JobRequest) -> dict[str, str]:
    marker = str(request.folder).removesuffix(".d")
    return {LABEL: request.id, _HOST_LABEL: socket.gethostname(), _MARKER_LABEL: marker}


def _host_name() -> str:
    """By which name a job reaches us; empty where the socket in its folder does. Docker's own machine on a Mac shares
    folders, but no sockets in them."""
    return "" if sys.platform == "linux" else "host.docker.internal"


def _python_path(engine: Engine, image: str) -> str:
    """The image's own PYTHONPATH, which ours would hide."""
    with api_of(engine) as api:
        variables = api.inspect_image(image)["Config"].get("Env") or []
    return next((text.partition("=")[2] for text in variables if text.startswith("PYTHONPATH=")), "")


def _security_options(api: Any) -> tuple[str, ...]:
    """`rootless`, `userns` and the like."""
    found = api.info().get("SecurityOptions") or []
    return tuple(option.partition("name=")[2].partition(",")[0] for option in found)


def _user(options: tuple[str, ...]) -> str:
    """Who a job is, so that its outputs belong to the caller: in a rootless engine, root is the caller."""
    return "0:0" if "rootless" in options else f"{os.getuid()}:{os.getgid()}"


def _variables(variables: Mapping[str, str]) -> list[str]:
    """The user's number has no entry in the image's list of users: home and name are told by variables."""
    found = {"HOME": HOME, "USER": "job", "LOGNAME": "job", **variables}
    return [f"{name}={value}" for name, value in found.items()]


def _host_config(request: JobRequest, node: JobNode, network: str, options: tuple[str, ...]) -> dict[str, Any]:
    config = request.config
    given: dict[str, Any] = {
        "mounts": _mounts(request, node.rank),
        "init": True,  # hands signals on, and collects what a job's processes leave
        "log_config": {"type": "none", "config": {}},  # lines come by attaching; the engine's files are not masked
        "security_opt": ["label=disable"],  # SELinux would hide the mounted folders
        "shm_size": bytes_of(config.shm_size) or None,
        **_limits(config),
    }
    if network:
        given["network_mode"] = network
    if "userns" in options:
        given["userns_mode"] = "host"
    return given


def _limits(config: ScriptRunConfig) -> dict[str, Any]:
    from docker.types import DeviceRequest  # noqa: PLC0415

    found: dict[str, Any] = {}
    if config.cpus:
        found["nano_cpus"] = int(config.cpus * 1e9)
    if memory := bytes_of(config.memory):
        found |= {"mem_limit": memory, "memswap_limit": memory}  # without swap, which would only slow it down first
    if config.gpus:
        found["device_requests"] = [DeviceRequest(count=config.gpus, capabilities=[["gpu"]])]
    return found


def _mounts(request: JobRequest, node: int) -> list[Any]:
    from docker.types import Mount  # noqa: PLC0415

    home, source = request.folder / f"home-{node}", source_of(request, node)
    home.mkdir(exist_ok=True)
    mounts = [Mount(SOURCE, str(source), type="bind"), Mount(HOME, str(home), type="bind")]
    mounts.append(Mount(INSIDE, str(request.folder / "inside"), type="bind", read_only=True))
    if request.config.outputs:
        place = source / request.config.outputs
        if place.is_symlink():
            place.unlink()
        place.mkdir(parents=True, exist_ok=True)  # else the engine would make it, as root
        mounts.append(Mount(f"{SOURCE}/{request.config.outputs}", str(request.outputs), type="bind"))
    return mounts
