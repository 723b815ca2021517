"""What every command has: a workspace, `--json`, one line for an error, and an exit code."""

import errno
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prefect_environments.cli import INTERRUPTED
from prefect_environments.core.errors import DefinitionError, PrefectEnvironmentsError

if TYPE_CHECKING:
    from prefect_environments.cli.output import Part
    from prefect_environments.core.progress import Progress
    from prefect_environments.core.site import Site
    from prefect_environments.core.workspace import Workspace

NAME = "prefect-environments"
FAILED, WRONG, STOPPED, PIPE_CLOSED = 1, 2, 143, 141

_T = TypeVar("_T")


class Stopped(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


@dataclass(frozen=True, slots=True)
class Session:
    """One command's run: the options that all have, and where its result goes."""

    named: str
    as_json: bool
    quiet: bool

    def workspace(self, *, create: bool = False) -> "Workspace":
        """The workspace that is meant; a folder is only made where `create` says so. Raises `DefinitionError`."""
        from prefect_environments.cli.workspaces import find_workspace

        return find_workspace(self.named, create=create, quiet=self.quiet)

    def at(
        self,
        workspace: "Workspace",
        work: "Callable[[Site], Awaitable[_T]]",
        progress: "Progress | None" = None,
    ) -> _T:
        """Open the workspace's registry, do the work, close it, give the result."""
        from prefect_environments.core import loop
        from prefect_environments.core.progress import SILENT
        from prefect_environments.core.site import open_site

        async def opened() -> _T:
            async with open_site(workspace, progress=progress or SILENT) as site:
                return await work(site)

        return loop.run(opened())

    def tell(self, document: dict[str, Any], *parts: "Part") -> None:
        """The result on standard output: the document with `--json`, else the parts for readers."""
        from prefect_environments.cli import output

        if self.as_json:
            output.write_json(document)
        else:
            output.write(parts)


class Command(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: tuple[str, ...], codes: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self._codes = codes

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        with formatter.section("Exit codes"):
            formatter.write_text(self._codes)


_COMMON = (
    click.Option(
        ["-w", "--workspace", "named"],
        metavar="NAME|FOLDER",
        envvar="PREFECT_ENVIRONMENTS_WORKSPACE",
        default="",
        help="A folder (./environments), or the name of an Environments Workspace block.",
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="One JSON document on standard output."),
    click.Option(["-q", "--quiet"], is_flag=True, help="No progress."),
    click.Option(["--debug"], is_flag=True, help="Tracebacks, and what is logged on the way."),
)


def command(
    name: str,
    short: str,
    *examples: str,
    trouble: int = FAILED,
    codes: str = "0 fine, 1 it failed, 2 wrong usage or input, 130 interrupted.",
) -> Callable[[Callable[..., int]], Command]:
    """Make a command of a function that takes a `Session` first and gives the exit code. Its docstring is the help,
    `short` a line of it for the list of commands; `trouble` is the exit code of errors."""

    def made(function: Callable[..., int]) -> Command:
        @functools.wraps(function)
        def called(named: str, as_json: bool, quiet: bool, debug: bool, **arguments: Any) -> int:
            session = Session(named, as_json, quiet)
            return _guarded(lambda: function(session, **arguments), session, debug, trouble)

        own = reversed(getattr(function, "__click_params__", []))
        return Command(
            name,
            callback=called,
            params=[*own, *_COMMON],
            help=inspect.getdoc(function),
            short_help=short,
            examples=examples,
            codes=codes,
        )

    return made


def _guarded(work: Callable[[], int], session: Session, debug: bool, trouble: int) -> int:
    """The exit code of the work, whatever happens; an error becomes a line."""
    from prefect_environments.cli.output import hear

    try:
        with hear(debug=debug):
            code = work()
            sys.stdout.flush()
        return code
    except click.ClickException:
        raise
    except KeyboardInterrupt as error:
        click.echo("interrupted; nothing half done is left", err=True)
        return STOPPED if isinstance(error, Stopped) else INTERRUPTED
    except BrokenPipeError:  # who reads it has seen enough
        _write_no_more()
        return PIPE_CLOSED
    except PrefectEnvironmentsError as error:
        wrong = WRONG if isinstance(error, DefinitionError) else trouble
        return _failed(error, str(error), session, debug, wrong)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        reason = error.strerror or os.strerror(error.errno or errno.EIO)
        return _failed(error, f"{reason}{place}", session, debug, trouble)
    except Exception as error:
        told = f"unexpected {type(error).__name__}: {error} (this is a defect; --debug shows where)"
        return _failed(error, told, session, debug, trouble)


def _failed(error: Exception, told: str, session: Session, debug: bool, code: int) -> int:
    from prefect_environments.cli import output

    if debug:
        click.echo(output.masked("".join(traceback.format_exception(error))), err=True, nl=False)
    output.write_error(told)
    if session.as_json:
        try:
            output.write_json({"error": {"kind": type(error).__name__, "message": told}})
            sys.stdout.flush()
        except OSError:  # perhaps the very error: the disk is full
            _write_no_more()
    return code


def _write_no_more() -> None:
    """Drop what is left for standard output, or its last flush complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def existing(path: str) -> Path:
    """A path that the user gave. Raises `DefinitionError` where nothing is."""
    found = Path(path).expanduser()
    if not found.exists():
        raise DefinitionError(f"there is no file or folder {path!r:.300}; correct the path")
    return found
