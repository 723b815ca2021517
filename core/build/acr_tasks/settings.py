"""Which registry builds, who asks it to, and for how long a build may run."""

import re
from dataclasses import dataclass, field

from prefect_environments.core.azure.credentials import Identity
from prefect_environments.core.azure.registry import AzureRegistry
from prefect_environments.core.errors import DefinitionError

SHORTEST_LIMIT, LONGEST_RUN = 300, 8 * 3600
"""The least and the most that ACR Tasks takes as a run's time limit, in seconds."""

_SUBSCRIPTION = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_GROUP = re.compile(r"[\w.()-]{0,89}[\w()-]")
_REGISTRY = re.compile(r"[A-Za-z0-9]{5,50}")
_POOL = re.compile(r"[A-Za-z][A-Za-z0-9-]{2,19}")


@dataclass(frozen=True, slots=True)
class TasksSettings:
    """A container registry as Azure Resource Manager knows it. Raises `DefinitionError` for what names none."""

    subscription_id: str
    resource_group: str
    registry: str
    """The registry resource's name: letters and digits."""
    identity: Identity = field(default_factory=Identity)
    """Who schedules runs; its cloud says where Azure Resource Manager is."""
    agent_pool: str = ""
    """A dedicated agent pool of the registry; empty: Azure's shared agents."""
    timeout: int = 3600
    """Seconds that a run may take: 300 to 28,800."""
    as_caller: bool = False
    """Push as `identity` rather than as the registry: what a registry with permissions by repository (ABAC) wants."""
    patience: float = 600.0
    """Seconds that a run may wait for an agent, and for its end to be told, beside its own time."""
    poll: float = 1.0
    """Seconds between two looks at the log."""

    def __post_init__(self) -> None:
        if not _SUBSCRIPTION.fullmatch(self.subscription_id):
            raise DefinitionError(
                "subscription_id is the id of the registry's subscription, such as "
                f"00000000-0000-0000-0000-000000000000, not {self.subscription_id!r:.80}; "
                "`az acr show --name NAME --query id` tells it"
            )
        if not _GROUP.fullmatch(self.resource_group):
            raise DefinitionError(
                f"resource_group is the name of the registry's resource group, not {self.resource_group!r:.100}"
            )
        if not _REGISTRY.fullmatch(self.registry):
            raise DefinitionError(
                f"the registry's name is {self.registry!r:.80}; Azure's are 5 to 50 letters and digits, without a host"
            )
        if self.agent_pool and not _POOL.fullmatch(self.agent_pool):
            raise DefinitionError(
                f"agent_pool is the name of an agent pool of the registry, not {self.agent_pool!r:.80}"
            )
        if not SHORTEST_LIMIT <= self.timeout <= LONGEST_RUN:
            raise DefinitionError(f"build_timeout is {SHORTEST_LIMIT} to {LONGEST_RUN} seconds, not {self.timeout}")

    def __str__(self) -> str:
        return f"ACR Tasks of {self.registry}"


def tasks_settings(
    azure: AzureRegistry | None, *, timeout: int, agent_pool: str = "", as_caller: bool = False
) -> TasksSettings:
    """A workspace's registry as what builds. Raises `DefinitionError` that says what the registry's block lacks."""
    if azure is None or azure.identity is None:
        raise DefinitionError(
            "builder='acr-tasks' builds in the workspace's registry, which must be an AzureContainerRegistry with "
            "credentials: a user with a password may push, but cannot start a run"
        )
    if not azure.subscription_id or not azure.resource_group:
        raise DefinitionError(
            f"builder='acr-tasks' needs subscription_id and resource_group of {azure.where}: set both there"
        )
    return TasksSettings(
        azure.subscription_id,
        azure.resource_group,
        azure.name,
        azure.identity,
        agent_pool,
        timeout,
        as_caller,
    )
