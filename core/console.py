"""Progress for people at a terminal: bars where there is one, plain lines where the output is a file or a log."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from prefect_environments.core.progress import Progress

_STEPS = {
    "docker build": "building the Dockerfile",
    "inspect": "looking at the base image",
    "mirror": "copying the image",
    "resolve": "resolving packages",
    "assemble": "assembling layers",
    "register": "registering the version",
}


def megabytes(size: float) -> str:
    """`12.3 MB`; bytes below a kilobyte as they are."""
    return f"{size:.0f} B" if size < 1000 else f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def console_progress(console: Console | None = None) -> "TerminalProgress | LineProgress":
    """The display that fits the output."""
    console = console or Console()
    return TerminalProgress(console) if console.is_terminal else LineProgress(console)


class LineProgress(Progress):
    """One readable line a step and a layer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self._started
        self._console.print(f"{seconds:6.1f} s  {text}", highlight=False, markup=False, soft_wrap=True)

    def step(self, name: str) -> None:
        self._line(_STEPS.get(name, name))

    def planned(self, layers: int, download: int) -> None:
        self._line(f"{layers} package layers, {megabytes(download)} of wheels to fetch")

    def layer(self, title: str, size: int, reused: bool) -> None:
        self._line(f"{'reused' if reused else 'built '}  {title} ({megabytes(size)})")


class TerminalProgress(Progress):
    """Bars of packages, of bytes fetched and of bytes sent; they vanish at the end."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TextColumn("{task.fields[amount]:>20}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._layers = self._bars.add_task("starting", total=None, amount="")
        self._fetched = self._bars.add_task("wheels fetched", total=None, visible=False, amount="")
        self._sent = self._bars.add_task("sent to the registry", total=None, visible=False, amount="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def step(self, name: str) -> None:
        self._bars.update(self._layers, description=_STEPS.get(name, name))

    def planned(self, layers: int, download: int) -> None:
        self._bars.update(self._layers, total=layers)
        self._bars.update(self._fetched, total=download or None, visible=download > 0)
        self._bars.update(self._sent, visible=True)

    def downloaded(self, size: int) -> None:
        self._add(self._fetched, size)

    def sent(self, size: int) -> None:
        self._add(self._sent, size)

    def layer(self, title: str, size: int, reused: bool) -> None:
        self._bars.advance(self._layers)
        task = next(task for task in self._bars.tasks if task.id == self._layers)
        self._bars.update(self._layers, amount=f"{task.completed:.0f} of {task.total or 0:.0f} packages")

    def _add(self, task_id: TaskID, size: int) -> None:
        self._bars.advance(task_id, size)
        task = next(task for task in self._bars.tasks if task.id == task_id)
        self._bars.update(task_id, amount=megabytes(task.completed))
