"""The launcher's end of the channel to a job: metrics and readiness come in, secrets and the word to start go out.

What a job sends is somebody else's input: requests are short, their number a second, the connections, and all that is
kept of them are bounded. A job may do badly by that, its launcher not.
"""

import asyncio
import hmac
import json
import logging
import math
import os
import secrets as tokens
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_environments.core.build.docker.client_config import hide
from prefect_environments.core.errors import PrefectEnvironmentsError, SecretError
from prefect_environments.core.jobs.inside import wire
from prefect_environments.core.jobs.outputs import PRECISE
from prefect_environments.core.redact import redact
from prefect_environments.core.secrets import SecretReference, SecretStore
from prefect_environments.core.secrets import resolve as resolve_secret

Value = int | float | str | bool

CONNECTIONS = 256
"""Connections of a job at one time, beside one for each node."""
RATE = 2000
"""Requests a second of a whole job; more are made to wait."""
NAMES, POINTS, SERIES = 1000, 50_000, 1000
"""Metrics of a job, all their values, and those of one metric that are kept: at most."""

_PATIENCE = 10.0  # seconds for a connection to say what it wants
_SECRET_SECONDS = 60.0
_WAIT_FOR_OTHERS = 60.0  # seconds more than a bootstrap may take, for containers to start
_LONGEST_NAME, _LONGEST_VALUE = 200, 1000
_BACKLOG = 1024

logger = logging.getLogger(__name__)


class _Refused(Exception):
    """What the job is told."""


