"""Credentials for registries, and where other tools keep them (Docker's and podman's files and helpers)."""

import asyncio
import base64
import binascii
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prefect_environments.core.distribution.reference import DOCKER_HUB, check_host
from prefect_environments.core.errors import DefinitionError, RegistryAuthError
from prefect_environments.core.redact import remember

if TYPE_CHECKING:
    from yarl import URL

    from prefect_environments.core.distribution.messages import Answer, Request, Scopes

_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_API_PATHS = frozenset({"", "v1", "v2"})


class Exchange(Protocol):
    """What is not the registry's own, such as a cloud's token, and how the registry makes an identity token of it."""

    def request(self, registry: "URL", service: str) -> "Request":
        """The request to make; `service` is the registry's name for itself."""

    def read(self, registry: "URL", answer: "Answer") -> tuple[str, float | None]:
        """The identity token and the seconds that it lives, if that is known. Raises `RegistryAuthError`."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user with a password, an identity token (an OAuth2 refresh token), or what is exchanged for one. `repr` shows
    only the user."""

    username: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)
    exchange: Exchange | None = field(default=None, repr=False)
    """Takes the place of an identity token; `username` is then for messages only."""
    expires: float = field(default=inf, repr=False)
    """When their source is to be asked again, in seconds since the epoch."""

    def __post_init__(self) -> None:
        for secret in (self.password, self.identity_token):
            if secret:
                remember(secret)


Advice = Callable[["Scopes", Credentials | None], str]
"""What to do where a registry refuses scopes to credentials, as a sentence without its full stop."""


class CredentialSource(Protocol):
    """Something that knows credentials by registry, such as Docker's configuration. It is asked once, and again when
    what it gave expires."""

    async def get(self, host: str) -> Credentials | None:
        """Credentials for `host[:port]`; `None` if it has none. Raises `RegistryAuthError` if it cannot tell."""


