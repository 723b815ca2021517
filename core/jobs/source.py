"""A job's source: checked before any work, and copied into a folder of its own, which the job may change."""

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefect_environments.core import files, trees
from prefect_environments.core.build.docker.ignore import IgnoreRules, Verdict
from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.jobs.config import ScriptRunConfig

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
    kept = {entry.path for entry in source_entries(folder)}
    for name, path in (("script", config.script), ("bootstrap", config.bootstrap)):
        if path and path not in kept:
            why = "is left out by an ignore file" if (folder / path).is_file() else "is not there"
            raise DefinitionError(f"the {name} {path!r:.200} {why} in the source folder {folder}")


def folder_of(config: ScriptRunConfig) -> Path:
    """The source folder on this machine."""
    return Path(config.source_directory).expanduser().absolute()


async def stage(config: ScriptRunConfig, folder: Path) -> Path:
    """The source as a new folder below `folder`. Raises `StorageError`, and for git `BuildError`."""
    if config.is_git:
        from prefect_environments.core.build.docker.checkout import GitContext, checkout  # noqa: PLC0415  # for git

        return await checkout(GitContext.parse(config.source_directory), folder / "source")
    import asyncio  # noqa: PLC0415

    return await asyncio.to_thread(_copy, folder_of(config), folder / "source", config.outputs)


def source_entries(folder: Path) -> Iterator[SourceEntry]:
    """What of a folder goes to a job: all but version control, caches, and what an ignore file leaves out.

    Folders come before what is in them, sorted by name; links are not followed.
    """
    yield from _below(folder, "", ignore_rules(folder), None)


def ignore_rules(folder: Path) -> IgnoreRules:
    """The rules of the ignore file that counts. Raises `SpecificationError` for one that cannot be read."""
    name = next((name for name in IGNORE_FILES if (folder / name).is_file()), "")
    if not name:
        return IgnoreRules()
    try:
        text = (folder / name).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecificationError(f"{folder / name} cannot be read ({type(error).__name__})") from None
    lines = text.splitlines() if name == ".dockerignore" else map(_from_git, text.splitlines())
    return IgnoreRules("\n".join(lines), name)


def _from_git(line: str) -> str:
    """A line of `.gitignore` (gitignore(5)) as one of `.dockerignore`: without a slash inside, it holds at any depth.

    Unlike git, an exception also brings back what lies below a folder that is left out.
    """
    text = line.strip()
    if not text or text.startswith("#"):
        return ""
    mark = "!" if text.startswith("!") else ""
    pattern = text.removeprefix("!").rstrip("/").replace("[!", "[^")
    if pattern.startswith("\\") and pattern[1:2] in ("#", "!"):
        pattern = pattern[1:]
    if not pattern:
        return ""
    return f"{mark}{pattern.lstrip('/')}" if "/" in pattern else f"{mark}**/{pattern}"


def _below(root: Path, inside: str, rules: IgnoreRules, parent: Verdict | None) -> Iterator[SourceEntry]:
    with files.storage("reading the source", root / inside):
        children = sorted(os.scandir(root / inside), key=lambda child: child.name)
    for child in children:
        path = f"{inside}/{child.name}" if inside else child.name
        verdict = rules.of(path, parent)
        folder = child.is_dir(follow_symlinks=False)
        if folder and child.name in trees.LEFT_OUT:
            continue
        if not verdict.ignored:
            yield SourceEntry(path, Path(child.path))
        if folder and (not verdict.ignored or rules.reach_into(path)):
            yield from _below(root, path, rules, verdict)


def _copy(source: Path, target: Path, outputs: str) -> Path:
    """Copy what goes to a job; a folder of former outputs stays behind."""
    count, made = 0, set[Path]()
    with files.storage("copying the source", target):
        target.mkdir()
        for entry in source_entries(source):
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
