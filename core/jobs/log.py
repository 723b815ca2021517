"""What a job prints: line by line to the log as it comes, known secrets masked, the last lines kept for an error."""

import codecs
import logging
import re
import time
from collections import deque
from collections.abc import Callable

from prefect_environments.core.redact import redact

LAST_LINES = 30
_LONGEST_LINE = 8000
_REDRAWN = 5.0  # seconds between two looks at a line that overwrites itself
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]")

logger = logging.getLogger(__name__)


class JobLog:
    """The lines of one job. `on_line` gets each one; without it they go to this module's logger."""

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self._on_line = on_line or (lambda line: logger.info("%s", line))
        self.last: deque[str] = deque(maxlen=LAST_LINES)

    def line(self, text: str) -> None:
        """A line that the job printed."""
        plain = redact(_CONTROL.sub("", text).rstrip())
        if len(plain) > _LONGEST_LINE:
            plain = f"{plain[:_LONGEST_LINE]}…"
        if plain:
            self.last.append(plain)
            self._on_line(plain)

    def note(self, text: str, *arguments: object) -> None:
        """What the launcher itself has to say."""
        logger.info(text, *arguments)


class Lines:
    """Cuts a stream of bytes into lines of a log. One for each stream.

    A progress bar, which ends its lines with a carriage return, gives a line now and then. A very long line is cut,
    so that memory stays bounded.
    """

    def __init__(self, log: JobLog) -> None:
        self._log = log
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._redrawn = 0.0
        self._cut = False

    def feed(self, data: bytes) -> None:
        """Bytes as they came, lines cut anywhere."""
        *lines, self._rest = (self._rest + self._decoder.decode(data)).replace("\r\n", "\n").split("\n")
        for line in lines:
            if not self._cut:
                self._log.line(line.rstrip("\r").rpartition("\r")[2])
            self._cut = False
        before, returned, last = self._rest.rpartition("\r")
        if returned and last:  # a return at the very end may be half of a line end
            if time.monotonic() - self._redrawn > _REDRAWN:
                self._log.line(before.rpartition("\r")[2])
                self._redrawn = time.monotonic()
            self._rest = last
        if self._cut:
            self._rest = ""
        elif len(self._rest) > 2 * _LONGEST_LINE:
            self._log.line(self._rest)  # its end is dropped: the half of a secret would not be known as one
            self._rest, self._cut = "", True

    def close(self) -> None:
        """The stream ended: what is left is a line, too."""
        rest, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        if not self._cut:
            self._log.line(rest.rstrip("\r").rpartition("\r")[2])
