"""The three hashes. Each is the digest of one canonical JSON object, so parts can never run into each other.

*Definition hash*: is the same thing asked for? *Image hash*: is it built? *Record hash*: is it registered?
docs/hashes.md lists every field with test vectors.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prefect_environments.core import canonical, trees
from prefect_environments.core.build import recipe
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import digest as digests

_SCHEMA = 1
_LOCAL = re.compile(r"(?:([^@/]*) @ )?(file:[^\s\[]*)(\[[^\]]*\])?(?:\s+(\S.*))?")
"""`name @ file:…`, or a bare `file:…[extras]`, perhaps with a marker and hashes after it."""


def definition_hash(
    definition: EnvironmentDefinition, *, default_base_image: str = "", default_index_url: str = ""
) -> str:
    """What decides the image, as it was asked for: base image, requirements and where they come from, platform.

    The defaults are the workspace's, and count where the definition names none. Not in it: name, description, tags,
    environment variables, credentials, the order and spelling of lines. Local files and folders count by content, not
    by path. Raises `DefinitionError` where one of them cannot be read.
    """
    counted: dict[str, object] = {
        "kind": "definition",
        "schema": _SCHEMA,
        "recipe": recipe.VERSION,
        "platform": definition.platform,
        "base-image": "" if _has_own_base(definition) else definition.base_image or default_base_image,
        "requirements": _counted(definition.requirements),
        "constraints": _counted(definition.constraints),
        "index-url": definition.index_url or default_index_url,
        "extra-index-urls": list(definition.extra_index_urls),
        "find-links": list(definition.find_links),
        "no-index": definition.no_index,
        "pre": definition.pre,
        "only-binary": sorted(definition.only_binary),
        "source-builds": definition.allow_source_builds,
        "conda-channels": list(definition.conda_channels),
        "conda-dependencies": sorted(definition.conda_dependencies),
        "dockerfile": definition.dockerfile,
        "build-context": _context(definition),
        "user-managed": definition.user_managed,
    }
    later = {
        "dockerfile-path": definition.dockerfile_path,
        "build-arguments": definition.build_arguments,
        "build-target": definition.build_target,
        "build-secrets": sorted(definition.build_secrets),
        "mirror": definition.mirror,
        "pylock": _pylock(definition.pylock),
        "requires-python": definition.requires_python,
        "extends": definition.extends,
        "compile-bytecode": definition.compile_bytecode,
    }
    counted.update({key: value for key, value in later.items() if value})  # as hashes were before they existed
    return canonical.digest(counted)


def _has_own_base(definition: EnvironmentDefinition) -> bool:
    """Whether the base is no image by name, so that the workspace's default one does not count."""
    return bool(definition.dockerfile or definition.build_context or definition.extends)


def _pylock(text: str) -> str | list[object]:
    """A given lock: files and commits in it are pinned, and folders count by what is in them."""
    if "directory" not in text:
        return text
    tables = (package.get("directory", {}) for package in tomllib.loads(text).get("packages", ()))
    folders = sorted({table["path"] for table in tables if "path" in table})
    return [text, [[path, _digest(Path(path), f"the lock's folder {path}")] for path in folders]] if folders else text


def _context(definition: EnvironmentDefinition) -> str:
    """A git context as it is named, by commit; a folder by what a build sees of it."""
    if not definition.build_context:
        return ""
    from prefect_environments.core.build.docker.checkout import GitContext  # noqa: PLC0415
    from prefect_environments.core.build.docker.context import context_digest  # noqa: PLC0415

    if GitContext.is_git(definition.build_context):
        return str(GitContext.parse(definition.build_context))
    return context_digest(Path(definition.build_context), definition.dockerfile_path or "Dockerfile")


def image_hash(lock: Lock) -> str:
    """What decides the image's bytes: base by digest, the wheels by file name, version and sha256, the recipe."""
    counted: dict[str, object] = {
        "kind": "image",
        "schema": _SCHEMA,
        "recipe": recipe.VERSION,
        "prefix": recipe.PREFIX,
        "base": [lock.base.name, lock.base.digest],
        "platform": str(lock.target.platform),
        "python": [lock.target.python, lock.target.interpreter],
        "packages": [list(package.identity()) for package in lock.packages],
    }
    if not lock.managed:
        counted["managed"] = False
    if lock.conda:
        counted["conda"] = [list(package.identity()) for package in lock.conda]
        counted["linker"] = recipe.LINKER
    if lock.bytecode:
        counted["bytecode"] = lock.bytecode
    if lock.conda or lock.bytecode:
        counted["codec"] = recipe.CODEC
    return canonical.digest(counted)


def record_hash(image: str, definition: EnvironmentDefinition, variables: Mapping[str, str] | None = None) -> str:
    """What makes a version another one: the image, and what is set when a job runs in it.

    `variables` are the definition's own unless given: an environment that extends another has more.
    """
    return canonical.digest(
        {
            "kind": "record",
            "schema": _SCHEMA,
            "image": digests.check(image),
            "environment-variables": definition.environment_variables if variables is None else dict(variables),
            "description": definition.description,
            "interpreter-path": definition.interpreter_path,
            "tags": definition.tags,
        }
    )


def _counted(lines: tuple[str, ...]) -> list[str | list[str]]:
    return sorted(map(_content, lines), key=canonical.dumps)


def _content(line: str) -> str | list[str]:
    """A requirement as it counts: one that names a local file or folder counts by what is in there."""
    found = _LOCAL.fullmatch(line)
    if found is None:
        return line
    name, url, extras, rest = (part or "" for part in found.groups())
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    content = _digest(path, f"the requirement {line!r} names {path}, which")
    return [name, "" if path.is_dir() else path.name, content, parts.fragment, extras, rest]


def _digest(path: Path, what: str) -> str:
    """The digest of a file or folder of this machine."""
    try:
        return trees.digest(path) if path.is_dir() else digests.of_file(path)
    except OSError as error:
        raise DefinitionError(
            f"{what} cannot be read ({error.strerror}); correct the path, or build where the file is"
        ) from None
