"""What a verification found, for programs and for readers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_environments.core.errors import VerificationError
from prefect_environments.core.findings import Finding, failures
from prefect_environments.core.version_record import VersionRecord


@dataclass(frozen=True, slots=True)
class Verification:
    """The checks of one version. `record` is `None` where the stored one cannot be trusted."""

    name: str
    version: int | None
    record: VersionRecord | None
    findings: tuple[Finding, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """What was not looked at, and why."""

    @property
    def ok(self) -> bool:
        """Whether nothing that was looked at is wrong."""
        return not failures(self.findings)

    @property
    def built_by(self) -> Mapping[str, Any]:
        """Tools, machine, flow run and user that registered the version, as far as its record knows them."""
        return self.record.created_by if self.record else {}

    def raise_for_failures(self) -> None:
        """Raise `VerificationError` that names every check that failed."""
        wrong = failures(self.findings)
        if wrong:
            said = "; ".join(f"{one.name}: {one.found}. {one.advice}" for one in wrong)
            raise VerificationError(
                f"{self.title} is not what was registered, {len(wrong)} of {len(self.findings)} checks failed: {said}"
            )

    @property
    def title(self) -> str:
        return f"{self.name} version {self.version or 'newest'}"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "name": self.name,
            "version": self.version,
            "reference": self.record.reference if self.record else "",
            "ok": self.ok,
            "built_by": dict(self.built_by),
            "checks": self.rows(),
        }

    def rows(self) -> list[dict[str, str]]:
        """A row a check; what is longest comes last."""
        rows = [_row(one.name, one.state, "" if one.ok else one.advice, one.found) for one in self.findings]
        return rows + [_row(name, "not looked at", "", why) for name, why in self.skipped]

    def to_text(self) -> str:
        return "\n".join([f"{self.title}: {'as registered' if self.ok else 'NOT as registered'}", *self._lines()])

    def to_markdown(self) -> str:
        """A table of the checks and who built the version; shown by notebooks, too."""
        lines = [f"# {self.title}: {'as registered' if self.ok else 'not as registered'}", ""]
        if self.record:
            lines += [f"`{self.record.reference}`, registered {self.record.created}", ""]
        lines += ["| Check | State | What to do | Found |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(_cell(value) for value in row.values())} |" for row in self.rows()]
        if self.built_by:
            lines += ["", "| Built by | |", "|---|---|"]
            lines += [f"| {_cell(key)} | {_cell(str(value))} |" for key, value in self.built_by.items()]
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def __str__(self) -> str:
        return self.to_text()

    def _lines(self) -> Iterator[str]:
        for row in self.rows():
            yield f"  {row['state']:<13} {row['check']}: {row['found']}" + (
                f". {todo}" if (todo := row["to do"]) else ""
            )


def _row(check: str, state: str, advice: str, found: str) -> dict[str, str]:
    return {"check": check, "state": state, "to do": advice, "found": found}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
