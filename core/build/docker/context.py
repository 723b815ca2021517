"""Build contexts as data: what of a folder a Docker build gets to see, and its digest."""

import errno
import hashlib
import logging
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from prefect_environments.core import canonical
from prefect_environments.core.build.docker.dockerfile import read_dockerfile
from prefect_environments.core.build.docker.ignore import IgnoreRules, Verdict
from prefect_environments.core.errors import SpecificationError

logger = logging.getLogger(__name__)

IGNORE_FILE = ".dockerignore"
_THREADS = 8
_SHARE = 128
"""Files that a thread hashes before it takes the next ones: fewer cost more in handing over than in reading."""
_CHUNK = 2**20
_NAMED = 10
"""Links that a warning names."""


@dataclass(frozen=True, slots=True)
class ContextEntry:
    """A file, folder or link of a build context. `path` is relative, with slashes; `target` is a link's text."""

    path: str
    kind: Literal["file", "directory", "link"]
    source: str
    """Where it is on this machine; no part of any hash."""
    executable: bool = False
    target: str = ""
    size: int = 0


def ignore_file(folder: Path, dockerfile_path: str = "Dockerfile") -> str:
    """The ignore file that counts: `NAME.dockerignore` beside the Dockerfile, else `.dockerignore`; "" without one."""
    for name in (f"{dockerfile_path}{IGNORE_FILE}", IGNORE_FILE):
        if os.path.lexists(folder / name):
            return name
    return ""


def read_ignore_rules(folder: Path, dockerfile_path: str = "Dockerfile") -> IgnoreRules:
    """The rules of the ignore file that counts; raises `SpecificationError` where it cannot be read."""
    name = ignore_file(folder, dockerfile_path)
    if not name:
        return IgnoreRules()
    try:
        return IgnoreRules((folder / name).read_text("utf-8"), name)
    except OSError as error:
        _unreadable(name, error)
    except UnicodeDecodeError:
        raise SpecificationError(f"{name} in the build context is not UTF-8; save it as UTF-8") from None


def context_entries(folder: Path, dockerfile_path: str = "Dockerfile") -> Iterator[ContextEntry]:
    """What a build of `folder` sees after its ignore file, folders before what is in them, sorted by name.

    Links are never followed. Folders that are ignored come back with an exception below them. Raises
    `SpecificationError` for sockets, pipes and devices, for names that are not UTF-8, and for what cannot be read.
    """
    if not folder.is_dir():
        raise SpecificationError(f"the build context {folder} is not a folder; correct the path")
    rules = read_ignore_rules(folder, dockerfile_path)
    yield from _below(str(folder), "", rules, None)


def _below(root: str, inside: str, rules: IgnoreRules, parent: Verdict | None) -> Iterator[ContextEntry]:
    try:
        with os.scandir(posixpath.join(root, inside)) as found:
            children = sorted(found, key=lambda child: child.name)
    except OSError as error:
        _unreadable(inside or ".", error)
    for child in children:
        path = posixpath.join(inside, child.name)
        verdict = rules.of(path, parent)
        is_folder = child.is_dir(follow_symlinks=False)
        if verdict.ignored and not (is_folder and rules.reach_into(path)):
            continue
        below = _below(root, path, rules, verdict) if is_folder else iter(())
        if verdict.ignored:  # its folder is needed only if there is something to put into it
            first = next(below, None)
            if first is None:
                continue
            yield _entry(child, path)
            yield first
        else:
            yield _entry(child, path)
        yield from below


