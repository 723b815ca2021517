"""The deployments that this package makes for itself: one for each work pool that it sends runs to."""

from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound


async def find_own(client: PrefectClient, flow: str, pool: str) -> DeploymentResponse | None:
    """The deployment of a flow that is named like the work pool, whoever made it."""
    try:
        return await client.read_deployment_by_name(f"{flow}/{pool}")
    except ObjectNotFound:
        return None


def is_own(found: DeploymentResponse, pool: str, entrypoint: str) -> bool:
    """Whether it is for this pool and of this entrypoint, as `make_own` makes it."""
    return found.entrypoint == entrypoint and found.work_pool_name == pool


async def make_own(client: PrefectClient, flow: str, pool: str, entrypoint: str, description: str) -> UUID:
    """Make it, or set what is there to this pool and entrypoint."""
    return await client.create_deployment(
        await client.create_flow_from_name(flow),
        pool,
        work_pool_name=pool,
        entrypoint=entrypoint,
        pull_steps=[],
        enforce_parameter_schema=False,
        tags=["prefect-environments"],
        description=description,
    )
