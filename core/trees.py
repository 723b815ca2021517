"""What a local source tree is, as one digest: names, kinds and contents, not where it lies or when it was written."""

import os
import stat
from pathlib import Path

from prefect_environments.core import canonical
from prefect_environments.core.oci import digest as digests

LEFT_OUT = frozenset((".git", ".hg", ".svn", "__pycache__", ".venv", ".tox", ".nox", ".mypy_cache", ".ruff_cache"))
"""Folders that are no part of a source: version control, caches, virtual environments."""


def digest(folder: Path) -> str:
    """The digest of all files and links below `folder`, as `sha256:<64 hex digits>`.

    A file counts by its path, its content and whether its owner may execute it; a link by its path and its text.
    Empty folders, times and owners don't count. Raises `OSError` for what cannot be read.
    """
    entries = []
    for root, folders, names in os.walk(folder, onerror=_raise):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in LEFT_OUT and name not in links]
        for path in (here / name for name in (*names, *links)):
            if entry := _entry(path):
                entries.append([path.relative_to(folder).as_posix(), *entry])
    return canonical.digest(sorted(entries))


def _entry(path: Path) -> tuple[str, str] | None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "link", str(path.readlink())
    if stat.S_ISREG(mode):
        return "executable" if mode & stat.S_IXUSR else "file", digests.of_file(path)
    return None  # a pipe or a socket holds nothing that a build could take


def _raise(error: OSError) -> None:
    raise error
