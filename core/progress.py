"""How far a build is, for whoever wants to show it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Progress:
    """Receives what happens; this one shows nothing. Methods are called from one thread."""

    def step(self, name: str) -> None:
        """A step begins: `docker build`, `inspect`, `resolve`, `assemble`, `mirror`, `promote`, `register`, or one of
        a Docker build's own, by its title."""

    def planned(self, layers: int, download: int) -> None:
        """The image will have so many package layers; about so many bytes of wheels are still to be fetched."""

    def downloaded(self, size: int) -> None:
        """So many more bytes were fetched from package indexes."""

    def sent(self, size: int) -> None:
        """So many more bytes went to the registry."""

    def layer(self, title: str, size: int, reused: bool) -> None:
        """A layer is where it belongs."""

    def printed(self, line: str) -> None:
        """A step of a Dockerfile printed a line."""


SILENT = Progress()


_shown: ContextVar[Progress] = ContextVar("prefect_environments_progress", default=SILENT)


def current() -> Progress:
    """What the caller wants to see progress on; nothing unless `shown` says so."""
    return _shown.get()


@contextmanager
def shown(progress: Progress) -> Iterator[None]:
    """Show the progress of everything that is built inside this block."""
    token = _shown.set(progress)
    try:
        yield
    finally:
        _shown.reset(token)


class Both(Progress):
    """Hands everything on to two others."""

    def __init__(self, first: Progress, second: Progress) -> None:
        self._both = (first, second)

    def step(self, name: str) -> None:
        for one in self._both:
            one.step(name)

    def planned(self, layers: int, download: int) -> None:
        for one in self._both:
            one.planned(layers, download)

    def downloaded(self, size: int) -> None:
        for one in self._both:
            one.downloaded(size)

    def sent(self, size: int) -> None:
        for one in self._both:
            one.sent(size)

    def layer(self, title: str, size: int, reused: bool) -> None:
        for one in self._both:
            one.layer(title, size, reused)

    def printed(self, line: str) -> None:
        for one in self._both:
            one.printed(line)
