"""Who a process is among all of a job: the variables that frameworks read, and where others wrote them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

LOCAL_RANK_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "LOCAL_RANK", "AZ_BATCHAI_TASK_INDEX")
"""Where Open MPI, torchrun and Azure Batch AI tell a process its number on its node. The first one counts: what
mpirun sets is nearer to the process than what was there when mpirun was started."""


class Rank(NamedTuple):
    """A process of a job with `nodes` nodes of `processes` processes each."""

    node: int
    local: int
    nodes: int
    processes: int

    @property
    def world(self) -> int:
        """Its number among all processes."""
        return self.node * self.processes + self.local

    def __str__(self) -> str:
        return f"[{self.node}:{self.world}]"


def local_rank(variables: Mapping[str, str]) -> int:
    """A process's number on its node, as whoever started it tells; 0 where nobody does. Raises `ValueError`."""
    for name in LOCAL_RANK_VARIABLES:
        if variables.get(name):
            return int(variables[name])
    return 0


def variables_of(rank: Rank, plan: Mapping[str, Any]) -> dict[str, str]:
    """The variables of PyTorch's `env://`, of Azure ML and, where MPI does not start it, those of Open MPI."""
    world, processes = str(rank.nodes * rank.processes), str(rank.processes)
    host, port = str(plan["master"][0]), str(plan["master"][1])
    found = {
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        "RANK": str(rank.world),
        "WORLD_SIZE": world,
        "LOCAL_RANK": str(rank.local),
        "LOCAL_WORLD_SIZE": processes,
        "NODE_RANK": str(rank.node),
        "GROUP_RANK": str(rank.node),
        "AZ_BATCHAI_TASK_INDEX": str(rank.local),  # as bootstrap scripts read it
        "AZ_BATCH_MASTER_NODE": f"{host}:{port}",
        "AZUREML_NODE_COUNT": str(rank.nodes),
        "AZUREML_PROCESS_COUNT": world,
    }
    if plan["kind"] == "mpi":
        found.update(
            {
                "OMPI_COMM_WORLD_RANK": str(rank.world),
                "OMPI_COMM_WORLD_SIZE": world,
                "OMPI_COMM_WORLD_LOCAL_RANK": str(rank.local),
                "OMPI_COMM_WORLD_LOCAL_SIZE": processes,
                "OMPI_COMM_WORLD_NODE_RANK": str(rank.local),  # in Open MPI's words: its number on its node
                "AZ_BATCHAI_MPI_MASTER_NODE": host,
            }
        )
    if plan.get("backend"):
        found["PREFECT_ENVIRONMENTS_BACKEND"] = str(plan["backend"])
    return found


def threads_of(rank: Rank, variables: Mapping[str, str]) -> dict[str, str]:
    """Several processes share the processors of a node: unless told otherwise, none starts a thread for each."""
    if rank.processes == 1 or "OMP_NUM_THREADS" in variables:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // rank.processes))}
