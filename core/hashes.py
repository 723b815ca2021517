"""The three hashes. Each is the digest of one canonical JSON object, so parts can never run into each other.

*Definition hash*: is the same thing asked for? *Image hash*: is it built? *Record hash*: is it registered?
docs/hashes.md lists every field with test vectors.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from prefect_environments.core import canonical
from prefect_environments.core.build import recipe
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import digest as digests

_SCHEMA = 1
_SKIPPED = {".git", ".hg", ".svn", "__pycache__", ".venv"}


def definition_hash(definition: EnvironmentDefinition, *, default_base_image: str = "") -> str:
    """What decides the image, as it was asked for: base image, requirements and where they come from, platform.

    Not in it: name, description, tags, environment variables, credentials, the order and spelling of lines. Local
    files and folders count by content, not by path. Raises `DefinitionError` where one of them cannot be read.
    """
    return canonical.digest(
        {
            "kind": "definition",
            "schema": _SCHEMA,
            "recipe": recipe.VERSION,
            "platform": definition.platform,
            "base-image": definition.base_image or default_base_image,
            "requirements": sorted(map(_content, definition.requirements)),
            "constraints": sorted(map(_content, definition.constraints)),
            "index-url": definition.index_url,
            "extra-index-urls": list(definition.extra_index_urls),
            "find-links": list(definition.find_links),
            "no-index": definition.no_index,
            "pre": definition.pre,
            "only-binary": sorted(definition.only_binary),
            "source-builds": definition.allow_source_builds,
            "conda-channels": list(definition.conda_channels),
            "conda-dependencies": sorted(definition.conda_dependencies),
            "dockerfile": definition.dockerfile,
            "build-context": definition.build_context,
            "user-managed": definition.user_managed,
        }
    )


def image_hash(lock: Lock) -> str:
    """What decides the image's bytes: base by digest, the wheels by file name, version and sha256, the recipe."""
    return canonical.digest(
        {
            "kind": "image",
            "schema": _SCHEMA,
            "recipe": recipe.VERSION,
            "prefix": recipe.PREFIX,
            "base": [lock.base.name, lock.base.digest],
            "platform": str(lock.target.platform),
            "python": [lock.target.python, lock.target.interpreter],
            "packages": [list(package.identity()) for package in lock.packages],
        }
    )


def record_hash(image: str, definition: EnvironmentDefinition) -> str:
    """What makes a version another one: the image, and what is set when a job runs in it."""
    return canonical.digest(
        {
            "kind": "record",
            "schema": _SCHEMA,
            "image": digests.check(image),
            "environment-variables": definition.environment_variables,
            "description": definition.description,
            "interpreter-path": definition.interpreter_path,
            "tags": definition.tags,
        }
    )


def _content(line: str) -> Any:
    """A requirement as it counts: one that names a local file or folder counts by what is in there."""
    start = line.find("file:")
    if start < 0 or (start > 0 and line[start - 1] not in " @"):
        return line
    url, _, rest = line[start:].partition(" ")
    path = Path(unquote(urlsplit(url).path))
    try:
        found = _folder_digest(path) if path.is_dir() else digests.of_file(path)
    except OSError as error:
        raise DefinitionError(
            f"the requirement {line!r} names {path}, which cannot be read ({error.strerror})"
        ) from None
    return f"{line[:start]}{path.name} {found} {rest}".strip()


def _folder_digest(folder: Path) -> str:
    """Names, kinds, executable bits and content of a folder's files; version control and caches left out."""
    entries = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISLNK(mode):
                entries.append([relative, "link", str(path.readlink())])
            elif stat.S_ISREG(mode):
                entries.append([relative, "x" if mode & 0o111 else "-", digests.of_file(path)])
    return f"sha256:{hashlib.sha256(canonical.dumps(entries)).hexdigest()}"
