"""What a launcher is given, what it gives back, and what a job's caller gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prefect_environments.core.jobs.config import ScriptRunConfig
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.versions import VersionRecord

if TYPE_CHECKING:
    from prefect_environments.core.jobs.channel import Channel
    from prefect_environments.core.jobs.log import JobLog

GRACE = 4.0
"""Seconds between asking a job to end and ending it. The caller of a cancelled flow waits ten in all (core/loop.py)."""

Number = int | float | str | bool
"""A metric's value."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job, with all that can be known before it is launched."""

    id: str
    config: ScriptRunConfig
    record: VersionRecord
    """The environment's version: the image by digest, its platform, the path of its Python."""
    lock: Lock
    folder: Path
    """A private folder (see `files.temporary_folder`) that is removed after the job."""
    source: Path
    """A copy of the source in it, which the job may change."""
    outputs: Path
    """Where the job's `outputs` folder is kept; there already."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment variables, secret references resolved: for the job's process alone."""
    channel: "Channel" = field(kw_only=True)
    """By which the job reaches its launcher, which serves it while the job runs."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a job left that ran on another machine, and where it is kept; `place` is empty where it is not."""

    place: str
    files: "tuple[OutputFile, ...]"
    metrics: "Mapping[str, Number]"
    series: "Mapping[str, tuple[Number, ...]]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobExit:
    """How a job's process ended. `code` is 128 + N where signal N ended it."""

    code: int
    seconds: Mapping[str, float]
    out_of_memory: bool = False
    timed_out: bool = False
    kept: Kept | None = None
    """Its outputs, where they are not in the request's folder."""


class Launcher(Protocol):
    """Runs jobs on one kind of compute."""

    elsewhere: ClassVar[bool]
    """Whether jobs run on another machine: secret references are resolved there, and not here."""

    @property
    def target(self) -> str:
        """What it runs on, for readers: `docker`, `process`, `work pool`."""

    async def run(self, request: JobRequest, log: "JobLog") -> JobExit:
        """Run a job to its end, its lines given to `log` as they come.

        A cancellation and the time limit stop it within seconds; nothing of it is left but its outputs. Raises
        `JobError` for what cannot be started. A job that fails is no error here.
        """


class OutputFile(BaseModel):
    """A file that a job left in its outputs folder."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="Relative to the outputs folder.")
    size: int = Field(description="In bytes.")


class JobResult(BaseModel):
    """How a job ended, and what it left."""

    model_config = ConfigDict(frozen=True)

    id: str
    exit_code: int
    target: str = Field(description="What it ran on: docker, process, work pool.")
    reference: str = Field(description="The image that it ran in, or whose versions it ran with.")
    name: str
    version: int
    outputs: str = Field(
        description="Where its outputs are: a folder, or TYPE/NAME/ID of a storage block; empty: nowhere."
    )
    files: tuple[OutputFile, ...] = Field(default=(), description="What is in it, the first thousand files.")
    metrics: dict[str, Number] = Field(
        default_factory=dict, description="What it logged by Run.log, over metrics.json in the outputs."
    )
    series: dict[str, tuple[Number, ...]] = Field(
        default_factory=dict, description="All values of the metrics that it logged several times."
    )
    seconds: dict[str, float] = Field(default_factory=dict, description="Seconds by step.")


def last_lines(lines: Sequence[str]) -> str:
    """The end of a job's log, for an error's message."""
    shown = "".join(f"\n    {line}" for line in lines)
    return f"\nIts last lines:{shown}" if shown else "\nIt printed nothing"
