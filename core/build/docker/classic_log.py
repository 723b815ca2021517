"""What the classic builder says, read step by step: its own words among what the steps print.

A message that is the builder's own stands alone, but a step can print the same. So a container's id counts only as the
first word of a step and an image's only as its last, and before an image is removed its parents are asked for.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_environments.core.build.docker.engine import LABEL
from prefect_environments.core.build.docker.log import BuildLog

_STEP = re.compile(r"Step ((\d+)/\d+) : (.*)", re.DOTALL)
_IMAGE = re.compile(r" ---> ([0-9a-f]{12,64})?\n")
_CONTAINER = re.compile(r" ---> Running in ([0-9a-f]{12,64})\n")
_CACHED = " ---> Using cache\n"
_TOLD = re.compile(r"(Removing intermediate container|Successfully built) [0-9a-f]{12,64}\n")


@dataclass(frozen=True, slots=True)
class StepEnd:
    """The image that a step ended with; empty for `FROM scratch`. `made` says that this build made it."""

    image: str
    made: bool


@dataclass(slots=True)
class ClassicReader:
    """Reads the messages of one build's stream in their order."""

    log: BuildLog
    image: str = ""
    """The id of the last stage that was finished."""
    container: str = ""
    """The container of the step that runs now."""
    ends: list[StepEnd] = field(default_factory=list)
    _key: str = ""
    _is_from: bool = False
    _is_cached: bool = False
    _last_image: str | None = None
    _rest: str = ""

    def read(self, message: Mapping[str, Any]) -> None:
        """Take one message."""
        if error := message.get("error"):
            self._flush()
            self.log.failed(self._key, str(error))
        elif status := message.get("status"):
            self.log.detail(" ".join(str(part) for part in (message.get("id"), status) if part))
        elif found := (message.get("aux") or {}).get("ID"):
            self.image = str(found)
        elif text := message.get("stream"):
            self._read_text(str(text))

    def end(self) -> None:
        """Close the step: another one begins, or nothing more comes."""
        self._flush()
        if self._last_image is not None:
            self.ends.append(StepEnd(self._last_image, not (self._is_from or self._is_cached)))
        self._last_image, self.container, self._is_cached = None, "", False

    def _read_text(self, text: str) -> None:
        if step := _STEP.fullmatch(text):
            self.end()
            self._key, self._is_from = step[2], step[3].upper().startswith("FROM ")
            begin = self.log.note if step[3].startswith(f"LABEL {LABEL}=") else self.log.step
            begin(self._key, f"[{step[1]}] {step[3]}")
        elif text == _CACHED:
            self._is_cached = True
        elif (container := _CONTAINER.fullmatch(text)) and not self.container:
            self.container = container[1]
        elif image := _IMAGE.fullmatch(text):
            self._last_image = image[1] or ""
        elif _TOLD.fullmatch(text):
            self._flush()
            self.log.detail(text)
        else:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self.log.line(self._key, line)

    def _flush(self) -> None:
        if self._rest:
            self.log.line(self._key, self._rest)
            self._rest = ""