@dataclass
class Metrics:
    """What a job logged, in bounded memory: the last value of each metric, and its series, thinned where it is long."""

    last: dict[str, Value] = field(default_factory=dict)
    _series: dict[str, list[Value]] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)
    _points: int = 0
    _full: bool = False

    def add(self, name: str, value: Value) -> None:
        """One more value of a metric."""
        if name not in self.last and len(self.last) >= NAMES:
            if not self._full:
                logger.warning("the job logs more than %d metrics; %s and others are not kept", NAMES, name)
            self._full = True
            return
        self.last[name] = value
        series, seen = self._series.setdefault(name, []), self._seen.get(name, 0)
        self._seen[name] = seen + 1
        stride = 1 << max(0, (seen // SERIES).bit_length())
        if seen % stride == 0 and self._points < POINTS:
            series.append(value)
            self._points += 1
        if len(series) > SERIES:
            self._points -= len(series) // 2
            del series[1::2]

    @property
    def series(self) -> dict[str, tuple[Value, ...]]:
        """The values of each metric that has several: of more than `SERIES`, every second, fourth … of them."""
        return {name: tuple(values) for name, values in self._series.items() if len(values) > 1}


@dataclass
class Channel:
    """What a launcher and its job tell each other. `allowed` are the secrets that the job may have, by name."""

    job: str
    secrets: SecretStore
    allowed: Mapping[str, SecretReference]
    nodes: int = 1
    bootstrap_seconds: float = 1800.0
    metrics: Metrics = field(default_factory=Metrics)
    _token: str = field(default="", repr=False)
    _connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _slot: float = 0.0
    _ready: dict[int, int] = field(default_factory=dict)
    _met: asyncio.Event = field(default_factory=asyncio.Event)
    _vault: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))

    @asynccontextmanager
    async def serve(self, folder: Path, host: str = "") -> AsyncIterator[None]:
        """Listen in `folder`, which is the caller's alone and which the job sees: on a socket there, or with `host`,
        the name by which the job reaches this machine, on a port of its loopback for those who know a token."""
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            described: dict[str, Any] = {"id": self.job}
            if host:
                self._token = tokens.token_urlsafe(32)
                server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=wire.LONGEST_REQUEST)
                described |= {"host": host, "port": server.sockets[0].getsockname()[1], "token": self._token}
            else:
                listener = _listen(place)
                server = await asyncio.start_unix_server(
                    self._serve, sock=listener, limit=wire.LONGEST_REQUEST, backlog=_BACKLOG
                )
            described_at = folder / wire.DESCRIPTION
            described_at.touch(mode=0o600)
            described_at.write_text(json.dumps(described), "utf-8")
            try:
                yield
            finally:
                server.close()
                self._met.set()  # for nodes that still wait
                for writer in list(self._writers):
                    writer.close()
        finally:
            with suppress(OSError):
                os.unlink(wire.SOCKET, dir_fd=place)
            os.close(place)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        self._writers.add(writer)
        try:
            try:
                busy = self._connections > CONNECTIONS + self.nodes
                answer = {"busy": True} if busy else await self._answer(reader)
            except _Refused as refusal:
                answer = {"error": str(refusal)}
            writer.write(json.dumps(answer).encode() + b"\n")
            async with asyncio.timeout(_PATIENCE):
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # it hung up, or does not read
        finally:
            self._connections -= 1
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_PATIENCE):
                line = await reader.readuntil(b"\n")
            request = json.loads(line)
        except (ValueError, RecursionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise _Refused("a request is one JSON object on a line of at most 64 KiB") from None
        if not isinstance(request, dict):
            raise _Refused("a request is a JSON object")
        if self._token and not hmac.compare_digest(
            str(request.get("token")).encode("utf-8", "replace"), self._token.encode()
        ):
            raise _Refused("the token is missing or wrong")
        await self._pace()
        match request.get("do"):
            case "log":
                return self._log(request.get("points"))
            case "secret":
                return await self._secret(request.get("name"))
            case "ready":
                return await self._meet(request.get("node"), request.get("code"))
        raise _Refused("this launcher does not know what is asked for")

    async def _pace(self) -> None:
        """Wait for one of the slots that a job has in a second; those of the last second may be used up at once."""
        now = time.monotonic()
        self._slot = max(self._slot, now - 1.0) + 1.0 / RATE
        await asyncio.sleep(max(0.0, self._slot - now))

    def _log(self, points: object) -> dict[str, Any]:
        if not isinstance(points, list):
            raise _Refused("points are pairs of a name and a value")
        plain = [_point(point) for point in points]
        for name, value in plain:
            self.metrics.add(name, value)
        return {}

    async def _secret(self, name: object) -> dict[str, Any]:
        reference = self.allowed.get(name) if isinstance(name, str) else None
        if reference is None:
            known = ", ".join(sorted(self.allowed)) or "none"
            raise _Refused(
                f"the secret {str(name)!r:.100} is not for this job, which may have: {known}. Add its reference to "
                "`secrets` of the job's config"
            )
        try:
            async with asyncio.timeout(_SECRET_SECONDS), self._vault:
                value = await resolve_secret(str(reference), self.secrets)
        except TimeoutError:
            raise _Refused(f"the secret {name!r} could not be looked up in {_SECRET_SECONDS:g} seconds") from None
        except PrefectEnvironmentsError as error:
            raise _Refused(str(error)) from None
        hide({}, {"": str(value)})  # a script may print it line by line
        return {"value": str(value)}

    async def _meet(self, node: object, code: object) -> dict[str, Any]:
        """Wait for all nodes, or for the first that failed."""
        if type(node) is not int or type(code) is not int or not 0 <= node < self.nodes or node in self._ready:
            raise _Refused("a node says once that it is ready, with its number and an exit status")
        self._ready[node] = code
        if code or len(self._ready) == self.nodes:
            self._met.set()
        try:
            async with asyncio.timeout(self.bootstrap_seconds + _WAIT_FOR_OTHERS):
                await self._met.wait()
        except TimeoutError:
            missing = sorted(set(range(self.nodes)) - self._ready.keys())
            raise _Refused(f"the nodes {', '.join(map(str, missing))} were not ready in time") from None
        failed = next(((number, status) for number, status in self._ready.items() if status), None)
        return {"failed": failed} if failed else {}


def allowed_secrets(named: tuple[str, ...], *variables: Mapping[str, str]) -> dict[str, SecretReference]:
    """The secrets that a job may ask for: those that its config names, and those of its variables, which it has anyway.

    Each by its name and by its whole reference. Raises `SecretError` for a malformed reference, and for two of one name
    in `named`.
    """
    found: dict[str, SecretReference] = {}
    for text in named:
        reference = SecretReference.parse(text)
        if found.setdefault(reference.name, reference) != reference:
            raise SecretError(f"two secrets are named {reference.name}: the job could not tell them apart")
    for text in (value for values in variables for value in values.values()):
        if SecretReference.is_reference(text):
            reference = SecretReference.parse(text)
            found.setdefault(reference.name, reference)
            found[str(reference)] = reference
    return found | {str(reference): reference for reference in list(found.values())}


def _listen(place: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # an address has 107 bytes at most, a path has more
        listener.bind(f"/proc/self/fd/{place}/{wire.SOCKET}")
    except BaseException:
        listener.close()
        raise
    return listener


def _point(point: object) -> tuple[str, Value]:
    match point:
        case [str(name), bool(value) | str(value)] if name.strip():
            pass
        case [str(name), int(value)] if name.strip():
            value = value if abs(value) <= PRECISE else str(value)
        case [str(name), float(value)] if name.strip():
            value = value if math.isfinite(value) else str(value)
        case _:
            raise _Refused("points are pairs of a name and a number, a truth value or a text")
    shown = redact("".join(letter if letter.isprintable() else " " for letter in name).strip())
    if isinstance(value, str):  # JSON can hold half a character, which nothing after us can write down
        value = redact(value.encode("utf-8", "replace").decode())[:_LONGEST_VALUE]
    return shown[:_LONGEST_NAME], value
