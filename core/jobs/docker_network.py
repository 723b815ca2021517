"""The network of a job's containers: one of its own where there are several, gone with the job."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from prefect_environments.core.build.docker.engine import Engine
from prefect_environments.core.concurrency import settled
from prefect_environments.core.errors import DefinitionError, JobError
from prefect_environments.core.jobs.engine_image import api_of

_SECONDS = 8.0  # for the engine to take a network away
_NAMELESS = ("", "bridge", "default")
"""Networks in which containers do not find each other by name (docker's own words for its first bridge)."""


@asynccontextmanager
async def job_network(
    engine: Engine, network: str, name: str, nodes: int, labels: Mapping[str, str]
) -> AsyncIterator[str]:
    """The network mode of a job's containers: `network` as it is set, or a new one called `name`.

    Raises `DefinitionError` where several nodes could not reach each other, `JobError` where the engine refuses.
    """
    if nodes > 1 and network == "none":
        raise DefinitionError(f"the job has {nodes} nodes, and its network is none: they could not reach each other")
    if nodes == 1 or network not in _NAMELESS:
        yield network
        return
    try:
        await settled(asyncio.to_thread(_create, engine, name, labels), _SECONDS)
        yield name
    finally:
        await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(_remove, engine, name))], timeout=_SECONDS)


def leading_address(network: str, name: str, nodes: int) -> str:
    """Where the first node, the container `name`, is found by all."""
    return "127.0.0.1" if nodes == 1 or network == "host" else name


def remove_networks(api: Any, filters: Mapping[str, Any], alive: Callable[[Mapping[str, str]], bool]) -> None:
    """Remove the networks of jobs whose labels are not those of one that is `alive`."""
    for network in api.networks(filters=filters):
        if not alive(network["Labels"]):
            with suppress(Exception):  # another process removes it, too
                api.remove_network(network["Id"])


def _create(engine: Engine, name: str, labels: Mapping[str, str]) -> None:
    with api_of(engine) as api:
        try:
            api.create_network(name, labels=dict(labels), check_duplicate=True)
        except Exception as error:
            raise JobError(
                f"the Docker engine made no network for the nodes of the job: {error}. Set "
                "PREFECT_ENVIRONMENTS_JOB_NETWORK to one that it has, or to host"
            ) from error


def _remove(engine: Engine, name: str) -> None:
    with suppress(JobError), api_of(engine) as api:  # never made
        api.remove_network(name)