def _entry(child: "os.DirEntry[str]", path: str) -> ContextEntry:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise SpecificationError(
            f"the build context holds a name that is not UTF-8: {path!r:.300}; rename it, or list it in {IGNORE_FILE}"
        ) from None
    try:
        status = child.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(child.path)  # noqa: PTH115
            target.encode()
            return ContextEntry(path, "link", child.path, target=target)
    except OSError as error:
        _unreadable(path, error)
    except UnicodeEncodeError:
        raise SpecificationError(f"the link {path} in the build context has a target that is not UTF-8") from None
    if stat.S_ISDIR(status.st_mode):
        return ContextEntry(path, "directory", child.path)
    if not stat.S_ISREG(status.st_mode):
        raise SpecificationError(
            f"{path} in the build context is {_special(status.st_mode)}, which no image can hold; remove it, or list "
            f"it in {IGNORE_FILE}"
        )
    return ContextEntry(path, "file", child.path, bool(status.st_mode & stat.S_IXUSR), size=status.st_size)


def _special(mode: int) -> str:
    kinds = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a named pipe"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _unreadable(path: str, error: OSError) -> NoReturn:
    if error.errno == errno.ENOENT:
        raise SpecificationError(f"{path} went away while the build context was read; build when nobody changes it")
    raise SpecificationError(
        f"{path} in the build context cannot be read ({error.strerror}); make it readable, or list it in {IGNORE_FILE}"
    ) from None


def links_out(entries: Iterable[ContextEntry]) -> list[str]:
    """The links whose target is not below the context, as `path -> target`: in the image they point elsewhere."""
    return [f"{entry.path} -> {entry.target}" for entry in entries if entry.kind == "link" and _leaves(entry)]


def _leaves(link: ContextEntry) -> bool:
    reached = posixpath.normpath(posixpath.join(posixpath.dirname(link.path), link.target))
    return reached == ".." or reached.startswith(("../", "/"))


def counted(entries: Iterable[ContextEntry]) -> list[list[str]]:
    """What of each entry counts for hashes: path, kind, and a file's sha256 or a link's text. Files are read by
    several threads.

    A file's mode counts as executable or not, a folder's and all times and owners not at all.
    """
    listed = list(entries)
    files = [entry for entry in listed if entry.kind == "file"]
    shares = [files[at : at + _SHARE] for at in range(0, len(files), _SHARE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = iter([sha256 for share in pool.map(_hash_all, shares) for sha256 in share])
    return [_counted(entry, hashes) for entry in listed]


def _counted(entry: ContextEntry, hashes: Iterator[str]) -> list[str]:
    if entry.kind == "file":
        return [entry.path, "executable" if entry.executable else "file", next(hashes)]
    return [entry.path, entry.kind, entry.target]


def _hash_all(entries: list[ContextEntry]) -> list[str]:
    return [_hash(entry) for entry in entries]


def _hash(entry: ContextEntry) -> str:
    counting = hashlib.sha256()
    try:
        descriptor = open_entry(entry)
        try:
            while chunk := os.read(descriptor, _CHUNK):
                counting.update(chunk)
        finally:
            os.close(descriptor)
    except OSError as error:
        _unreadable(entry.path, error)
    return counting.hexdigest()


def open_entry(entry: ContextEntry) -> int:
    """A descriptor of the entry's file; raises `OSError`, also where a link took the file's place meanwhile."""
    return os.open(entry.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def read_context(folder: Path, dockerfile_path: str = "Dockerfile") -> list[list[str]]:
    """`counted` for all entries of a folder. Logs a warning for what is likely not meant."""
    entries = list(context_entries(folder, dockerfile_path))
    if found := links_out(entries):
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        logger.warning(
            "links in the build context point out of it, and are copied as links: %s%s", ", ".join(found[:_NAMED]), more
        )
    if any(entry.path == ".git" for entry in entries):
        logger.warning("the build context holds .git, so that every commit is a new image; list it in %s", IGNORE_FILE)
    return counted(entries)


def context_digest(folder: Path, dockerfile_path: str = "Dockerfile") -> str:
    """The digest of what a build of `folder` sees, the Dockerfile's text included even where it is ignored."""
    entries = counted(context_entries(folder, dockerfile_path))
    return canonical.digest([read_dockerfile(folder / dockerfile_path), entries])
