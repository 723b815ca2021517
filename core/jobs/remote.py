"""A job as it travels to the machine that runs it, and what comes back: no secret is in either."""

from pydantic import BaseModel, ConfigDict, Field

from prefect_environments.core.jobs.config import ScriptRunConfig
from prefect_environments.core.jobs.launcher import Number, OutputFile

JOB_LOGGER = "prefect.flow_runs.job"
"""The logger of the lines that a job prints. Prefect sends what is below `prefect.flow_runs` to its API."""
JOB_LEVEL = 21
"""Their level, by which they are found: between INFO and WARNING, and nobody else's."""


class RemoteJob(BaseModel):
    """What a job's container is told. References to secrets travel as they are, and are resolved in the container."""

    model_config = ConfigDict(frozen=True, title="Job")

    id: str
    config: ScriptRunConfig = Field(description="What to run; its environment and source are the container's.")
    python: str = Field(description="The environment's interpreter.")
    variables: dict[str, str] = Field(default_factory=dict, description="Values, and references to secrets.")
    storage: str = Field(default="", description="Prefect storage block that keeps the outputs, as TYPE/NAME.")
    workspace: str = Field(default="", description="Workspace block whose Key Vaults resolve references.")


class RemoteResult(BaseModel):
    """How a job ended in its container. `exit_code` is 128 + N where signal N ended it."""

    model_config = ConfigDict(frozen=True, title="Job result")

    exit_code: int
    timed_out: bool = False
    out_of_memory: bool = False
    cancelled: bool = False
    error: str = Field(default="", description="Why it could not be started.")
    seconds: float = 0
    lines: int = Field(default=0, description="How many lines it printed.")
    place: str = Field(default="", description="Where its outputs are kept; empty where they are not.")
    files: tuple[OutputFile, ...] = ()
    metrics: dict[str, Number] = Field(default_factory=dict)
    series: dict[str, tuple[Number, ...]] = Field(default_factory=dict)
