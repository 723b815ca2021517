"""The log of a run: read from the storage while it grows, and taken apart into the steps of the build."""

import codecs
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from prefect_environments.core.build.acr_tasks.request import BUILD
from prefect_environments.core.build.acr_tasks.storage import Storage
from prefect_environments.core.build.docker.buildkit import PlainReader
from prefect_environments.core.build.docker.log import BuildLog
from prefect_environments.core.errors import BuildError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # standard error is red, and the builder's next line resets it
_PIECE = 4 * 2**20  # bytes of a log in memory at once
_LONGEST_LINE = 2**16
_AGENT = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (.*)")
_AGENT_STEP = re.compile(r"Executing step ID: (\S+?)\. .*")
_STEP = re.compile(r"Step ((\d+)/\d+) : (.*)")
_NOISE = re.compile(
    r" ---> .*|Removing intermediate container [0-9a-f]+|Successfully (?:built|tagged) .*|Sending build context to .*"
    r"|[0-9a-f]{12}: .*|Run ID: \S+ .*"
)
"""What the classic builder and the push say between the steps' own lines."""
_FAILED_COMMAND = re.compile(r"The command .* returned a non-zero code: \d+")


@dataclass
class RunLog:
    """The lines of a log that grows, each one once. `address` gives a signed address, anew where one has expired."""

    storage: Storage
    address: Callable[[], Awaitable[str]]
    complete: bool = False
    """Whether the log says that it is whole, and all of it was read."""
    lost: bool = False
    """Whether its reader gave it up."""
    _url: str = ""
    _offset: int = 0
    _rest: str = ""
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    async def new_lines(self) -> AsyncIterator[str]:
        """The lines that were finished since the last call, and at the end of the log what stands without a line end.
        A line that does not end is given in parts.

        Raises `RegistryUnreachable`, and `BuildError` where the log may not be read.
        """
        size, whole = await self._look()
        if size < self._offset:  # another agent has begun the run anew
            self._offset, self._rest = 0, ""
            self._decoder.reset()
        while self._offset < size:
            answer = await self.storage.read(self._url, self._offset, min(size, self._offset + _PIECE))
            if answer.status != 206 or not answer.body:
                return  # replaced or expired meanwhile: the next look tells
            self._offset += len(answer.body)
            *lines, self._rest = (self._rest + self._decoder.decode(answer.body)).split("\n")
            if len(self._rest) > _LONGEST_LINE:
                lines, self._rest = [*lines, self._rest], ""
            for line in lines:
                yield line
        if whole:
            self.complete = True
            if last := self._rest + self._decoder.decode(b"", final=True):
                yield last
            self._rest = ""

    async def _look(self) -> tuple[int, bool]:
        """How long the log is by now, and whether that is all; nothing before the run has begun."""
        for is_new in (False, True):
            if is_new or not self._url:
                self._url = await self.address()
            answer = await self.storage.look(self._url)
            if answer.status == 200:
                return int(answer.headers.get("Content-Length", 0)), "x-ms-meta-Complete" in answer.headers
            if answer.status == 404:
                return 0, False
        raise BuildError(
            f"the storage of ACR Tasks refused the run's log with HTTP status {answer.status}; check this network's "
            "firewall and this machine's clock"
        )


class AgentReader:
    """Reads what an agent of ACR Tasks logs: its own words with a time before them, and those of the builder."""

    def __init__(self, log: BuildLog, *, buildkit: bool) -> None:
        self.log = log
        self.last = ""
        """The agent's own last words: where the builder named no step, they say what went wrong."""
        self.key = ""
        """The step that runs now."""
        self._plain = PlainReader(log) if buildkit else None
        self._is_building = False

    def read(self, line: str) -> None:
        """Take one line."""
        line = _COLOUR.sub("", line).rstrip("\r")
        if agent := _AGENT.fullmatch(line):
            self._agent(agent[1])
        elif self._plain is not None and self._is_building:
            self._plain.read(line)
        elif step := _STEP.fullmatch(line):
            self.key = step[2]
            self.log.step(self.key, f"[{step[1]}] {step[3]}")
        elif _FAILED_COMMAND.fullmatch(line):
            self.log.failed(self.key, line)
        elif _NOISE.fullmatch(line):
            self.log.detail(line)
        else:
            self.log.line(self.key, line)

    def _agent(self, words: str) -> None:
        if step := _AGENT_STEP.fullmatch(words):
            self.key, self._is_building = f"agent {step[1]}", step[1] == BUILD
            self.log.note(self.key, f"{step[1]} by ACR Tasks")
        else:
            self.last = words or self.last
            self.log.detail(words)
