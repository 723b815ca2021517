"""Masking of secret values: whatever was read as a secret is replaced wherever text leaves the process."""

import threading

MASK = "**********"
_SHORTEST = 4  # masking shorter values would garble ordinary text more than it hides

_lock = threading.Lock()
_values: set[str] = set()


def remember(value: str) -> None:
    """Register a secret value, so that `redact` masks it from now on in this process."""
    if len(value) >= _SHORTEST:
        with _lock:
            _values.add(value)


def redact(text: str) -> str:
    """`text` with every known secret value replaced by a mask, longest first."""
    with _lock:
        values = sorted(_values, key=len, reverse=True)
    for value in values:
        text = text.replace(value, MASK)
    return text
