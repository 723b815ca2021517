"""Blocks and work pools of the Prefect API, by their names."""

from typing import TypeVar

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from prefect_environments.core.errors import DefinitionError, VersionError
from prefect_environments.core.findings import Finding

_B = TypeVar("_B", bound=Block)


async def load_block(kind: type[_B], name: str, missing: DefinitionError) -> _B:
    """The stored block; raises `missing` where there is none, `DefinitionError` for one of another release, and
    `VersionError` where the Prefect API does not hand it out."""
    try:
        return await kind.aload(name)
    except ValidationError:  # a ValueError, too
        raise DefinitionError(
            f"the {kind.get_block_type_name()} block {name!r} was saved by another release of this package and does "
            "not fit; open it in the UI and save it again"
        ) from None
    except ValueError:
        raise missing from None
    except (httpx.HTTPError, RuntimeError) as error:
        raise VersionError(
            f"the {kind.get_block_type_name()} block {name!r} cannot be read, as {_refusal(error)}; check "
            "PREFECT_API_URL and PREFECT_API_KEY, or use Workspace.local(FOLDER)"
        ) from None


async def check_work_pool(name: str) -> Finding:
    """Whether the work pool is there, and of which type."""
    try:
        async with get_client() as client:
            pool = await client.read_work_pool(name)
    except ObjectNotFound:
        advice = f"Make it (`prefect work-pool create {name}`), or correct the workspace's field work_pool"
        return Finding("work pool", False, f"there is no work pool {name!r}", advice, required=False)
    except (httpx.HTTPError, RuntimeError) as error:
        advice = "Check PREFECT_API_URL and PREFECT_API_KEY"
        return Finding("work pool", False, _refusal(error), advice, required=False)
    paused = ", paused" if pool.is_paused else ""
    return Finding("work pool", True, f"{name} of type {pool.type}{paused}", required=False)


def _refusal(error: httpx.HTTPError | RuntimeError) -> str:
    """What the Prefect API did in place of an answer; a temporary server that does not start is a `RuntimeError`."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"the Prefect API answered with HTTP {error.response.status_code}"
    return f"the Prefect API did not answer ({type(error).__name__})"
