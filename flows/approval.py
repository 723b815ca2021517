"""A run that waits for somebody's approval in the UI, for as long as that takes.

What was seen is kept with the run, so that exactly that is built, also if the run goes on in another process: where it
has a deployment it is suspended, which ends the process; else it is paused, and its process waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from prefect.context import FlowRunContext
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import create_flow_run_input, read_flow_run_input
from prefect.runtime import flow_run
from pydantic import Field, TypeAdapter, create_model

from prefect_environments.core.refresh.outcome import RefreshOutcome, drift_markdown, told

_KEPT = "refresh-seen"
_KEY = "refresh-approval"
_LIMIT = 20_000  # characters of the form's text; the artifact has the rest
_EVERY = 5  # seconds between two looks at a paused run
_HOUR = 3600  # seconds
_OUTCOMES = TypeAdapter(list[RefreshOutcome])


@dataclass(frozen=True, slots=True)
class Approval:
    """What somebody decided: the names to build, perhaps none, and why."""

    names: tuple[str, ...]
    reason: str


def seen_before() -> list[RefreshOutcome] | None:
    """What this run saw before it was suspended; `None` in one that just begins, or begins again after it ended."""
    attempt = _waiting() if flow_run.id else None
    return None if attempt is None else _OUTCOMES.validate_python(read_flow_run_input(_named(_KEPT, attempt)))


def ask(outcomes: Sequence[RefreshOutcome], workspace: str, hours: int) -> Approval:
    """Wait until somebody decides about what drifted. Raises `FlowPauseTimeout` if nobody does in so many hours; a run
    that is suspended is then failed by the server."""
    attempt = _waiting()
    if attempt is None:
        attempt = next(n for n in count() if read_flow_run_input(_named(_KEPT, n)) is None)
        create_flow_run_input(_named(_KEPT, attempt), _OUTCOMES.dump_python(list(outcomes), mode="json"))
    form, key = _form(outcomes, workspace, hours), _named(_KEY, attempt)
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None and context.flow_run.deployment_id:
        given: Any = suspend_flow_run(wait_for_input=form, key=key, timeout=hours * _HOUR)
    else:
        given = pause_flow_run(wait_for_input=form, key=key, timeout=hours * _HOUR, poll_interval=_EVERY)
    names = tuple(given.environments) if given.decision == "build" else ()
    return Approval(names, " ".join(given.reason.split()))


def _waiting() -> int | None:
    """The attempt that this run was suspended in. The server keeps the keys of a run's pauses, and forgets them when
    a run that ended is retried; the inputs stay, and their keys are taken."""
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    keys = (run.empirical_policy.pause_keys if run is not None else None) or set()
    found = [key.removeprefix(_KEY).removeprefix("-") for key in keys if key.startswith(_KEY)]
    return max((int(number or 0) for number in found), default=None)


def _named(key: str, attempt: int) -> str:
    return f"{key}-{attempt}" if attempt else key


def _form(outcomes: Sequence[RefreshOutcome], workspace: str, hours: int) -> type[RunInput]:
    """The form of a run: the changes above it, the environments that drifted to choose from."""
    names = [one.name for one in outcomes if one.status == "drifted"]
    fields: dict[str, Any] = {
        "decision": (
            Literal["build", "refuse"],
            Field(description="Build and register the next versions of the environments below, or of none."),
        ),
        "environments": (
            list[str],
            Field(
                default=names,
                description="Take out what is not to be built.",
                json_schema_extra={"items": {"type": "string", "enum": list[Any](names)}},
            ),
        ),
        "reason": (str, Field(default="", description="Kept with the run, and with the new versions.")),
    }
    form: Any = create_model("RefreshApproval", __base__=RunInput, **fields)
    form._description = _text(outcomes, workspace, hours)
    found: type[RunInput] = form
    return found


def _text(outcomes: Sequence[RefreshOutcome], workspace: str, hours: int) -> str:
    drifted = [one for one in outcomes if one.status == "drifted"]
    head = f"**{workspace}**: {told(outcomes)}. Nothing is built before you decide, nor after {hours} hours.\n\n"
    text = drift_markdown(drifted, lines=30)
    if len(text) <= _LIMIT:
        return head + text
    listed = "\n".join(f"- {one.label()}: {len(one.changes)} changes" for one in drifted)
    return f"{head}The changes are in the artifact of this run that is named drift.\n\n{listed}"[:_LIMIT]
