"""What a check of a workspace found."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    """What there is, or the error."""
    advice: str = ""
    """What to do about it: which role on which resource, which field of which block."""
    required: bool = True
    """Whether builds need it; without what is not required, some of them work."""

    @property
    def state(self) -> str:
        """`ok`, `failed`, or `missing` for what is not required."""
        return "ok" if self.ok else "failed" if self.required else "missing"


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """What builds need and does not work."""
    return [finding for finding in findings if finding.required and not finding.ok]
