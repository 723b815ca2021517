"""Build contexts from git: one commit, named in full, without its history."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from prefect_environments.core.errors import BuildError, ResolveError, SpecificationError
from prefect_environments.core.lock import process, urls
from prefect_environments.core.secrets import looks_secret

SECONDS = 1800.0
"""For one git command; a full fetch of a large repository takes its time."""

_SCHEMES = ("https", "http", "ssh", "git", "file")
_NETWORK = "https:http:ssh:git"
_SCP = re.compile(r"[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][\w.-]*:[^\s]+")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.autocrlf": "false",
    "core.eol": "lf",
    "core.symlinks": "true",
    "core.fileMode": "true",
    "advice.detachedHead": "false",
    "gc.auto": "0",
}
"""A checkout has the same bytes whatever the worker's own git settings are, and runs no hooks."""
_OWN_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")


@dataclass(frozen=True, slots=True)
class GitContext:
    """`URL#COMMIT[:FOLDER]`."""

    url: str
    commit: str
    folder: str = ""

    def __str__(self) -> str:
        """In one spelling: what two ways of writing it have in common."""
        return f"{self.url}#{self.commit}" + (f":{self.folder}" if self.folder else "")

    @staticmethod
    def is_git(text: str) -> bool:
        """Whether a build context is meant as a git repository: it is a URL, or `user@host:path`."""
        return "://" in text or "::" in text or bool(_SCP.match(text))

    @classmethod
    def parse(cls, text: str) -> "GitContext":
        """Read a git build context; raises `SpecificationError` for what could move, run a command or hold a secret."""
        url, _, place = text.partition("#")
        commit, _, folder = place.partition(":")
        shown = repr(urls.without_user_info(url))
        if "@" in place:
            raise SpecificationError(
                "the git build context has an '@' after its '#'; it is not shown, as it may hold a password: "
                "credentials are given to git on the worker, and '#' is %23 inside a URL"
            )
        if re.search(r"[\s\x00-\x1f]", text):
            raise SpecificationError(f"the git build context {shown:.300} holds white space; write it as %20")
        if not _SCP.fullmatch(url):
            _check_url(url, shown)
        if not _COMMIT.fullmatch(commit.lower()):
            raise SpecificationError(
                f"the git build context {shown:.300} names {commit!r:.100} after '#', which is no full commit id (40 "
                "or 64 hex digits): a branch or tag moves, so it would be another image tomorrow. Write URL#COMMIT "
                "with what `git ls-remote` or `git rev-parse` says"
            )
        if ".." in Path(folder).parts:
            raise SpecificationError(f"the folder {folder!r:.200} of a git build context leaves the repository")
        return cls(url, commit.lower(), folder.strip("/"))


def check_no_credentials(url: str) -> None:
    """Raise `SpecificationError` for the URL of a build context that holds a password, a token or a signature, and
    for a malformed one."""
    parts = _parts(url)
    user, at, _ = parts.netloc.rpartition("@")
    secret = any(looks_secret(name, value) or name == "sig" for name, value in parse_qsl(parts.query))
    if secret or (at and not (parts.scheme == "ssh" and ":" not in user)):
        shown = repr(urls.without_user_info(url)).partition("?")[0]
        raise SpecificationError(
            f"the URL of the git build context {shown:.300} holds credentials, and a definition is stored in plain "
            "text; give them to git on the worker: a credential helper, netrc or an SSH key"
        )


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise SpecificationError("the URL of the git build context is malformed; write https://HOST/PATH") from None
    return parts


def _check_url(url: str, shown: str) -> None:
    parts = _parts(url)
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme not in _SCHEMES or "://" not in url:
        raise SpecificationError(
            f"the git build context {shown:.300} is not fetched: its URL starts with {', '.join(_SCHEMES)}, or is "
            "user@host:path"
        )
    check_no_credentials(url)
    if not host and parts.scheme != "file":
        raise SpecificationError(f"the git build context {shown:.300} names no host")
    if host.startswith("-") or user.startswith("-"):
        raise SpecificationError(f"the git build context {shown:.300} has a host that starts with '-'")


