"""Reading: files within files, options in their order, one result."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect_environments.core.errors import RequirementsError
from prefect_environments.core.formats.requirements import options as option_table
from prefect_environments.core.formats.requirements import reference
from prefect_environments.core.formats.requirements.model import Requirements
from prefect_environments.core.formats.requirements.text import Line, decode, logical_lines

FILE_LIMIT = 10 * 1024 * 1024
"""Bytes of a file, and characters of lines given to `parse`."""
DEPTH_LIMIT = 20
FILES_LIMIT = 1_000
"""Files read in all: a few files that name each other twice would otherwise be read millions of times."""


def read(path: Path) -> Requirements:
    """The requirements of a file and of every file that it names by `-r` or `-c`, relative to the file that names it.

    Raises `RequirementsError`, naming file and line, for what cannot be read, holds credentials or needs a build.
    """
    path = Path(path)
    reader = _Reader()
    reader.read_file(_absolute(path), None, (), origin=str(path), constraint=False)
    return reader.result()


def parse(lines: Iterable[str], *, origin: str = "requirements", folder: Path | None = None) -> Requirements:
    """The same for lines given in Python or a form; an item may hold several lines.

    Nested files and relative paths count from `folder`, and are refused without one. Messages name `origin:line`.
    """
    items = [lines] if isinstance(lines, str) else list(lines)
    wrong = [item for item in items if not isinstance(item, str)]
    if wrong:
        raise RequirementsError(f"{origin}: requirements must be text, got an item of type {type(wrong[0]).__name__}")
    if sum(map(len, items)) > FILE_LIMIT:
        raise RequirementsError(f"{origin}: more than {FILE_LIMIT:,} characters of requirements; split them")
    reader = _Reader()
    physical = [line for item in items for line in item.removeprefix("\ufeff").splitlines()]
    reader.take_all(physical, origin, _absolute(folder) if folder else None, (), constraint=False)
    return reader.result()


class _Reader:
    """What was found so far, over all files."""

    def __init__(self) -> None:
        self.packages: set[str] = set()
        self.constraints: set[str] = set()
        self.index_url: str | None = None
        self.extra_index_urls: dict[str, None] = {}  # ordered, each once
        self.find_links: dict[str, None] = {}
        self.only_binary: set[str] = set()
        self.flags: set[str] = set()
        self.warnings: dict[str, None] = {}
        self.files = 0

    def result(self) -> Requirements:
        no_index = "no_index" in self.flags  # as in pip, it outweighs every index, wherever it stands
        return Requirements(
            packages=tuple(sorted(self.packages)),
            constraints=tuple(sorted(self.constraints)),
            index_url=None if no_index else self.index_url,
            extra_index_urls=() if no_index else tuple(self.extra_index_urls),
            find_links=tuple(self.find_links),
            no_index=no_index,
            pre="pre" in self.flags,
            only_binary=tuple(sorted(self.only_binary)),
            require_hashes="require_hashes" in self.flags or any(" --hash=" in line for line in self.packages),
            warnings=tuple(self.warnings),
        )

    def read_file(
        self, path: Path, named_by: Line | None, chain: tuple[Path, ...], *, origin: str = "", constraint: bool
    ) -> None:
        """Read one file; `chain` holds the files that led to it, outermost first; `origin` is its name in errors."""
        self.files += 1
        origin, chain = origin or str(path), (*chain, path)
        problem = self._nesting_problem(chain)
        content, problem = (b"", problem) if problem else _content(path)
        if problem:
            shown = " -> ".join(os.path.relpath(file, chain[0].parent) for file in chain) if named_by else origin
            problem = f"{problem}: {shown}"
            raise named_by.refused(problem) if named_by else RequirementsError(f"cannot read requirements: {problem}")
        self.take_all(decode(content, origin).splitlines(), origin, path.parent, chain, constraint=constraint)

    def _nesting_problem(self, chain: tuple[Path, ...]) -> str:
        if os.path.realpath(chain[-1]) in map(os.path.realpath, chain[:-1]):
            return "the file leads back to itself, remove one of the -r or -c lines"
        if len(chain) > DEPTH_LIMIT + 1:
            return f"files are nested deeper than {DEPTH_LIMIT}, merge some"
        if self.files > FILES_LIMIT:
            return f"more than {FILES_LIMIT:,} files are named in all, merge some"
        return ""

    def take_all(
        self, lines: Iterable[str], origin: str, folder: Path | None, chain: tuple[Path, ...], *, constraint: bool
    ) -> None:
        for line in logical_lines(lines, origin):
            text, options = option_table.split(line)
            for option in options.keys() & option_table.IGNORED.keys():
                self.warnings[f"{line.place}: {option_table.IGNORED[option]}"] = None
            if text:
                self._add(line, reference.requirement(line, text, folder), options, constraint=constraint)
            else:
                self._apply(line, options, folder, chain, constraint=constraint)

    def _add(self, line: Line, found: str, options: dict[str, Any], *, constraint: bool) -> None:
        if constraint and (problem := _constraint_problem(found)):
            raise line.refused(problem)
        target = self.constraints if constraint else self.packages
        target.add(found + reference.hashes(line, options.get("hash", [])))

    def _apply(
        self, line: Line, options: dict[str, Any], folder: Path | None, chain: tuple[Path, ...], *, constraint: bool
    ) -> None:
        """The options of a line without a requirement."""
        editables = options.get("editable", [])
        if "hash" in options and not editables:
            raise line.refused("--hash belongs to a requirement; write it on the requirement's line")
        for value in editables:
            if constraint:
                raise line.refused("a constraint cannot be editable; write name==version")
            found = reference.requirement(line, value, folder, editable=True)
            self._add(line, found, options, constraint=False)
            self.warnings[f"{line.place}: -e is read as an ordinary requirement: an image has no editable installs"] = (
                None
            )
        if index := options.get("index_url"):
            self.index_url = _index(line, index, folder)
        self.extra_index_urls |= {_index(line, url, folder): None for url in options.get("extra_index_url", [])}
        self.find_links |= {_index(line, url, folder): None for url in options.get("find_links", [])}
        for value in options.get("only_binary", []):
            self._limit_to_wheels(line, value)
        self.flags |= {flag for flag in ("no_index", "pre", "require_hashes") if options.get(flag)}
        for option in ("requirement", "constraint"):  # as in pip, -r within a constraints file installs
            for value in options.get(option, []):
                self.read_file(_nested(line, value, folder), line, chain, constraint=option == "constraint")

    def _limit_to_wheels(self, line: Line, value: str) -> None:
        """`--only-binary`, as pip reads it: `:none:` forgets what came before, `:all:` covers every name."""
        for part in value.split(","):
            if part == ":none:":
                self.only_binary.clear()
            elif part == ":all:" or ":all:" in self.only_binary:
                self.only_binary = {":all:"}
            else:
                self.only_binary.add(reference.name(line, part.strip()))


def _constraint_problem(found: str) -> str:
    name, at, _ = found.partition(" @ ")
    if not at and ":" in name:
        name = name.partition("#egg=")[2]
        if not name:
            return "a constraint needs a name; write name @ URL"
    if "[" in name.partition(";")[0]:
        return "a constraint cannot have extras; name the package without them"
    return ""


def _index(line: Line, value: str, folder: Path | None) -> str:
    url = reference.location(line, value, folder)
    if not url.lower().startswith(("https:", "http:", "file:")):
        raise line.refused("an index or a place of links is an https:, http: or file: URL, or a folder")
    return url


def _nested(line: Line, value: str, folder: Path | None) -> Path:
    if folder is None:
        raise line.refused("it names a file, and lines that come without a folder cannot; write its lines instead")
    if value.lower().startswith("file:"):
        value = reference.local_path(line, value)[0]
    elif "://" in value:
        raise line.refused("a file at a URL may change unseen; download it, and name the copy")
    return Path(os.path.normpath(folder / value))


def _absolute(path: Path) -> Path:
    try:
        if "\0" not in str(path):
            return path.absolute()
    except OSError:  # the current folder is gone
        pass
    raise RequirementsError(f"cannot read requirements: {str(path)!r:.200} is no usable path; write an absolute one")


def _content(path: Path) -> tuple[bytes, str]:
    """The file's bytes, or why there are none; a pipe or device could block for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b"", "it is not a regular file, name a file of requirements"
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT + 1)
    except FileNotFoundError:
        return b"", "there is no such file, correct its path or add it"
    except (OSError, ValueError) as error:
        return b"", f"the file cannot be read ({error.strerror if isinstance(error, OSError) else 'not a path'})"
    return (b"", f"the file is larger than {FILE_LIMIT:,} bytes") if len(content) > FILE_LIMIT else (content, "")
