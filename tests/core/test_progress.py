"""Progress: who sees it, in which form, and that nobody sees it unasked."""

import asyncio
import io
from contextvars import copy_context

import pytest
from rich.console import Console

from prefect_environments.core.console import LineProgress, TerminalProgress, console_progress, megabytes
from prefect_environments.core.progress import SILENT, Both, Progress, current, shown


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def step(self, name: str) -> None:
        self.calls.append(("step", name))

    def planned(self, layers: int, download: int) -> None:
        self.calls.append(("planned", layers, download))

    def downloaded(self, size: int) -> None:
        self.calls.append(("downloaded", size))

    def sent(self, size: int) -> None:
        self.calls.append(("sent", size))

    def layer(self, title: str, size: int, reused: bool) -> None:
        self.calls.append(("layer", title, size, reused))

    def printed(self, line: str) -> None:
        self.calls.append(("printed", line))


def a_build(progress: Progress) -> None:
    progress.step("resolve")
    progress.printed("made")
    progress.planned(2, 3_000_000)
    progress.downloaded(3_000_000)
    progress.sent(1_500_000)
    progress.layer("numpy 2.0", 1_500_000, False)
    progress.layer("pip 25.0", 900, True)


def test_both_hand_everything_on() -> None:
    one, two = Told(), Told()
    a_build(Both(one, two))
    assert one.calls == two.calls
    assert {call[0] for call in one.calls} == {name for name in vars(Progress) if not name.startswith("_")}


def test_progress_is_shown_inside_its_block_only_and_also_after_an_error() -> None:
    outer, inner = Told(), Told()
    assert current() is SILENT
    with shown(outer):
        with pytest.raises(RuntimeError), shown(inner):
            assert current() is inner
            raise RuntimeError
        assert current() is outer
    assert current() is SILENT


async def test_two_builds_at_once_see_their_own_progress() -> None:
    async def build(mine: Progress) -> bool:
        with shown(mine):
            await asyncio.sleep(0)
            return current() is mine and await asyncio.to_thread(copy_context().run, current) is mine

    assert all(await asyncio.gather(build(Told()), build(Told())))


def test_a_file_gets_one_readable_line_a_step_and_a_layer() -> None:
    """No bars and no escape sequences, brackets as they are, and no line is broken."""
    out = io.StringIO()
    with console_progress(Console(file=out, width=20)) as progress:
        assert isinstance(progress, LineProgress)
        a_build(progress)
        progress.layer("2 packages: [a], b and more than fits in a narrow line", 12, False)
    lines = [line.partition(" s  ")[2] for line in out.getvalue().splitlines()]
    assert lines == [
        "resolving packages",
        "2 package layers, 3.0 MB of wheels to fetch",
        "built   numpy 2.0 (1.5 MB)",
        "reused  pip 25.0 (900 B)",
        "built   2 packages: [a], b and more than fits in a narrow line (12 B)",
    ]
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_bars_of_packages_and_bytes() -> None:
    out = io.StringIO()
    with console_progress(Console(file=out, force_terminal=True, width=120)) as progress:
        assert isinstance(progress, TerminalProgress)
        a_build(progress)
    for text in ("resolving packages", "2 of 2 packages", "3.0 MB", "1.5 MB"):
        assert text in out.getvalue()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (1_000_000, "1.0 MB"), (2.5e9, "2500.0 MB")],
)
def test_sizes_are_in_units_of_a_thousand(size: float, text: str) -> None:
    assert megabytes(size) == text
