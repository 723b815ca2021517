"""A job as it travels to the machine that runs it, and what comes back: no secret is in either."""

from pydantic import BaseModel, ConfigDict, Field

from prefect_environments.core.jobs.launcher import Number, OutputFile


class RemoteJob(BaseModel):
    """What a job's container is told. References to secrets travel as they are, and are resolved in the container."""

    model_config = ConfigDict(frozen=True, title="Job")

    id: str
    command: tuple[str, ...]
    variables: dict[str, str] = Field(default_factory=dict, description="Values, and references to secrets.")
    time_limit_seconds: float = 0
    outputs: str = Field(default="", description="Folder in the working directory that is kept.")
    storage: str = Field(default="", description="Prefect storage block that keeps it, as TYPE/NAME.")
    workspace: str = Field(default="", description="Workspace block whose Key Vaults resolve references.")


class RemoteResult(BaseModel):
    """How a job ended in its container. `exit_code` is 128 + N where signal N ended it."""

    model_config = ConfigDict(frozen=True, title="Job result")

    exit_code: int
    timed_out: bool = False
    out_of_memory: bool = False
    cancelled: bool = False
    seconds: float = 0
    lines: int = Field(default=0, description="How many lines it printed.")
    place: str = Field(default="", description="Where its outputs are kept; empty where there are none.")
    files: tuple[OutputFile, ...] = ()
    metrics: dict[str, Number] = Field(default_factory=dict)
