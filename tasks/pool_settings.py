"""What a work pool can do for a job: checked before any work, and told in its job variables."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from typing import Any

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.jobs.config import ScriptRunConfig, bytes_of
from prefect_environments.core.jobs.job_image import check_registry
from prefect_environments.core.workspace import Workspace

HOME = "/tmp/prefect"  # noqa: S108  # in the job's container
_VARIABLES = ("image", "command", "env")
_OWN = ("prefect", "prefect_environments")


@dataclass(frozen=True, slots=True)
class Pool:
    """A work pool: its name, type, and what its base job template lets a run set."""

    name: str
    type: str
    variables: Mapping[str, Any]
    private: bool = False
    """Whether the workspace's registry wants credentials."""

    def default(self, name: str) -> Any:
        """What the template gives a variable that a run does not set."""
        return (self.variables.get(name) or {}).get("default")

    @property
    def lacks_credentials(self) -> bool:
        """Whether its template could have credentials for the registry, which wants some, and has none."""
        known = self.variables.get("registry_credentials")
        return self.private and known is not None and not known.get("default")

    @property
    def advice(self) -> str:
        """What to look at when a container did not start."""
        if not self.private:
            return "Check that its workers reach the registry of the image."
        if "registry_credentials" in self.variables:
            return (
                "The registry wants credentials: save them in a registry credentials block, and give that as the "
                f"default of registry_credentials in the base job template of {self.name}, or sign in where the worker "
                "runs (docker login)."
            )
        return (
            "The registry wants credentials, which this pool's machines must have by themselves: an image pull secret, "
            "or an identity with the permission to pull."
        )


async def check_pool(client: PrefectClient, config: ScriptRunConfig, workspace: Workspace, storage: str) -> Pool:
    """The pool that a job names. Raises `DefinitionError` where it cannot run the job."""
    check_registry(workspace.registry_settings.address)
    pool = await _read(client, config.compute_target)
    missing = [name for name in _VARIABLES if name not in pool.variables]
    if missing:
        why = "its jobs are processes, which run in no image" if pool.type == "process" else "its template lacks them"
        raise DefinitionError(
            f"the work pool {pool.name!r} of type {pool.type} takes no {', '.join(missing)}: {why}. Choose a pool of a "
            "type that does (docker, kubernetes, azure-container-instance, ecs …), or compute_target local"
        )
    if config.outputs and not storage:
        raise DefinitionError(
            f"the outputs folder {config.outputs!r} of a job in a work pool goes with its container: name a Prefect "
            "storage block that keeps it (outputs_directory: TYPE/NAME, such as azure-blob-storage-container/models), "
            "or set outputs to nothing"
        )
    if storage:
        await load_storage(storage)
    settings = workspace.registry_settings
    private = settings.username is not None or (settings.azure is not None and settings.azure.identity is not None)
    return Pool(pool.name, pool.type, pool.variables, private)


async def _read(client: PrefectClient, name: str) -> Pool:
    try:
        found = await client.read_work_pool(name)
    except ObjectNotFound:
        known = sorted(pool.name for pool in await client.read_work_pools())
        there = f"there are {', '.join(known[:20])}" if known else "there is none yet (prefect work-pool create)"
        raise DefinitionError(
            f"there is no work pool {name!r}: {there}; compute_target is one of them, or local"
        ) from None
    except (httpx.HTTPError, RuntimeError) as error:
        raise DefinitionError(
            f"the work pool {name!r} cannot be read, as the Prefect API did not answer ({type(error).__name__}); check "
            "PREFECT_API_URL"
        ) from None
    if found.is_paused:
        raise DefinitionError(f"the work pool {name!r} is paused; resume it (prefect work-pool resume {name})")
    return Pool(found.name, found.type, found.base_job_template.get("variables", {}).get("properties", {}))


async def load_storage(name: str) -> Any:
    """A storage block by TYPE/NAME. Raises `DefinitionError` for one that is not there or takes no folders."""
    kind, slash, own = name.partition("/")
    if not (kind and slash and own):
        raise DefinitionError(f"{name!r:.200} is no storage block: for a job in a work pool, give its TYPE/NAME")
    try:
        block: Any = await Block.aload(name)
    except (ValueError, httpx.HTTPError, RuntimeError) as error:
        raise DefinitionError(
            f"the storage block {name!r:.200} cannot be loaded ({type(error).__name__}); check its TYPE/NAME, and that "
            "the package of its type is installed here"
        ) from None
    if not callable(getattr(block, "put_directory", None)):
        raise DefinitionError(f"the block {name!r:.200} keeps no folders; use one of storage")
    return block


async def storage_packages(name: str) -> tuple[str, ...]:
    """The requirement that a job needs for a storage block of another package than Prefect's."""
    module = type(await load_storage(name)).__module__.partition(".")[0]
    found = () if module in _OWN else packages_distributions().get(module, ())
    return tuple(f"{project}=={version(project)}" for project in sorted(set(found)))


def job_variables(pool: Pool, config: ScriptRunConfig, image: str, command: str) -> tuple[dict[str, Any], list[str]]:
    """The job variables of a run, and the names of the resources that this pool's jobs cannot be given."""
    env = {**(pool.default("env") or {}), "PREFECT_HOME": HOME}  # a worker hands its own home on, which is not there
    given: dict[str, Any] = {"image": image, "command": command, "env": env}
    resources, ignored = _resources(pool, config)
    return {**given, **resources}, ignored


def _resources(pool: Pool, config: ScriptRunConfig) -> tuple[dict[str, Any], list[str]]:
    wanted = {"cpus": config.cpus, "memory": bytes_of(config.memory), "gpus": config.gpus}
    found: dict[str, Any] = {}
    if pool.type == "docker" and "container_create_kwargs" in pool.variables:
        own: dict[str, Any] = {"init": True}  # collects what a job's processes leave
        if config.shm_size:
            own["shm_size"] = bytes_of(config.shm_size)
        if config.cpus:
            own["nano_cpus"] = int(config.cpus * 1e9)
        if config.gpus:
            own["device_requests"] = [{"Driver": "", "Count": config.gpus, "Capabilities": [["gpu"]]}]
        found["container_create_kwargs"] = {**(pool.default("container_create_kwargs") or {}), **own}
        if config.memory:  # without swap, which would only slow it down first
            found |= {"mem_limit": f"{wanted['memory']}b", "memswap_limit": f"{wanted['memory']}b"}
        return {**found, "auto_remove": True}, []
    return found, [name for name, value in wanted.items() if value]
