"""What became of each environment of a fleet, and whether a registered image is still there."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["ready", "reused", "built", "failed"]


class FleetOutcome(BaseModel):
    """What became of one environment."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int = Field(default=0, description="The registered version; 0 where there is none.")
    reference: str = Field(default="", description="repository@sha256:… of the image.")
    status: Status = Field(
        description="ready: nothing was to do; reused: its image was there, the version is new; built; or failed."
    )
    reason: str = Field(default="", description="Why it failed, or what it took.")
    seconds: float = 0.0
    image_hash: str = ""


class ImageStatus(BaseModel):
    """Whether the registry still has the image of a registered version."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    reference: str
    state: Literal["there", "missing", "unknown"] = Field(
        description="unknown: an image of somebody else's registry, which gave no answer."
    )
    reason: str = ""


def told(outcomes: Iterable[FleetOutcome]) -> str:
    """`3 ready, 1 built, 1 failed`."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(
        f"{counts[status]} {status}" for status in ("ready", "reused", "built", "failed") if counts[status]
    )
