"""How many processes a job has, and on how many nodes; the names are those of Azure ML's SDK v1."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class MpiConfiguration(BaseModel):
    """Processes that Open MPI starts."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="MPI")

    kind: Literal["mpi"] = "mpi"
    process_count_per_node: int = Field(default=1, ge=1, le=1024, description="Processes on each node.")
    node_count: int = Field(default=1, ge=1, le=1024, description="Nodes: containers, when it runs on one machine.")

    @property
    def world_size(self) -> int:
        """All processes of the job."""
        return self.process_count_per_node * self.node_count


class PyTorchConfiguration(BaseModel):
    """Processes that find each other as PyTorch's `env://` has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="PyTorch")

    kind: Literal["pytorch"] = "pytorch"
    communication_backend: Literal["Nccl", "Gloo"] = Field(default="Nccl", description="Nccl for GPUs, Gloo without.")
    process_count: int = Field(default=0, ge=0, le=1024**2, description="Processes of all nodes; 0: one a node.")
    node_count: int = Field(default=1, ge=1, le=1024, description="Nodes: containers, when it runs on one machine.")

    @property
    def world_size(self) -> int:
        """All processes of the job."""
        return self.process_count or self.node_count


Distribution = MpiConfiguration | PyTorchConfiguration
