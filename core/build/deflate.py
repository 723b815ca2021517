"""gzip members by a compressor, for content that comes to us uncompressed: bytecode, conda packages, Docker layers.

What a compressor writes depends on its version, so libdeflate comes from one pinned release of its binding
(`deflate`), whose wheels carry it, and the recipe's `CODEC` names it wherever its bytes count. Level 1: twice as fast
as level 6 for 7 % more bytes of bytecode.
"""

import zlib
from importlib.metadata import version

from deflate import deflate_compress

from prefect_environments.core.build import gzip, recipe
from prefect_environments.core.errors import BuildError

_LEVEL = 1


def member(content: bytes) -> bytes:
    """`content` as one whole gzip member (RFC 1952). It is held in memory: give at most some megabytes."""
    return gzip.HEADER + bytes(deflate_compress(content, _LEVEL)) + gzip.trailer(zlib.crc32(content), len(content))


def check() -> None:
    """Raise `BuildError` where another release of the codec is installed than the one that names the layers."""
    found = f"deflate {version('deflate')}, level {_LEVEL}"
    if found != recipe.CODEC:
        raise BuildError(
            f"the installed codec is {found!r}, but layers are named after {recipe.CODEC!r}, and equal names must be "
            f"equal bytes: install deflate=={recipe.CODEC.split()[1].rstrip(',')}"
        )
