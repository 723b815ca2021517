"""A configuration folder for one run of the docker command: the user's settings, and the logins of this build only.

Secrets in it are anonymous files in memory where the system has such: they never touch a disk, and end with the
process however it ends. Elsewhere they are files for their owner's eyes, removed at the end or by `files.sweep`.
"""

import base64
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_environments.core import files
from prefect_environments.core.distribution.reference import DOCKER_HUB
from prefect_environments.core.errors import BuildError
from prefect_environments.core.redact import remember

_KEPT = ("auths", "credHelpers", "credsStore", "proxies", "currentContext", "cliPluginsExtraDirs", "HttpHeaders")
"""What a build needs of the user's configuration; the rest is for other commands."""
_LINKED = ("contexts", "cli-plugins")
_HUB_KEY = "https://index.docker.io/v1/"
_SHORTEST_PART = 8

Logins = Mapping[str, tuple[str, str]]
"""User and password by registry (`host[:port]`)."""


@dataclass(frozen=True, slots=True)
class ClientFolder:
    """A folder for `DOCKER_CONFIG`, with the files that hold the build's secrets, by id."""

    path: Path
    secrets: Mapping[str, Path]


@contextmanager
def client_folder(
    logins: Logins, secrets: Mapping[str, str], scratch: Path, env: Mapping[str, str]
) -> Iterator[ClientFolder]:
    """A private folder (0700) that is gone at the end, for commands that are started inside the block."""
    hide(logins, secrets)
    home = _home(env)
    with files.temporary_folder(scratch) as folder, ExitStack() as stack:
        for name in _LINKED:
            if (home / name).is_dir():
                (folder / name).symlink_to((home / name).absolute(), target_is_directory=True)
        content = json.dumps(_merged(user_config(env), logins)).encode()
        _write(folder / "config.json", content, stack)
        paths = {}
        for number, (name, value) in enumerate(sorted(secrets.items())):
            paths[name] = folder / f"secret-{number}"
            _write(paths[name], value.encode(), stack)
        yield ClientFolder(folder, paths)


def hide(logins: Logins, secrets: Mapping[str, str]) -> None:
    """Let `redact` mask the values from now on, in the forms in which a build could print them."""
    for user, password in logins.values():
        remember(password)
        remember(_basic(user, password))
    for value in secrets.values():
        remember(value)
        # a log is masked line by line
        for line in (value.strip(), *value.splitlines()):
            if len(line.strip()) >= _SHORTEST_PART:
                remember(line.strip())


def user_config(env: Mapping[str, str]) -> dict[str, Any]:
    """The user's `config.json`; empty where there is none. Raises `BuildError` for one that cannot be read."""
    path = _home(env) / "config.json"
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        # only the kind: the text could hold a piece of the file
        raise BuildError(f"{path} cannot be read ({type(error).__name__}); correct it or sign in again") from None
    if not isinstance(data, dict):
        raise BuildError(f"{path} must hold a JSON object; correct it or sign in again")
    return data


def registry_key(host: str) -> str:
    """The name that Docker's files give a registry: its own, but for Docker Hub."""
    return _HUB_KEY if host == DOCKER_HUB else host


def _home(env: Mapping[str, str]) -> Path:
    return Path(env["DOCKER_CONFIG"]) if env.get("DOCKER_CONFIG") else Path("~/.docker").expanduser()


def _merged(config: Mapping[str, Any], logins: Logins) -> dict[str, Any]:
    """The user's settings with `logins` before anything else that is known of their registries."""
    kept = {name: config[name] for name in _KEPT if name in config}
    if not logins:
        return kept
    auths, helpers = dict(kept.get("auths") or {}), dict(kept.get("credHelpers") or {})
    for host, (user, password) in logins.items():
        key = registry_key(host)
        auths[key] = {"auth": _basic(user, password)}
        helpers[key] = ""  # none: without it the user's credsStore would be asked instead of `auths`
    return {**kept, "auths": auths, "credHelpers": helpers}


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _write(path: Path, content: bytes, stack: ExitStack) -> None:
    """Make `content` readable at `path` for processes of this user, for as long as `stack` is open."""
    if hasattr(os, "memfd_create") and _in_memory(path, content, stack):
        return
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _in_memory(path: Path, content: bytes, stack: ExitStack) -> bool:
    with suppress(OSError):  # no such call here, or a /proc that does not open what it shows
        descriptor = os.memfd_create("prefect-environments", os.MFD_CLOEXEC)
        stack.callback(os.close, descriptor)
        os.fchmod(descriptor, 0o600)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        path.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        if path.read_bytes() == content:
            return True
        path.unlink()
    path.unlink(missing_ok=True)
    return False