class DockerConfig:
    """Credentials that `docker login` or `podman login` stored, read afresh at each question.

    Asks in order: the helper of `credHelpers`, `credsStore`, then `auths`, in `$DOCKER_CONFIG/config.json` (else
    `~/.docker/config.json`), then the same in `$XDG_RUNTIME_DIR/containers/auth.json`. `files` replaces these places;
    `time_limit` is for a helper, in seconds.
    """

    def __init__(self, *, files: tuple[Path, ...] | None = None, time_limit: float = 30.0) -> None:
        self._files = files
        self._time_limit = time_limit

    async def get(self, host: str) -> Credentials | None:
        """The first credentials found for `host[:port]`; raises `RegistryAuthError` for a broken file or helper."""
        for file in self._files if self._files is not None else _usual_files():
            config = _read_config(file)
            if config is not None and (found := await self._from_config(config, file, host)) is not None:
                return found
        return None

    async def _from_config(self, config: Mapping[str, Any], file: Path, host: str) -> Credentials | None:
        for key in ("credHelpers", "auths"):
            if not isinstance(config.get(key) or {}, Mapping):
                raise RegistryAuthError(f"{file}: {key!r} must be a JSON object; correct the file or sign in again")
        helpers: Mapping[str, Any] = config.get("credHelpers") or {}
        helper = next(
            (name for known, name in helpers.items() if _rank(known, host) is not None), config.get("credsStore")
        )
        if helper:
            found = await self._ask_helper(helper, _DOCKER_HUB_KEY if host == DOCKER_HUB else host, file)
            if found is not None:
                return found
        return _from_auths(config.get("auths") or {}, file, host)

    async def _ask_helper(self, name: Any, server: str, file: Path) -> Credentials | None:
        if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
            raise RegistryAuthError(f"{file} names a credential helper that is not a plain name: {name!r:.100}")
        program = f"docker-credential-{name}"
        path = shutil.which(program)
        if path is None:
            raise RegistryAuthError(
                f"{file} wants {program} for {server}, which is not on PATH; install it or remove it there"
            )
        status, output = await self._run_helper(path, server, program)
        if status != 0:
            # The helpers' protocol has no status for "none": it is this sentence on standard output.
            if b"credentials not found" in output:
                return None
            raise RegistryAuthError(
                f"{program} failed for {server} with exit status {status}; run `{program} get` by hand to see why"
            )
        return _read_helper_output(output, program, server)

    async def _run_helper(self, path: str, server: str, program: str) -> tuple[int, bytes]:
        try:
            process = await asyncio.create_subprocess_exec(
                path,
                "get",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise RegistryAuthError(f"{program} could not be started: {error.strerror}") from None
        try:
            async with asyncio.timeout(self._time_limit):
                output, _ = await process.communicate(server.encode())
        except TimeoutError:
            raise RegistryAuthError(
                f"{program} gave no answer for {server} within {self._time_limit:g} s; it may wait for input"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output


def _usual_files() -> list[Path]:
    folder = os.environ.get("DOCKER_CONFIG")
    files = [(Path(folder) if folder else Path("~/.docker").expanduser()) / "config.json"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        files.append(Path(runtime) / "containers" / "auth.json")
    return files


def _read_config(file: Path) -> Mapping[str, Any] | None:
    try:
        data = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RegistryAuthError(f"{file} cannot be read: {error.strerror}; allow it or sign in again") from None
    except (ValueError, RecursionError) as error:
        # Only the place: the error's own text could hold a piece of the file.
        place = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RegistryAuthError(f"{file} is not valid JSON{place}; correct the file or sign in again") from None
    if not isinstance(data, dict):
        raise RegistryAuthError(f"{file} must hold a JSON object; correct the file or sign in again")
    return data


def _rank(key: str, host: str) -> int | None:
    """How well a key such as `host`, `https://host/v1/` or `host/team` fits; `None` if not at all, 0 is best."""
    if key == host:
        return 0
    name, _, path = key.partition("://")[2].partition("/") if "://" in key else key.partition("/")
    try:
        if check_host(name) != host:
            return None
    except DefinitionError:
        return None
    return 1 if path.strip("/") in _API_PATHS else 2


def _from_auths(auths: Mapping[str, Any], file: Path, host: str) -> Credentials | None:
    ranked = sorted((rank, key) for key in auths if (rank := _rank(key, host)) is not None)
    for _, key in ranked:
        if (found := _read_entry(auths[key], file, key)) is not None:
            return found
    return None


def _read_entry(entry: Any, file: Path, key: str) -> Credentials | None:
    if not isinstance(entry, Mapping):
        raise RegistryAuthError(f"{file}: the entry {key!r:.100} must be a JSON object; sign in again")
    username, password, token = (
        entry.get("username") or "",
        entry.get("password") or "",
        entry.get("identitytoken") or "",
    )
    if encoded := entry.get("auth"):
        try:
            text = base64.b64decode(encoded, validate=True).decode()
        except (TypeError, ValueError, binascii.Error):
            text = ""
        username, colon, password = text.partition(":")
        if not colon:
            raise RegistryAuthError(f"{file}: the entry {key!r:.100} is not base64 of user:password; sign in again")
        password = password.rstrip("\0")
    if not all(isinstance(value, str) for value in (username, password, token)):
        raise RegistryAuthError(f"{file}: the entry {key!r:.100} has a value that is not text; sign in again")
    return Credentials(username, password, token or None) if username or password or token else None


def _read_helper_output(output: bytes, program: str, server: str) -> Credentials:
    try:
        data = json.loads(output)
    except (ValueError, RecursionError):
        data = None
    found = data if isinstance(data, dict) else {}
    username, secret = found.get("Username"), found.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise RegistryAuthError(f"{program} gave no Username and Secret for {server}; run `{program} get` by hand")
    return Credentials("", "", secret) if username == "<token>" else Credentials(username, secret)
