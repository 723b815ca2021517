"""The environment variables and the private files with which uv is started."""

import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from prefect_environments.core.lock import urls
from prefect_environments.core.lock.feeds import netrc_logins
from prefect_environments.core.lock.resolver import ResolveRequest
from prefect_environments.core.redact import remember

_KEPT = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|INDEX_\w+_(USERNAME|PASSWORD)"
    r"|KEYRING_PROVIDER|CREDENTIALS_DIR|CACHE_DIR|NO_CACHE|OFFLINE|LINK_MODE|INSECURE_HOST|NATIVE_TLS|SYSTEM_CERTS"
    r"|SSL_CERT\w*|REQUEST_TIMEOUT|HTTP_\w+|CONCURRENT_\w+|PYTHON_INSTALL_DIR|GITHUB_TOKEN|GIT_LFS)"
)
"""uv's settings of where packages come from and how they are fetched. A list of what stays, so that a setting that a
later uv adds cannot change a lock unseen."""

Logins = Mapping[str, tuple[str, str]]

_OF_THE_WORKER = re.compile(r"PREFECT_\w+")
_OF_THE_IDENTITY = re.compile(r"AZURE_\w*(SECRET|PASSWORD)|(IDENTITY|MSI)_(HEADER|SECRET)")
"""What opens Prefect's API and Azure: not for uv, nor for the code of packages that it builds. keyring may need it."""
_PYTHON = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__"}
_INDEXES = re.compile(r"UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS)")


def environment(inherited: Mapping[str, str], request: ResolveRequest, folder: Path) -> dict[str, str]:
    """What uv gets: `inherited` without settings that would change the answer, with the definition's indexes.

    Credentials are in variables and in a netrc file in `folder`, which must be private; their passwords are
    masked in all errors from here on."""
    env = plain(inherited)
    known = credentials(request)
    for user, password in known.values():
        remember(password or user)
    if request.no_index:
        env = {name: value for name, value in env.items() if not _INDEXES.fullmatch(name)}
    else:
        _set_indexes(env, request, known)
    _write_netrc(env, known, folder)
    return env


def plain(inherited: Mapping[str, str]) -> dict[str, str]:
    """What uv gets for work that asks no index: `inherited` without settings that would change the answer."""
    env = {name: value for name, value in inherited.items() if _stays(name)} | {"UV_PYTHON_DOWNLOADS": "never"}
    if "UV_KEYRING_PROVIDER" not in env:
        env = {name: value for name, value in env.items() if not _OF_THE_IDENTITY.fullmatch(name)}
    return env


def credentials(request: ResolveRequest) -> Logins:
    """All credentials of a request by URL prefix or host: the given ones, and those in its own addresses."""
    known = dict(request.index_credentials)
    lines = " ".join((*request.packages, *request.constraints))
    direct = re.findall(r"https?://[^\s#]+", lines)
    for url in (request.index_url or "", *request.extra_index_urls, *request.find_links, *direct):
        if login := urls.user_info(url):
            known.setdefault(urls.clean(url), login)
    return known


def without_builds(env: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`env` in which no build backend can start: every Python that uv starts for one fails before it reads code.

    uv asks an interpreter about itself in isolated mode, which ignores the variable. git and keyring may be, or
    start, Python programs: their wrappers take it out again."""
    tools = folder / "bin"
    tools.mkdir()
    for tool in ("git", "keyring"):
        if path := shutil.which(tool, path=env.get("PATH")):
            wrapper = tools / tool
            wrapper.write_text(f'#!/bin/sh\nunset PYTHONHOME\nexec {shlex.quote(path)} "$@"\n', "utf-8")
            wrapper.chmod(0o700)
    home = str(folder / "source-builds-are-off")
    return {**env, "PYTHONHOME": home, "PATH": f"{tools}:{env.get('PATH', '')}"}


def index_options(request: ResolveRequest, index_strategy: str) -> tuple[str, ...]:
    """The command-line options about indexes that hold no secret."""
    options = ["--index-strategy", index_strategy]
    for link in request.find_links:
        options += ["--find-links", urls.without_user_info(link)]
    if request.no_index:
        options.append("--no-index")
    return tuple(options)


def _stays(name: str) -> bool:
    if name.startswith("UV_"):
        return _KEPT.fullmatch(name) is not None
    return name not in _PYTHON and not _OF_THE_WORKER.fullmatch(name)


def _set_indexes(env: dict[str, str], request: ResolveRequest, known: Logins) -> None:
    if request.index_url is not None:
        env.pop("UV_INDEX_URL", None)
        env["UV_DEFAULT_INDEX"] = _named(env, "DEFINITION", request.index_url, known)
    extra = [_named(env, f"EXTRA{n}", url, known) for n, url in enumerate(request.extra_index_urls)]
    if extra:
        env["UV_INDEX"] = " ".join([*extra, *filter(None, [env.get("UV_INDEX")])])


def _named(env: dict[str, str], name: str, url: str, known: Logins) -> str:
    """uv's `name=url`, with the index's credentials in the variables of that name."""
    if login := urls.credentials_for(url, known):
        env[f"UV_INDEX_{name}_USERNAME"], env[f"UV_INDEX_{name}_PASSWORD"] = login
    return f"{name.lower()}={urls.without_user_info(url)}"


def _write_netrc(env: dict[str, str], known: Logins, folder: Path) -> None:
    """Credentials by host, for direct addresses, find-links and the worker's own indexes; they replace the user's own.

    uv reads quoted words; there is no way to write a line break or a control character in one."""
    logins: dict[str, tuple[str, str]] = {}
    for key, login in known.items():
        host = urlsplit(key if "://" in key else f"//{key}").hostname
        if host and "".join(login).isprintable():
            logins.setdefault(host, login)
    if not logins:
        return
    lines, known_hosts = [], {**netrc_logins(env), **logins}
    for host, (user, password) in sorted(known_hosts.items(), key=lambda item: not item[0]):  # the default comes last
        place = f"machine {_quoted(host)}" if host else "default"
        lines.append(f"{place} login {_quoted(user)} password {_quoted(password)}\n")
    path = folder / "netrc"
    path.touch(0o600)
    path.write_text("".join(lines), "utf-8")
    env["NETRC"] = str(path)


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
