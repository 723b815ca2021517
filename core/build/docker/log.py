"""What a build says while it runs: line by line to the log, its steps to the progress, the last lines to an error."""

import logging
import re
from collections import deque

from prefect_environments.core.errors import BuildError
from prefect_environments.core.progress import SILENT, Progress
from prefect_environments.core.redact import redact

LAST_LINES = 20
_LONGEST_LINE = 2000
_LONGEST_TITLE = 120
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]")

logger = logging.getLogger(__name__)


class BuildLog:
    """The steps of one build by a key of the builder's own, each with its last lines. Known secrets are masked."""

    def __init__(self, progress: Progress = SILENT) -> None:
        self._progress = progress
        self._titles: dict[str, str] = {}
        self._lines: dict[str, deque[str]] = {}
        self._failed: tuple[str, str] | None = None

    def step(self, key: str, title: str) -> None:
        """A step begins."""
        title = _clean(title)
        self._titles[key] = title
        logger.info("%s", title)
        self._progress.step(title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…")

    def note(self, key: str, title: str) -> None:
        """Work of the builder itself begins: no step of the Dockerfile."""
        self._titles[key] = _clean(title)
        self.detail(title)

    def detail(self, text: str) -> None:
        """What only who looks for a fault wants to read."""
        logger.debug("%s", _clean(text))

    def knows(self, key: str) -> bool:
        return key in self._titles

    def has_failed(self, key: str = "") -> bool:
        """Whether a step, or this one, has failed."""
        return self._failed is not None and key in ("", self._failed[0])

    def line(self, key: str, text: str) -> None:
        """A line that a step printed; one that overwrites itself (a progress bar) counts as it was last."""
        text = _clean(text)
        if text.strip():
            self._lines.setdefault(key, deque(maxlen=LAST_LINES)).append(text)
            logger.info("%s", text)
            self._progress.printed(text)

    def failed(self, key: str, reason: str) -> None:
        """A step failed; the first one counts, because others are stopped then."""
        if self._failed is None:
            self._failed = key, _clean(reason)
            logger.error("%s: %s", self._titles.get(key, "the build"), self._failed[1])

    def error(self, advice: str = "") -> BuildError:
        """The failure with the step and its last lines."""
        key, reason = self._failed or ("", "")
        title, lines = self._titles.get(key, ""), self._lines.get(key, ())
        where = f" at {title}" if title else ""
        because = f": {reason}" if reason else ""
        shown = "".join(f"\n    {line}" for line in lines)
        said = f"\nThe step's last lines:{shown}" if title and shown else f"\nIts last lines:{shown}" if shown else ""
        return BuildError(f"the Docker build failed{where}{because}. {advice or _ADVICE}{said}")


_ADVICE = "Correct the Dockerfile or its context and build again"


def _clean(text: str) -> str:
    """A line as it stood on a screen in the end, without colours, at most some kilobytes of it, nothing secret."""
    last = text.rstrip("\r\n").rpartition("\r")[2]
    plain = redact(_CONTROL.sub("", last).rstrip())
    return plain if len(plain) <= _LONGEST_LINE else f"{plain[:_LONGEST_LINE]}…"
