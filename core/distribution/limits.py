"""How patient the client of a registry is, and how much it does at once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient the client is, and how much it does at once. Times are in seconds."""

    connect: float = 10.0
    """To open a connection, TLS included."""
    stall: float = 60.0
    """Without any progress on a socket."""
    commit: float = 300.0
    """For the answer after a body was sent: a registry may copy a big blob to its storage first."""
    answer: float = 120.0
    """For a whole answer other than a blob, which is small: one that trickles in without an end is given up."""
    attempts: int = 5
    """Tries of a step that may be repeated, the first included."""
    backoff: float = 0.25
    """Before the first repetition; doubled each time up to 8 s, with jitter."""
    transfers: int = 8
    """Blob uploads at once, and as many downloads."""
    requests: int = 16
    """Requests at once."""
