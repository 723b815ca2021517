"""What a Docker build takes, as data: opened from a definition, hashed, and packed. No engine is used here."""

import asyncio
import io
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from prefect_environments.core import canonical
from prefect_environments.core.build import tar
from prefect_environments.core.build.docker.checkout import GitContext, checkout
from prefect_environments.core.build.docker.context import (
    IGNORE_FILE,
    ContextEntry,
    context_entries,
    open_entry,
    read_context,
)
from prefect_environments.core.build.docker.dockerfile import from_images, read_dockerfile
from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BuildError, SpecificationError
from prefect_environments.core.files import temporary_folder
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.secrets import SecretReference, looks_secret

DOCKERFILE = "Dockerfile"
_SCHEMA = 1
_CHUNK = 2**20
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_KINDS = {"file": tar.REGULAR, "directory": tar.DIRECTORY, "link": tar.SYMLINK}


@dataclass(frozen=True)
class BuildInputs:
    """Everything that a Docker build reads, besides the images that it starts from."""

    dockerfile: str
    """The Dockerfile's text, with line feeds at the line ends and no byte order mark."""
    context: Path | None = None
    """A local folder; `None` is an empty context."""
    dockerfile_path: str = DOCKERFILE
    """Where the Dockerfile is in the context, with slashes."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    """The stage to build; empty: the last one."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Secret references by the id that the Dockerfile uses; never values."""
    platform: Platform = field(default_factory=Platform)

    def __post_init__(self) -> None:
        check_names(self.arguments, self.secrets)

    def images(self) -> tuple[str, ...]:
        """The images that the build reads; raises `SpecificationError` for a Dockerfile that cannot be built."""
        return from_images(self.dockerfile, self.arguments, self.target, platform=self.platform)


@asynccontextmanager
async def open_inputs(definition: EnvironmentDefinition, scratch: Path) -> AsyncIterator[BuildInputs]:
    """The inputs of a definition that has a Dockerfile or a build context; a git checkout is removed at the end.

    All that can be told is checked before anything is fetched or built. Raises `SpecificationError` for what is
    wrong with it, `SecretError` for a malformed secret reference, `BuildError` where git fails.
    """
    _check(definition)
    if not definition.build_context:
        yield _checked(definition, read_dockerfile(definition.dockerfile), None, DOCKERFILE)
    elif GitContext.is_git(definition.build_context):
        wanted = GitContext.parse(definition.build_context)
        with temporary_folder(scratch) as folder:
            yield await asyncio.to_thread(_in_folder, definition, await checkout(wanted, folder / "context"))
    else:
        yield await asyncio.to_thread(_in_folder, definition, Path(definition.build_context).absolute())


def _check(definition: EnvironmentDefinition) -> None:
    if not definition.dockerfile and not definition.build_context:
        raise SpecificationError(f"the definition of {definition.name!r} has neither a Dockerfile nor a build context")
    path = PurePosixPath(definition.dockerfile_path)
    if path.is_absolute() or ".." in path.parts or "\\" in definition.dockerfile_path:
        raise SpecificationError(
            f"dockerfile_path {definition.dockerfile_path!r:.200} must be a path in the build context, with slashes: "
            "without a slash at its start and without '..'"
        )
    check_names(definition.build_arguments, definition.build_secrets)


def check_names(arguments: Mapping[str, str], secrets: Mapping[str, str]) -> None:
    """Raise `SpecificationError` for names that no Dockerfile can use and for arguments that look like secrets, and
    `SecretError` for secrets that are no references."""
    for name, reference in secrets.items():
        if not _SECRET_ID.fullmatch(name):
            raise SpecificationError(f"the build secret's id {name!r:.100} is not allowed: letters, digits, _ . -")
        SecretReference.parse(reference, f"build_secrets.{name}")
    for name, value in arguments.items():
        if not _ARGUMENT.fullmatch(name):
            raise SpecificationError(
                f"the build argument's name {name!r:.100} is not allowed: letters, digits and _, first no digit"
            )
        if "\0" in value:
            raise SpecificationError(f"the value of the build argument {name} holds a NUL character")
        if SecretReference.is_reference(value):
            raise SpecificationError(
                f"the build argument {name} is a secret reference, but arguments stay in the image's history: give it "
                f"in build_secrets, and read it by RUN --mount=type=secret,id={name}"
            )
        if looks_secret(name, value):
            raise SpecificationError(
                f"the build argument {name} looks like a secret, and arguments stay in the image's history and in the "
                f"definition: give a reference in build_secrets, and read it by RUN --mount=type=secret,id={name}"
            )


def _in_folder(definition: EnvironmentDefinition, folder: Path) -> BuildInputs:
    if not folder.is_dir():
        raise SpecificationError(
            f"no folder is at the build context {definition.build_context!r:.300}; correct the path, or give a git "
            "repository as URL#COMMIT[:FOLDER]"
        )
    path = PurePosixPath(definition.dockerfile_path or DOCKERFILE).as_posix()
    if not (folder / path).is_file():
        raise SpecificationError(
            f"the build context {definition.build_context!r:.300} has no {path}; name its Dockerfile in dockerfile_path"
        )
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise SpecificationError(f"{path} in the build context is a link out of it; put the Dockerfile itself there")
    return _checked(definition, read_dockerfile(folder / path), folder, path)


