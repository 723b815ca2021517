"""What a prune did, or would do."""

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_environments.core.console import megabytes

RowAction = Literal["keep", "prune", "pruned", "spared", "failed"]


class PruneRow(BaseModel):
    """One version, or what of one kind is left over beside the environments."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int = Field(default=0, description="0 for what is beside the environments.")
    action: RowAction = Field(
        description="keep; prune: it would go; pruned; spared: somebody needed it just then; or failed."
    )
    reason: str = ""
    bytes: int = Field(default=0, description="What nothing in the registry refers to any more once it is gone.")


class PruneReport(BaseModel):
    """All that a prune looked at."""

    model_config = ConfigDict(frozen=True)

    dry_run: bool
    rows: tuple[PruneRow, ...] = ()
    freed: int = Field(
        default=0,
        description="Bytes of a folder's files that were removed now. A registry's own garbage collection frees them.",
    )

    @property
    def bytes(self) -> int:
        """What is no longer referred to, or would not be, in bytes."""
        return sum(row.bytes for row in self.rows if row.action in ("prune", "pruned"))

    @property
    def failed(self) -> list[PruneRow]:
        return [row for row in self.rows if row.action == "failed"]

    def __str__(self) -> str:
        """`2 pruned, 5 keep, 12.3 MB free`."""
        counts = Counter(row.action for row in self.rows if row.version)
        told = [f"{counts[action]} {action}" for action in ("pruned", "prune", "spared", "failed", "keep")]
        return ", ".join([*(text for text in told if not text.startswith("0 ")), f"{megabytes(self.bytes)} free"])
