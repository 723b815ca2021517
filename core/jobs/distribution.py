"""How many processes a job has, and on how many nodes; the names are those of Azure ML's SDK v1."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prefect_environments.core.errors import DefinitionError

MOST = 1024
"""Processes of a job at most: it runs on one machine."""


class _NotValid(DefinitionError, ValueError):
    """Inside another model, pydantic tries the other kind of distribution after a `ValueError` alone."""


class _Configuration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            found = [f"{'.'.join(map(str, item['loc'])) or 'distribution'}: {item['msg']}" for item in error.errors()]
            raise _NotValid(f"the job's distribution is not valid: {'; '.join(found)}") from None


class MpiConfiguration(_Configuration):
    """Processes of an MPI job. On one node Open MPI's mpirun starts them, where the image has it.

    Raises `DefinitionError` for more than `MOST` processes, and for what is no number of them.
    """

    model_config = ConfigDict(title="MPI")

    kind: Literal["mpi"] = "mpi"
    process_count_per_node: int = Field(default=1, ge=1, le=MOST, description="Processes on each node.")
    node_count: int = Field(default=1, ge=1, le=MOST, description="Nodes: containers, when it runs on one machine.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_world(self.world_size)
        return self

    @property
    def processes(self) -> int:
        """Processes on each node."""
        return self.process_count_per_node

    @property
    def world_size(self) -> int:
        """All processes of the job."""
        return self.process_count_per_node * self.node_count


class PyTorchConfiguration(_Configuration):
    """Processes that find each other as PyTorch's `env://` has it.

    Raises `DefinitionError` for processes that cannot be shared out equally among the nodes.
    """

    model_config = ConfigDict(title="PyTorch")

    kind: Literal["pytorch"] = "pytorch"
    communication_backend: Literal["Nccl", "Gloo"] = Field(default="Nccl", description="Nccl for GPUs, Gloo without.")
    process_count: int = Field(default=0, ge=0, le=MOST, description="Processes of all nodes; 0: one a node.")
    node_count: int = Field(default=1, ge=1, le=MOST, description="Nodes: containers, when it runs on one machine.")

    @field_validator("process_count", mode="before")
    @classmethod
    def _none_is_one_a_node(cls, value: Any) -> Any:
        return 0 if value is None else value  # as in SDK v1

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_world(self.world_size)
        if self.world_size % self.node_count:
            raise _NotValid(
                f"process_count is {self.process_count}, which {self.node_count} nodes cannot share equally; choose a "
                "multiple of node_count"
            )
        return self

    @property
    def processes(self) -> int:
        """Processes on each node."""
        return self.world_size // self.node_count

    @property
    def world_size(self) -> int:
        """All processes of the job."""
        return self.process_count or self.node_count


Distribution = MpiConfiguration | PyTorchConfiguration


def _check_world(size: int) -> None:
    if size > MOST:
        raise _NotValid(f"the job has {size} processes; at most {MOST} run on one machine")
