"""The command line `prefect-environments`, also `python -m prefect_environments`: thin over `core`.

It starts no flow, and loads Prefect only where the workspace is a block. What a command needs is imported when it runs,
so that help comes at once.
"""

import gc
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of `sys.argv`; gives its exit code."""
    try:
        from prefect_environments.cli.app import run

        return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def script() -> int:
    """`main` as the only work of its process, which ends without a last look of the collector at what was imported."""
    collect_seldom()
    try:
        return main()
    finally:
        gc.freeze()


def collect_seldom() -> None:
    """Let the garbage collector look seldom: what it would walk is mostly what was imported, which stays, and that
    takes longer than a short command."""
    gc.set_threshold(20_000, 20, 20)
