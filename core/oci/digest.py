"""Digests (OCI image-spec, descriptor.md, "Digests"). Only sha256 is written; sha256 and sha512 are read."""

import hashlib
import re
from io import BufferedIOBase
from pathlib import Path

from prefect_environments.core.errors import ImageError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def check(text: str) -> str:
    """`text` if it is a well-formed digest of a known algorithm, else `ImageError`."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ImageError(f"not a digest: {text!r:.100}; expected sha256: and 64 lower-case hex digits")
    return text


def of(content: bytes) -> str:
    """The sha256 digest of `content`, as `sha256:<64 hex digits>`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def of_file(path: Path) -> str:
    """The sha256 digest of a file's bytes, read as a stream."""
    with path.open("rb") as file:
        return of_stream(file)


def of_stream(file: BufferedIOBase) -> str:
    """The sha256 digest of what is left in a binary stream."""
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def hex_of(digest: str) -> str:
    """The hex part of a digest, as used in an image layout's blob paths and in tags."""
    return check(digest).partition(":")[2]


def hasher(digest: str) -> "hashlib._Hash":
    """A fresh hash object of the digest's algorithm."""
    return hashlib.new(check(digest).partition(":")[0])
