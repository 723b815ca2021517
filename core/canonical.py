"""One spelling for JSON whose digest counts: sorted keys, no white space, ASCII (the idea of RFC 8785)."""

import hashlib
import json
from typing import Any


def dumps(value: Any) -> bytes:
    """The canonical JSON bytes of `value`: strings, whole numbers, booleans, null, lists and objects of them."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(value: Any) -> str:
    """The sha256 digest of the canonical JSON, as `sha256:<64 hex digits>`."""
    return f"sha256:{hashlib.sha256(dumps(value)).hexdigest()}"
