"""What a check says."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (`error`: it does not build) or deserves a look (`warning`), and what to do about it."""

    level: Literal["error", "warning"]
    field: str
    """The definition's field, or the attribute path of an `Environment` for what a definition has no field for."""
    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.level}: {self.field}: {self.message}; {self.advice}"


def error(field: str, message: str, advice: str) -> Finding:
    return Finding("error", field, message, advice)


def warning(field: str, message: str, advice: str) -> Finding:
    return Finding("warning", field, message, advice)


def only_here(field: str, message: str, advice: str) -> Finding:
    """A warning about what is built here and was refused, or left unbuilt, by Azure ML."""
    return Finding("warning", field, f"{message}: this works here, but not in Azure ML", advice)
