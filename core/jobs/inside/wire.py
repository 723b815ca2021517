"""The job's end of the channel to its launcher: a connection a request, one JSON object there, one back, a line each.

A connection for each request keeps threads and forked processes apart, and costs a fraction of a millisecond.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from typing import Any

VARIABLE = "PREFECT_ENVIRONMENTS_JOB"
"""The environment variable that names the job's folder."""
DESCRIPTION = "job.json"
"""The file in it that says who the job is, and where its launcher listens."""
SOCKET = "socket"
LONGEST_REQUEST = 64 * 1024
"""Bytes of a request. The launcher refuses longer ones."""

_LONGEST_ANSWER = 1024 * 1024
_PATIENCE = 60.0  # seconds
_ATTEMPTS = 100  # each waits a hundredth of a second longer than the one before: 50 seconds in all


class ChannelError(RuntimeError):
    """The launcher refused, or cannot be reached."""


def description(folder: str) -> dict[str, Any]:
    """What the launcher says of a job. Raises `ChannelError`."""
    try:
        with open(os.path.join(folder, DESCRIPTION), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            found: dict[str, Any] = json.load(file)
    except (OSError, ValueError) as error:
        raise ChannelError(f"{VARIABLE} is {folder!r}, where no job is described: {error}") from None
    return found


def ask(folder: str, request: dict[str, Any], seconds: float = _PATIENCE) -> dict[str, Any]:
    """The launcher's answer. Raises `ChannelError` for what it refuses, and where there is none in time."""
    known = description(folder)
    token = known.get("token")
    line = json.dumps({**request, "token": token} if token else request).encode() + b"\n"
    if len(line) > LONGEST_REQUEST:
        raise ChannelError(f"{len(line)} bytes are too many for one request; at most {LONGEST_REQUEST} are taken")
    for attempt in range(_ATTEMPTS):
        try:
            with _connect(folder, known, seconds) as connection:
                with suppress(BrokenPipeError):  # a busy launcher answers, and hangs up, without reading
                    connection.sendall(line)
                answer = dict(json.loads(_read(connection)))
        except (OSError, ValueError) as error:
            raise ChannelError(f"the launcher of this job gives no answer: {error}") from None
        if "error" in answer:
            raise ChannelError(str(answer["error"]))
        if "busy" not in answer:
            return answer
        time.sleep(0.01 * (attempt + 1))
    raise ChannelError("the launcher of this job has too much to do")


def _connect(folder: str, known: dict[str, Any], seconds: float) -> socket.socket:
    if known.get("port"):
        return socket.create_connection((known["host"], known["port"]), timeout=seconds)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection.settimeout(seconds)
        _patiently(connection, f"/proc/self/fd/{place}/{SOCKET}")  # an address has 107 bytes at most, a path has more
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(place)
    return connection


def _patiently(connection: socket.socket, address: str) -> None:
    """Connect, also while the launcher has more callers than it can take at once."""
    for attempt in range(_ATTEMPTS):
        try:
            return connection.connect(address)
        except BlockingIOError:
            time.sleep(0.01 * (attempt + 1))
    raise OSError("it has too much to do")


def _read(connection: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        piece = connection.recv(64 * 1024)
        if not piece:
            raise OSError("it hung up")
        found += piece
        if len(found) > _LONGEST_ANSWER:
            raise OSError("its answer is too long")
    return found
