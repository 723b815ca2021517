"""A job's source: checked before any work, and copied into a folder of its own, which the job may change."""

import logging
import os
import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prefect_environments.core import files, trees
from prefect_environments.core.build.docker.ignore import IgnoreRules, Verdict
from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.jobs.config import ScriptRunConfig
from prefect_environments.core.jobs.gitignore import GitIgnoreRules

IGNORE_FILES = (".amlignore", ".dockerignore", ".gitignore")
"""The first of them that is there says what is left out. Only the one at the top of the source counts."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """A file, folder or link of a source. `path` is relative, with slashes."""

    path: str
    place: Path


def check_source(config: ScriptRunConfig) -> None:
    """Raise `DefinitionError` where a folder on this machine is not there, or lacks what is to be run."""
    if config.is_git:
        return
    folder = folder_of(config)
    if not folder.is_dir():
        raise DefinitionError(f"source_directory {config.source_directory!r:.300} is no folder here; correct the path")
    check_paths(config, folder, {entry.path for entry in source_entries(folder)})


def check_paths(config: ScriptRunConfig, folder: Path, kept: Container[str] | None = None) -> None:
    """Raise `DefinitionError` where the source in `folder` lacks what is to be run, or cannot have the outputs folder.

    `kept` are the paths that go to the job; all without it.
    """
    root = folder.resolve()
    for name, path in (("script", config.script), ("bootstrap", config.bootstrap)):
        if path and (why := _why_not(root, root / path, kept)):
            raise DefinitionError(f"the {name} {path!r:.200} {why} in the source folder {folder}")
    if config.outputs:
        # what lies behind a link is somebody else's, and would be taken for former outputs
        for above in (folder / parent for parent in PurePosixPath(config.outputs).parents):
            if above != folder and (above.is_symlink() or (above.exists() and not above.is_dir())):
                raise DefinitionError(
                    f"outputs is {config.outputs!r:.200}, but {above.name!r} in the source is a link or a file; name "
                    "a folder of the job's own"
                )
        if (folder / config.outputs).is_file():
            raise DefinitionError(f"outputs is {config.outputs!r:.200}, which is a file in the source; name a folder")


def _why_not(root: Path, place: Path, kept: Container[str] | None) -> str:
    try:
        real = place.resolve(strict=True)
    except (OSError, RuntimeError):
        return "is not there"
    if not real.is_relative_to(root):
        return "is a link to what is not"
    if not real.is_file() and not (real / "__main__.py").is_file():
        return "is no file"
    left_out = kept is not None and real.relative_to(root).as_posix() not in kept
    return "is left out by an ignore file, or as a cache," if left_out else ""


def folder_of(config: ScriptRunConfig) -> Path:
    """The source folder on this machine."""
    return Path(config.source_directory).expanduser().absolute()


async def stage(config: ScriptRunConfig, folder: Path) -> Path:
    """The source as a new folder below `folder`. Raises `StorageError`, and for git `BuildError`."""
    if config.is_git:
        from prefect_environments.core.build.docker.checkout import GitContext, checkout  # noqa: PLC0415  # for git

        place = await checkout(GitContext.parse(config.source_directory), folder / "source")
        check_paths(config, place)
        return place
    import asyncio  # noqa: PLC0415

    return await asyncio.to_thread(_copy, folder_of(config), folder / "source", config.outputs)


def source_entries(folder: Path) -> Iterator[SourceEntry]:
    """What of a folder goes to a job: all but version control, caches, and what an ignore file leaves out.

    Folders come before what is in them, sorted by name; links are not followed.
    """
    rules = ignore_rules(folder)
    yield from _by_git(folder, "", rules) if isinstance(rules, GitIgnoreRules) else _below(folder, "", rules, None)


def ignore_rules(folder: Path) -> IgnoreRules | GitIgnoreRules:
    """The rules of the ignore file that counts. Raises `SpecificationError` for one that cannot be read."""
    name = next((name for name in IGNORE_FILES if (folder / name).is_file()), "")
    if not name:
        return IgnoreRules()
    try:
        text = (folder / name).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecificationError(f"{folder / name} cannot be read ({type(error).__name__})") from None
    return IgnoreRules(text, name) if name == ".dockerignore" else GitIgnoreRules(text)


def _by_git(root: Path, inside: str, rules: GitIgnoreRules) -> Iterator[SourceEntry]:
    for child in _children(root, inside):
        path = f"{inside}/{child.name}" if inside else child.name
        folder = child.is_dir(follow_symlinks=False)
        if rules.leaves_out(path, folder=folder) or (folder and child.name in trees.LEFT_OUT):
            continue
        yield SourceEntry(path, Path(child.path))
        if folder:
            yield from _by_git(root, path, rules)


def _below(root: Path, inside: str, rules: IgnoreRules, parent: Verdict | None) -> Iterator[SourceEntry]:
    for child in _children(root, inside):
        path = f"{inside}/{child.name}" if inside else child.name
        verdict = rules.of(path, parent)
        folder = child.is_dir(follow_symlinks=False)
        if folder and child.name in trees.LEFT_OUT:
            continue
        if not verdict.ignored:
            yield SourceEntry(path, Path(child.path))
        if folder and (not verdict.ignored or rules.reach_into(path)):
            yield from _below(root, path, rules, verdict)


def _children(root: Path, inside: str) -> "list[os.DirEntry[str]]":
    with files.storage("reading the source", root / inside), os.scandir(root / inside) as found:
        return sorted(found, key=lambda child: child.name)


def _copy(source: Path, target: Path, outputs: str) -> Path:
    """Copy what goes to a job; a folder of former outputs stays behind."""
    count, made = 0, set[Path]()
    with files.storage("copying the source", target):
        entries = list(source_entries(source))  # all before the copy is there, which may lie in the source
        target.mkdir()
        for entry in entries:
            if outputs and (entry.path == outputs or entry.path.startswith(f"{outputs}/")):
                continue
            place = target / entry.path
            if place.parent not in made:
                place.parent.mkdir(parents=True, exist_ok=True)
                made.add(place.parent)
            if entry.place.is_symlink():
                place.symlink_to(entry.place.readlink())
            elif entry.place.is_dir():
                place.mkdir(exist_ok=True)
            elif entry.place.is_file():
                shutil.copyfile(entry.place, place)
                shutil.copymode(entry.place, place)
                count += 1
    logger.info("the source is %d files of %s", count, source)
    return target
