"""Content of uploads: bytes or a file, sent in pieces, any number of times."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from prefect_environments.core.errors import DigestMismatch, PrefectEnvironmentsError, StorageError

_READ = 1024 * 1024
_PIECE = 256 * 1024  # small enough that a slow line shows progress within the time limit


class Content:
    """A request body. `on_bytes` gets the number of bytes of each piece that was handed to the socket, and a
    negative number when sending starts again, so that its sum is always what was sent of the present try."""

    def __init__(self, content: Path | bytes, size: int, what: str, on_bytes: Callable[[int], None]) -> None:
        self.size = size
        self.failure: PrefectEnvironmentsError | None = None
        self._content = content
        self._what = what
        self._on_bytes = on_bytes
        self._reported = 0

    def check_size(self) -> None:
        """Raise `DigestMismatch` or `StorageError` if the content is not there in its full size."""
        try:
            found = len(self._content) if isinstance(self._content, bytes) else self._content.stat().st_size
        except OSError as error:
            raise StorageError(f"{self._what} cannot be read from {self._content!s:.200}: {error.strerror}") from error
        if found != self.size:
            raise DigestMismatch(f"{self._what} has {found} bytes, but its descriptor says {self.size}")

    async def pieces(self, on_progress: Callable[[bool], None]) -> AsyncIterator[bytes]:
        """The bytes from the start; what goes wrong with them is kept in `failure`."""
        self.restart()
        async for block in self._blocks():
            for start in range(0, len(block), _PIECE):
                on_progress(False)
                piece = block[start : start + _PIECE]
                yield piece
                self._reported += len(piece)
                self._on_bytes(len(piece))
        on_progress(True)

    def restart(self) -> None:
        """Take back what was reported of the try before."""
        if self._reported:
            self._on_bytes(-self._reported)
            self._reported = 0

    async def _blocks(self) -> AsyncIterator[bytes]:
        if isinstance(self._content, bytes):
            yield self._content
            return
        try:
            file = await asyncio.to_thread(self._content.open, "rb", 0)
            with file:
                left = self.size
                while left:
                    block = await asyncio.to_thread(file.read, min(_READ, left))
                    if not block:
                        raise DigestMismatch(f"{self._what} became shorter while it was sent, by {left} bytes")
                    left -= len(block)
                    yield block
        except DigestMismatch as error:
            self.failure = error
            raise
        except OSError as error:
            self.failure = StorageError(f"{self._what} cannot be read from {self._content}: {error.strerror}")
            raise
