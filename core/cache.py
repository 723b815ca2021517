"""The local cache's size limit: what was not used for the longest goes first.

Every entry is something that is made or fetched again where it is missing. What somebody has locked (an environment in
which a job runs, a file that is being written) stays, and so does what was used in the last day: a build that found a
file there may not have read it yet, and file systems note reads only once a day (`relatime`).
"""

import fcntl
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from prefect_environments.core.errors import DefinitionError

VARIABLE = "PREFECT_ENVIRONMENTS_CACHE_SIZE"
DEFAULT = 20 * 1000**3
"""Bytes."""

EVERY = 3600.0
"""Seconds between two looks at the cache's size."""
IN_USE = 25 * 3600.0
"""Seconds since the last use in which nothing is removed."""

_FILES = ("wheels", "built", "conda")
"""Folders of files, each an entry."""
_FOLDERS = ("private-wheels", "named", "environments")
"""Folders of folders, each an entry."""
_UV = "uv"
"""uv's own cache, which makes local environments, is one entry: its parts name each other, and uv fails where one of
them is gone. It locks the file `.lock` in it while it works."""
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kMGT])(i?)B?|B?)\s*")
_UNITS = {None: 0, "k": 1, "M": 2, "G": 3, "T": 4}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    size: int
    used: float


def limit() -> int:
    """The cache's size limit in bytes: `PREFECT_ENVIRONMENTS_CACHE_SIZE` (such as `20GB` or `500 MiB`), else 20 GB.

    Raises `DefinitionError` for what is no size.
    """
    text = os.environ.get(VARIABLE, "")
    if not text.strip():
        return DEFAULT
    found = _SIZE.fullmatch(text)
    if found is None:
        raise DefinitionError(f"{VARIABLE} is {text!r:.100}, which is no size; write 20GB, 500MB or 10GiB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit])


def trim_now_and_then(cache: Path, most: int) -> int:
    """`trim` at most once an hour on this machine, for the end of a build; gives the bytes. Failures are logged."""
    mark = cache / ".trimmed"
    try:
        if not cache.is_dir() or (mark.exists() and time.time() - mark.stat().st_mtime < EVERY):
            return 0
        with suppress(OSError):  # a full disk takes no new file, and is what this is for
            mark.touch()
            os.utime(mark)
        return trim(cache, most)
    except OSError as error:
        logger.warning("the cache %s could not be brought to its size: %s", cache, error.strerror)
        return 0


def trim(cache: Path, most: int, *, in_use: float = IN_USE) -> int:
    """Remove what was used the longest ago until the cache has at most `most` bytes; gives the bytes removed.

    What was used in the last `in_use` seconds stays, even if it is too much, and so does what is another user's.
    Raises `OSError`.
    """
    with ExitStack() as stack:
        guard = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)  # the folder itself: a full disk takes no lock file
        stack.callback(os.close, guard)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0  # another process does it
        entries = sorted(_entries(cache), key=lambda entry: entry.used)
        total, removed, before = sum(entry.size for entry in entries), 0, time.time() - in_use
        for entry in entries:
            if total - removed <= most or entry.used > before:
                break
            removed += entry.size if _remove(entry, before) else 0
    if removed:
        logger.info("removed %.1f MB of the cache %s, which may have %.1f MB", removed / 1e6, cache, most / 1e6)
    return removed


def _entries(cache: Path) -> Iterator[_Entry]:
    for names, whole in ((_FILES, False), (_FOLDERS, True)):
        for place in filter(Path.is_dir, (cache / name for name in names)):
            for path in place.iterdir():
                if path.suffix in (".lock", ".used") or path.name.startswith("tmp-"):
                    continue
                with suppress(OSError):
                    if path.is_dir() and not path.is_symlink() if whole else path.is_file():
                        yield _entry(path)
    if (cache / _UV).is_dir():
        with suppress(OSError):
            yield _entry(cache / _UV)


def _entry(path: Path) -> _Entry:
    """A file or a folder. Of a file with several names, which free nothing one by one, each counts in part."""
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    size, marks = 0, [0.0]
    for one in paths:
        with suppress(FileNotFoundError):
            found = one.lstat()
            size += found.st_blocks * 512 // max(1, found.st_nlink)
            marks.append(found.st_mtime)
            if stat.S_ISREG(found.st_mode):
                marks.append(found.st_atime)
    return _Entry(path, size, max(marks))


def _remove(entry: _Entry, before: float) -> bool:
    """Remove one entry, unless somebody holds it or used it since it was looked at."""
    path = entry.path
    with ExitStack() as stack, suppress(OSError):  # gone already, or another user's
        for lock in _locks(path):
            try:
                fcntl.flock(stack.enter_context(lock.open("ab")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        if _entry(path).used > before:
            return False
        doomed = [path]
        if path.name == _UV:  # what names others (wheels-v…) before what is named (archive-v…)
            doomed = [one for one in sorted(path.iterdir(), reverse=True) if one.name != ".lock"]
        for one in doomed:
            if one.is_dir():
                shutil.rmtree(one, ignore_errors=True)
            else:
                one.unlink()
            if one.exists():
                return False
        return True
    return False


def _locks(path: Path) -> tuple[Path, ...]:
    """What a process holds that makes or uses an entry."""
    if path.parent.name == "environments":  # see `core.jobs.local_environment`
        return path.with_name(f"{path.name.partition('-')[0]}.lock"), path.with_name(f"{path.name}.used")
    return (path / ".lock",) if path.name == _UV else ()
