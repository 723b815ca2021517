"""The pip section of a conda environment file: requirement lines that stay as written, paths in them made absolute."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from shlex import quote

from prefect_environments.core.errors import RequirementsError
from prefect_environments.core.formats import requirements as requirements_format
from prefect_environments.core.formats.requirements import Requirements
from prefect_environments.core.formats.requirements import options as option_table
from prefect_environments.core.formats.requirements.text import Line, logical_lines

_FILES = {"requirement": "-r", "constraint": "-c"}


def read(
    text: str, origin: str, line: int, folder: Path | None, *, check_files: bool = True
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The requirement lines in one item of a pip section, and warnings about them.

    Comments go, what is a file or a folder is named by its absolute path, everything else stays as it is written.
    Raises `RequirementsError`, naming `origin:line`, for what pip cannot read or what holds credentials. Without
    `check_files`, files that `-r` and `-c` name may be missing: they are asked for when the environment is defined.
    """
    try:
        lines, warnings = list[str](), list[str]()
        for found in logical_lines(text.removeprefix("\ufeff").splitlines(), origin):
            kept, said = _read(found, folder, check_files=check_files)
            lines += kept
            warnings += said
    except RequirementsError as error:
        raise RequirementsError(_placed(str(error), origin, line)) from None
    return tuple(lines), tuple(_placed(warning, origin, line) for warning in warnings)


def lines_of(found: Requirements) -> tuple[str, ...]:
    """Requirement lines that read back as `found`, constraints left out: a line cannot hold them."""
    options = [f"--index-url {quote(found.index_url)}"] if found.index_url else []
    options += [f"--extra-index-url {quote(url)}" for url in found.extra_index_urls]
    options += [f"--find-links {quote(url)}" for url in found.find_links]
    options += ["--no-index"] if found.no_index else []
    options += ["--pre"] if found.pre else []
    options += [f"--only-binary {','.join(found.only_binary)}"] if found.only_binary else []
    hashed = any(" --hash=" in line for line in found.packages)
    options += ["--require-hashes"] if found.require_hashes and not hashed else []
    return (*options, *found.packages)


def expand(lines: Iterable[str], origin: str) -> Requirements:
    """The requirements of lines that `read` gave, nested files read. Raises `RequirementsError`."""
    return requirements_format.parse(lines, origin=origin, folder=Path("/"))


def limited(found: Requirements, constraints: tuple[str, ...]) -> Requirements:
    """`found` with more limits on versions."""
    return replace(found, constraints=tuple(sorted({*found.constraints, *constraints})))


def _read(line: Line, folder: Path | None, *, check_files: bool) -> tuple[list[str], tuple[str, ...]]:
    _, options = option_table.split(line)
    named = [(flag, value) for option, flag in _FILES.items() for value in options.get(option, [])]
    if named and folder is not None:
        if len(options.keys() | {"-"}) != 2:
            raise line.refused("-r and -c stand on a line of their own; split the line")
        kept = [f"{flag} {quote(str(_path(value, folder)))}" for flag, value in named]
        missing = [value for _, value in named if not _path(value, folder).is_file()]
        if missing and not check_files:
            return kept, (f"{line.place}: there is no file {missing[0]!r:.200} yet; it is needed to build",)
        return kept, _parsed(line, folder).warnings
    found = _parsed(line, folder)
    if found.find_links:
        return [f"--find-links {url}" for url in found.find_links], found.warnings
    local = [package for package in found.packages if "file:" in package]
    return local or [line.written], found.warnings


def _parsed(line: Line, folder: Path | None) -> Requirements:
    return requirements_format.parse([line.written], origin=line.origin, folder=folder)


def _path(value: str, folder: Path) -> Path:
    return folder.absolute() / value.removeprefix("file://")


def _placed(message: str, origin: str, line: int) -> str:
    return message.replace(f"{origin}:1:", f"{origin}:{line}:", 1)