async def checkout(context: GitContext, folder: Path) -> Path:
    """The files of the commit, in a new folder at `folder`, with its submodules and without `.git`.

    Submodules are part of a commit (it names theirs), and come over the network only: one that names a local path is
    refused. Raises `BuildError` where git cannot be started or does not get the commit.
    """
    folder.mkdir()
    kind = ["--object-format=sha256"] if len(context.commit) == 64 else []
    await _git(folder, ["init", "--quiet", "--template=", *kind], context)
    await _fetch(folder, context)
    await _git(folder, ["checkout", "--quiet", "--detach", context.commit], context)
    if await _git(folder, ["rev-parse", "HEAD"], context) != context.commit:
        raise BuildError(f"{context.commit} in {context.url} is a tag, not a commit; name the commit it points to")
    if (folder / ".gitmodules").exists():
        await _git(folder, ["remote", "add", "origin", context.url], context)  # relative submodule URLs start from it
        update = ["submodule", "update", "--quiet", "--init", "--recursive", "--force"]
        await _git(folder, update, context, protocols=_NETWORK)
    _remove_git(folder)
    return _inside(folder, context)


async def _fetch(folder: Path, context: GitContext) -> None:
    """The one commit, where the server hands it out by its id; else all branches and tags."""
    fetch = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"]
    if await _try(folder, [*fetch, "--depth=1", context.url, context.commit]):
        return
    # not into refs/heads: git refuses to fetch into the branch that it thinks is checked out, whatever that is called
    await _git(folder, [*fetch, context.url, "+refs/heads/*:refs/fetched/*", "+refs/tags/*:refs/tags/*"], context)
    if not await _try(folder, ["cat-file", "-e", f"{context.commit}^{{commit}}"]):
        raise BuildError(
            f"{context.url} has no commit {context.commit} in a branch or tag; was it pushed, or removed since?"
        )


async def _try(folder: Path, arguments: Sequence[str]) -> bool:
    return (await _run(folder, arguments)).status == 0


async def _git(folder: Path, arguments: Sequence[str], context: GitContext, protocols: str = "") -> str:
    done = await _run(folder, arguments, protocols)
    if done.status != 0:
        said = " / ".join(line.strip() for line in done.stderr.splitlines()[-5:] if line.strip())
        raise BuildError(
            f"git {arguments[0]} of {context.url} at {context.commit[:12]} failed: {said or f'status {done.status}'}. "
            "Check the URL, and that this worker may read it"
        )
    return done.stdout.strip()


async def _run(folder: Path, arguments: Sequence[str], protocols: str = "") -> process.Finished:
    settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {name: value for name, value in inherited.items() if name not in _OWN_REPOSITORY} | {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": protocols or f"{_NETWORK}:file",
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
        "LC_ALL": "C.UTF-8",
    }
    try:
        return await process.run(["git", *settings, *arguments], env=environment, cwd=folder, seconds=SECONDS)
    except ResolveError as error:
        raise BuildError(f"the git build context was not fetched: {error}") from error


def _remove_git(folder: Path) -> None:
    """Git's own files hold times and paths of this machine, and are none of the commit's."""
    shutil.rmtree(folder / ".git")
    for root, _, names in os.walk(folder):
        if ".git" in names:  # a submodule's is a file
            (Path(root) / ".git").unlink()


def _inside(folder: Path, context: GitContext) -> Path:
    found = folder / context.folder
    if not found.is_dir() or not found.resolve().is_relative_to(folder.resolve()):
        raise SpecificationError(
            f"{context.url} at {context.commit[:12]} has no folder {context.folder!r:.200}; correct what follows the "
            "commit in the build context"
        )
    return found
