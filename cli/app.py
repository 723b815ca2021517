"""All commands under one name, and what holds for each of them."""

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from prefect_environments.cli import INTERRUPTED
from prefect_environments.cli.build import build
from prefect_environments.cli.checks import diff, inspect, status, verify
from prefect_environments.cli.command import NAME, WRONG, Stopped
from prefect_environments.cli.labels import label
from prefect_environments.cli.life import archive, promote, prune, refresh, restore
from prefect_environments.cli.look import list_, show
from prefect_environments.cli.output import write_error

_HELP = """Turn ML environment definitions into ready, pinned, registered images, and look after them.

A WORKSPACE is where images and versions are kept: a folder, which needs no server, or a saved Environments Workspace
block of the Prefect API. --workspace names it; else the variable PREFECT_ENVIRONMENTS_WORKSPACE, Azure ML's
config.json here or in a folder above, and last the block "default".

Commands work in this process, without a flow run. To have a run in the Prefect UI, with its logs and artifacts, run
a flow's deployment:

\b
  prefect deployment run build-environment/build-environment
"""

_EPILOG = """\b
Exit codes:
  0    fine
  1    what was asked for failed, or is not as it should be
  2    wrong usage or input; nothing was done (of diff: any trouble)
  130  interrupted; nothing half done is left

\b
Results go to standard output, progress and errors to standard error.
Where the output is no terminal, tables are lines of fields separated by
tabs; --json gives one JSON document. NO_COLOR=1 switches colours off.
"""


class _InOrder(click.Group):
    """Lists commands as they were added: first what comes first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    name=NAME,
    cls=_InOrder,
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name=NAME, prog_name=NAME)
def cli() -> None:
    pass


for _command in (
    *(build, list_, show, diff, verify, status, inspect),
    *(label, refresh, promote, prune, archive, restore),
):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """See `prefect_environments.cli.main`."""
    _make_writable()
    try:
        with _stoppable():
            code = cli.main(arguments, prog_name=NAME, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # of click 8.2
            click.echo(error.format_message(), err=True)
            return WRONG
        path = error.ctx.command_path if error.ctx else NAME
        write_error(f"{error.format_message()} ({path} --help tells more)")
        return WRONG
    except click.ClickException as error:
        write_error(error.format_message())
        return error.exit_code
    except click.Abort:
        return INTERRUPTED


def _make_writable() -> None:
    """What standard output's encoding lacks is escaped, and nowhere to write to is no reason to stop."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python does it for standard error
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until we end


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, by which CI stops a job, cleans up as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