def _checked(definition: EnvironmentDefinition, text: str, context: Path | None, path: str) -> BuildInputs:
    inputs = BuildInputs(
        text,
        context,
        path,
        dict(definition.build_arguments),
        definition.build_target,
        dict(definition.build_secrets),
        Platform.parse(definition.platform),
    )
    inputs.images()
    return inputs


async def inputs_digest(inputs: BuildInputs, digest_of: Callable[[str], Awaitable[str]]) -> str:
    """The digest of all that decides the built image; `digest_of` gives an image's digest by its name.

    In it: the Dockerfile's text, what the build sees of the context, arguments, target, the secrets' ids, platform,
    and the digest of each image that the build reads, so that a moved base tag is another digest.
    """
    names = inputs.images()

    async def found(name: str) -> str:
        return await digest_of(name)

    digests = await gather(found(name) for name in names)
    context = inputs.context
    entries = [] if context is None else await asyncio.to_thread(read_context, context, inputs.dockerfile_path)
    return await asyncio.to_thread(
        canonical.digest,
        {
            "kind": "docker-build",
            "schema": _SCHEMA,
            "dockerfile": inputs.dockerfile,
            "context": entries,
            "arguments": dict(inputs.arguments),
            "target": inputs.target,
            "secrets": sorted(inputs.secrets),
            "platform": str(inputs.platform),
            "images": dict(zip(names, digests, strict=True)),
        },
    )


def pack_context(inputs: BuildInputs, out: BinaryIO) -> None:
    """Write the build context as a tar archive that depends on nothing but its content: sorted, with fixed times and
    owners. Files are streamed.

    The Dockerfile is always in it, for the builder. Where the rules ignore it, an ignore file hides it, and itself,
    from the steps of the classic builder. BuildKit shows its steps all that is in an archive: see `stage_context`.
    Raises `SpecificationError`, and `BuildError` where a file changes meanwhile.
    """
    entries = [] if inputs.context is None else list(context_entries(inputs.context, inputs.dockerfile_path))
    for entry in entries:
        _write(entry, out)
    for path, content in _hidden(inputs, entries):
        out.write(tar.header(tar.Entry(path, 0o644), len(content)) + content + bytes(tar.padding(len(content))))
    out.write(tar.END)


def _hidden(inputs: BuildInputs, entries: Iterable[ContextEntry]) -> list[tuple[str, bytes]]:
    """What the builder needs and the build's steps must not see."""
    there = {entry.path for entry in entries}
    if inputs.dockerfile_path in there:
        return []
    found = [(inputs.dockerfile_path, inputs.dockerfile.encode())]
    if IGNORE_FILE not in there:
        escaped = re.sub(r"([*?\[\]\\])", r"\\\1", inputs.dockerfile_path)
        found.append((IGNORE_FILE, f"{IGNORE_FILE}\n{escaped}\n".encode()))
    return found


def stage_context(inputs: BuildInputs, folder: Path) -> tuple[Path, Path]:
    """Copy the build context into `folder`, for BuildKit; gives the copy and the Dockerfile, which lies beside it.

    Modes and times are those of `pack_context`, and the build's steps see what the rules leave, no more. Raises
    `SpecificationError`, and `BuildError` where a file changes meanwhile.
    """
    context, dockerfile = folder / "context", folder / DOCKERFILE
    context.mkdir()
    entries = [] if inputs.context is None else list(context_entries(inputs.context, inputs.dockerfile_path))
    for entry in entries:
        _stage(entry, context / entry.path)
    for entry in reversed(entries):  # a folder's time changes with what is put into it
        os.utime(context / entry.path, (tar.MTIME, tar.MTIME), follow_symlinks=False)
    dockerfile.write_text(inputs.dockerfile, "utf-8", newline="\n")
    # found before the context's own ignore file, which has had its say
    (folder / f"{DOCKERFILE}{IGNORE_FILE}").write_text("# nothing is left to ignore\n")
    return context, dockerfile


def _stage(entry: ContextEntry, path: Path) -> None:
    if entry.kind == "link":
        path.symlink_to(entry.target)
        return
    if entry.kind == "directory":
        path.mkdir()
    else:
        with _opened(entry) as file, path.open("xb") as out:
            _copy(file, entry.size, entry.path, out)
    path.chmod(_mode(entry))


def _mode(entry: ContextEntry) -> int:
    return {"link": 0o777, "directory": 0o755}.get(entry.kind, 0o755 if entry.executable else 0o644)


def _opened(entry: ContextEntry) -> io.FileIO:
    try:
        return io.FileIO(open_entry(entry), "rb")
    except OSError as error:
        raise BuildError(
            f"{entry.path} in the build context cannot be read again ({error.strerror}); build when nobody changes it"
        ) from error


def _write(entry: ContextEntry, out: BinaryIO) -> None:
    head = tar.Entry(entry.path, _mode(entry), _KINDS[entry.kind], entry.target)
    if entry.kind != "file":
        out.write(tar.header(head))
        return
    with _opened(entry) as file:
        out.write(tar.header(head, entry.size))
        _copy(file, entry.size, entry.path, out)
    out.write(bytes(tar.padding(entry.size)))


def _copy(source: io.FileIO, size: int, path: str, out: BinaryIO) -> None:
    left = size
    while left and (chunk := source.read(min(left, _CHUNK))):
        out.write(chunk)
        left -= len(chunk)
    if left or source.read(1):
        raise BuildError(f"{path} in the build context changed while it was read; build when nobody changes it")
