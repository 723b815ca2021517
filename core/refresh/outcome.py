"""What became of each registered environment that was resolved afresh, and how readers are told."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_environments.core.console import megabytes

Status = Literal["failed", "drifted", "refused", "built", "unchanged"]

_ORDER: tuple[Status, ...] = ("failed", "drifted", "refused", "built", "unchanged")


class RefreshOutcome(BaseModel):
    """What became of one environment."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int = Field(description="The version that was looked at: the newest one.")
    status: Status = Field(
        description="unchanged; drifted: resolved afresh, it would be another image; built: that is registered now; "
        "refused: somebody said no; or failed."
    )
    new_version: int = Field(default=0, description="The version that was registered; 0 where there is none.")
    reference: str = Field(default="", description="repository@sha256:… of the newest version's image.")
    reason: str = Field(default="", description="Why it failed, why it cannot drift, or what else is to be known.")
    changes: tuple[str, ...] = Field(default=(), description="What would change, such as `~ pandas 2.2.2 → 2.2.3`.")
    archive_bytes: tuple[int, int] = Field(
        default=(0, 0), description="Bytes of all package files, before and after, as far as they are known."
    )
    image_hash: str = Field(default="", description="Of what it was resolved to, where that drifted.")
    definition_hash: str = Field(
        default="", description="Of what was asked for then, the workspace's defaults with it."
    )

    def label(self) -> str:
        """`iris 3`, or `iris 3 → 4`."""
        return f"{self.name} {self.version}{f' → {self.new_version}' if self.new_version else ''}"


def told(outcomes: Iterable[RefreshOutcome]) -> str:
    """`2 drifted, 5 unchanged`."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status]) or "nothing is registered"


def in_order(outcomes: Iterable[RefreshOutcome]) -> list[RefreshOutcome]:
    """What needs somebody's attention first, then by name."""
    return sorted(outcomes, key=lambda one: (_ORDER.index(one.status), one.name.lower()))


def drift_markdown(outcomes: Sequence[RefreshOutcome], *, lines: int = 200) -> str:
    """The changes of each environment that has some, with at most so many `lines` for each."""
    parts = []
    for one in in_order(outcomes):
        if not one.changes:
            continue
        more = len(one.changes) - lines
        shown = [*one.changes[:lines], *([f"… and {more} more"] if more > 0 else [])]
        before, after = map(megabytes, one.archive_bytes)
        facts = [f"package files: {before} → {after}"] if any(one.archive_bytes) else []
        facts += [one.reason] if one.reason else []
        parts.append("\n".join([f"### {one.label()}", "", "```diff", *shown, "```", *(f"- {fact}" for fact in facts)]))
    return "\n\n".join(parts) or "No environment drifted."
