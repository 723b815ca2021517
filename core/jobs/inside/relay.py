"""What a process prints, line by line, with who it is before each line."""

from __future__ import annotations

import os
import threading
import time
from typing import IO

_LONGEST_LINE = 32 * 1024
_REDRAWN = 5.0  # seconds between two looks at a line that overwrites itself
_lock = threading.Lock()


def say(prefix: str, text: str) -> None:
    """A line of our own."""
    _write([f"{prefix} {text}\n".encode("utf-8", "backslashreplace")])


class Relay(threading.Thread):
    """Hands on what comes out of a pipe until it is closed. Bounded: the rest of a very long line is dropped."""

    def __init__(self, pipe: IO[bytes], prefix: str) -> None:
        super().__init__(daemon=True)
        self._pipe, self._prefix = pipe, (prefix and f"{prefix} ").encode()
        self._rest, self._cut, self._redrawn = b"", False, 0.0

    def run(self) -> None:
        while True:
            data = os.read(self._pipe.fileno(), 64 * 1024)
            _write(list(self._lines(data)))
            if not data:
                return

    def _lines(self, data: bytes) -> list[bytes]:
        *lines, rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n")
        found = []
        for line in lines:
            if not self._cut:
                found.append(line.rstrip(b"\r").rpartition(b"\r")[2])
            self._cut = False
        before, returned, last = rest.rpartition(b"\r")
        if returned and last:  # a progress bar; a return at the very end may be half of a line end
            if time.monotonic() - self._redrawn > _REDRAWN:
                found.append(before.rpartition(b"\r")[2])
                self._redrawn = time.monotonic()
            rest = last
        if self._cut:
            rest = b""
        elif len(rest) > _LONGEST_LINE or (rest and not data):
            found.append(rest.rstrip(b"\r").rpartition(b"\r")[2])
            rest, self._cut = b"", bool(data)
        self._rest = rest
        return [self._prefix + line + b"\n" for line in found]


def _write(lines: list[bytes]) -> None:
    """Whole lines only, so that those of several processes never mix."""
    data = b"".join(lines)
    with _lock:
        while data:
            data = data[os.write(1, data) :]
