"""Resolving with `uv pip compile`, for the image's Python and libc, on any machine.

**Sources.** Source distributions are visible, so that the version is chosen as if everything could be built; then a
package without a fitting wheel is an error that names it. (`--no-build` would hide them, and give an older version
that has a wheel.) Dependencies come from a wheel's metadata, of whatever platform, or from an sdist's static metadata
(PEP 643) or `pyproject.toml`. Where only a build tells them, uv would run the package's code here: unless
`allow_source_builds` is set, `PYTHONHOME` names a missing folder for uv's children, so that no interpreter starts
(not even to read a `.pth` file of a build requirement), and the failed build becomes `NoFittingWheel`. One
consequence: a version that uv only looked at while searching can be the one that is named; excluding it helps. git
and keyring, which uv also starts, get their usual environment by wrappers. A version that has neither an sdist nor a
fitting wheel is passed over, as pip does.

**Indexes.** The first index that has a package decides (uv's `first-index`), and extra indexes come before the main
one. pip takes the best version of all indexes, which lets anybody who registers the name of a private package in a
public index replace it; a lock that is made unattended should not allow that. `index_strategy="unsafe-best-match"`
gives pip's way. An index that the definition does not name comes from uv's own variables (`UV_DEFAULT_INDEX`,
`UV_INDEX` and so on). pip's configuration (`pip.conf`, `PIP_INDEX_URL`) is not read: it differs from machine to machine
without being seen in the definition.

**Credentials** reach uv by environment variables and a netrc file in a private folder: never by the command line.

**Preferences.** The previous lock is given as uv's existing output file, whose versions uv keeps where it can.
"""

import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import platformdirs
import tomli_w
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from prefect_environments.core.errors import NoFittingWheel, ResolveError, UndatedPackages
from prefect_environments.core.files import storage, temporary_folder
from prefect_environments.core.formats import pylock as given
from prefect_environments.core.lock import age, process, pylock, sizes, source_builds, urls, uv_environment, wheels
from prefect_environments.core.lock.model import Lock, LockedPackage
from prefect_environments.core.lock.resolver import ResolveRequest
from prefect_environments.core.lock.target import ARCHITECTURES, Target

IndexStrategy = Literal["first-index", "unsafe-first-match", "unsafe-best-match"]

_MANYLINUX = (17, 28, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40)
"""The glibc 2.x that `--python-platform` knows."""

_HASH = re.compile(r"\s+--hash[=\s]\s*([a-z0-9]+):([0-9a-fA-F]+)")
_BUILD_FAILED = re.compile(r"[Ff]ailed to (?:download and )?build:? `([^`]+)`")
_REFUSED = re.compile(r"40[13] (?:Unauthorized|Forbidden)")
_UNREACHED = re.compile(r"[Ff]ailed to fetch|Request failed after|error sending request|[Gg]it operation failed")
_NO_WHEEL = re.compile(r"has no (?:usable wheels|(?:compatible )?wheels with a matching)")
_NOISE = re.compile(r"^warning: The requested Python version .* is not available;.*\n?", re.MULTILINE)
logger = logging.getLogger(__name__)

_OUTPUT = "pylock.resolved.toml"  # uv takes no name with another dot in it


class UvResolver:
    """Resolves pip requirements with uv; see the module's docstring for what it decides.

    `environ` is what uv inherits (by default this process's environment), less everything that would change the
    answer. `timeout` is in seconds, for resolving and for each build. `scratch` is a folder for temporary ones.
    """

    def __init__(
        self,
        *,
        wheel_store: source_builds.WheelStore | None = None,
        index_strategy: IndexStrategy = "first-index",
        environ: Mapping[str, str] | None = None,
        uv: str | None = None,
        timeout: float = 900,
        scratch: Path | None = None,
    ) -> None:
        cache = platformdirs.user_cache_path("prefect-environments")
        self._store = wheel_store or source_builds.FolderWheelStore(cache / "built-wheels")
        self._scratch = scratch or cache / "resolve"
        self._index_strategy = index_strategy
        self._environ = environ
        self._uv = uv
        self._timeout = timeout

    async def resolve(self, request: ResolveRequest) -> Lock:
        """The lock for `request`.

        Raises `ResolveError` with uv's whole explanation if nothing satisfies it, `NoFittingWheel` for packages
        that have no wheel for the target, `StorageError` if built wheels cannot be kept.
        """
        packages, hashes = _without_hashes((*request.packages, *request.constraints))
        environ = os.environ if self._environ is None else self._environ
        # not in the system's folder: what a killed process leaves here, credentials perhaps, is swept by the next one
        with storage("resolving", self._scratch), temporary_folder(self._scratch) as folder:
            env = uv_environment.environment(environ, request, folder)
            if request.pylock:
                document = given.packages_for(request.pylock, request.target)
            else:
                document = await self._compile(request, packages, env, folder)
            preferences = None if request.upgrade else request.preferences
            chosen = wheels.choose(document, request.target, preferences=preferences, hashes=hashes)
            if request.require_hashes:
                _check_hashed(request, document, hashes)
            built = await self._build(request, chosen.missing, env, hashes) if chosen.missing else ()
            known = {package.sha256: package.size for package in preferences.packages} if preferences else {}
            sized = await sizes.complete(chosen.packages, uv_environment.credentials(request), known)
        requested = tuple(urls.without_user_info(line) for line in request.packages)
        return Lock(request.base, request.target, (*sized, *built), requested)

    async def _compile(
        self, request: ResolveRequest, lines: tuple[str, ...], env: dict[str, str], folder: Path
    ) -> tuple[pylock.ResolvedPackage, ...]:
        _write_inputs(request, lines, folder)
        if not request.allow_source_builds:
            env = uv_environment.without_builds(env, folder)
        done, undated = await self._run(request, env, folder)
        if done.status:
            said = _NOISE.sub("", done.stderr).strip()
            raise _too_young(request, said, undated) or _explained(request, said)
        if undated:
            taken = "taken" if request.allow_undated else "left out"
            logger.warning("a package index tells no upload times of files of %s: %s", ", ".join(undated), taken)
        return pylock.read((folder / _OUTPUT).read_text("utf-8"), folder)

    async def _run(
        self, request: ResolveRequest, env: dict[str, str], folder: Path
    ) -> tuple[process.Finished, dict[str, str]]:
        """What uv says, and a file of each package that an index tells no upload time of. Where those are allowed, it
        is asked again without the limit for them: what they need may be such a package, too."""
        undated: dict[str, str] = {}
        while True:
            arguments = [self._path(), *_arguments(request, self._index_strategy)]
            arguments += age.uv_options(request.exclude_newer, request.settled, undated)
            done = await process.run(arguments, env=env, cwd=folder, seconds=self._timeout)
            found = age.undated(done.stderr) if request.exclude_newer else {}
            new = found.keys() - undated.keys()
            undated |= {name: found[name] for name in new}
            if not (new and request.allow_undated):
                return done, undated

    async def _build(
        self,
        request: ResolveRequest,
        missing: tuple[pylock.ResolvedPackage, ...],
        env: dict[str, str],
        hashes: Mapping[str, frozenset[str]],
    ) -> tuple[LockedPackage, ...]:
        hopeless = tuple(package for package in missing if package.source is None)
        if hopeless or not request.allow_source_builds:
            raise wheels.no_fitting_wheel(hopeless or missing, request.target, builds=request.allow_source_builds)
        options = uv_environment.index_options(request, self._index_strategy)
        settings = source_builds.BuildSettings(
            self._path(), env, request.target, uv_environment.credentials(request), self._timeout, options
        )
        built = []
        for package in missing:
            if package.source is None:
                continue
            allowed = hashes.get(package.name)
            if allowed is not None and package.source.sha256 not in allowed:
                raise ResolveError(
                    f"the source of {package.source} has none of the sha256 values of its --hash options"
                )
            wheel = await source_builds.find_or_build(package.source, store=self._store, settings=settings)
            built.append(replace(wheel, name=package.name, url=None))
        return tuple(built)

    def _path(self) -> str:
        try:
            return self._uv or find_uv_bin()
        except FileNotFoundError as error:
            raise ResolveError("uv is not installed beside this package; install it with: pip install uv") from error


def uv_platform(target: Target) -> str:
    """uv's name of the target's platform, of the greatest glibc that it knows and the image has.

    Raises `ResolveError` for a glibc before 2.17: no current wheel runs there."""
    machine = ARCHITECTURES[target.platform.architecture]
    major, minor = wheels.libc_version(target)
    if target.libc == "musl":
        return f"{machine}-unknown-linux-musl"
    known = [n for n in _MANYLINUX if n <= minor]
    if major != 2 or not known:
        raise ResolveError(f"the base image has glibc {target.libc_version}; 2.17 or newer is needed: choose another")
    return f"{machine}-manylinux_2_{known[-1]}"


def _arguments(request: ResolveRequest, index_strategy: str) -> list[str]:
    arguments = ["pip", "compile", "requirements.in", "--format", "pylock.toml", "--output-file", _OUTPUT]
    arguments += ["--no-config", "--no-sources", "--no-header", "--no-annotate", "--color", "never"]
    arguments += ["--python-version", request.target.python, "--python-platform", uv_platform(request.target)]
    arguments += uv_environment.index_options(request, index_strategy)
    if not request.allow_source_builds or source_builds.host_has(request.target):
        arguments += ["--python", sys.executable]  # spares uv the search for one of the target's version
    if request.constraints or request.settled:
        arguments += ["--constraints", "constraints.in"]
    if request.pre:
        arguments += ["--prerelease", "allow"]
    for name in request.only_binary:
        arguments += ["--only-binary", name]
    if not request.exclude_newer:  # else its warnings count
        arguments.append("--quiet")
    return arguments


def _write_inputs(request: ResolveRequest, lines: tuple[str, ...], folder: Path) -> None:
    packages, constraints = lines[: len(request.packages)], lines[len(request.packages) :]
    constraints = (*constraints, *age.constraints(request.settled))
    if request.with_pip and "pip" not in {requirement_name(line) for line in packages}:
        packages = (*packages, "pip")  # an environment has pip in it, as a venv or conda's does
    (folder / "requirements.in").write_text("".join(f"{line}\n" for line in packages), "utf-8")
    (folder / "constraints.in").write_text("".join(f"{line}\n" for line in constraints), "utf-8")
    if request.preferences is not None and not request.upgrade:
        (folder / _OUTPUT).write_text(_preferences(request.preferences.packages), "utf-8")


def _preferences(packages: Iterable[LockedPackage]) -> str:
    # Only versions matter to uv here; what was built from source has no address, and must have one in this format.
    tables = [
        {
            "name": package.name,
            "version": package.version,
            "wheels": [
                {"url": f"https://example.com/{package.filename}", "hashes": {"sha256": package.sha256}},
            ],
        }
        for package in packages
    ]
    return tomli_w.dumps({"lock-version": "1.0", "created-by": "prefect-environments", "packages": tables})


def requirement_name(line: str) -> str | None:
    """The normalised package name of a requirement line; `None` for a bare path or address."""
    try:
        return canonicalize_name(Requirement(line).name)
    except InvalidRequirement:
        return None


def _without_hashes(lines: Iterable[str]) -> tuple[tuple[str, ...], dict[str, frozenset[str]]]:
    """The lines without `--hash` options, and the sha256 digests that they allow by package.

    uv's `pip compile` reads the options and does not apply them, so we do. pip allows what any line of a package
    allows; requirement and constraint lines count alike."""
    bare, hashes = [], dict[str, frozenset[str]]()
    for line in lines:
        found = _HASH.findall(line)
        stripped = _HASH.sub("", line).strip()
        bare.append(stripped)
        if not found:
            continue
        name = requirement_name(stripped)
        allowed = frozenset(value.lower() for algorithm, value in found if algorithm == "sha256")
        if name is None or not allowed:
            need = "a name before it" if name is None else "a sha256 among its --hash options"
            raise ResolveError(f"the requirement {urls.without_user_info(stripped)!r} needs {need}; add it")
        hashes[name] = hashes.get(name, frozenset()) | allowed
    return tuple(bare), hashes


def _check_hashed(
    request: ResolveRequest, document: Iterable[pylock.ResolvedPackage], hashes: Mapping[str, frozenset[str]]
) -> None:
    """Refuse packages without a `--hash`; the pip that every environment gets is not the definition's."""
    asked = {requirement_name(_HASH.sub("", line)) for line in request.packages}
    missing = sorted(p.name for p in document if p.name not in hashes and (p.name != "pip" or "pip" in asked))
    if missing:
        raise ResolveError(
            f"every package must have a --hash, because one has or --require-hashes says so; {', '.join(missing)} "
            f"{'has' if len(missing) == 1 else 'have'} none. Add them, dependencies too (pip-compile --generate-hashes "
            "and uv pip compile --generate-hashes write such files)"
        )


def _shared_hosts(request: ResolveRequest) -> str:
    """A word about hosts with several logins: uv tells them apart by what an address begins with, which files that lie
    elsewhere on the host do not tell."""
    known = uv_environment.credentials(request)
    hosts = [urlsplit(key).netloc.lower() for key in dict.fromkeys(known) if "://" in key]
    logins = {host: {known[key] for key in known if urlsplit(key).netloc.lower() == host} for host in hosts}
    several = sorted(host for host, found in logins.items() if len(found) > 1)
    if not several:
        return ""
    return (
        f" Feeds on {', '.join(several)} have different ones: where their files are not below the feed's own address, "
        "give all of them one token that may read them all"
    )


def _too_young(request: ResolveRequest, stderr: str, undated: Mapping[str, str]) -> ResolveError | None:
    """The error where the age limit is why there is no answer."""
    if undated and not request.allow_undated:
        files = ", ".join(list(undated.values())[:5])
        return UndatedPackages(
            f"a package index tells no upload times (of {files}{' and more' if len(undated) > 5 else ''}), so it is "
            f"not known which of its files are from before {request.exclude_newer}, and none is taken. Allow undated "
            f"packages, resolve without an age limit, or use an index that tells them (PEP 700)\n{stderr}"
        )
    if request.exclude_newer and "`exclude-newer`" in stderr:
        return ResolveError(
            f"no set of packages from before {request.exclude_newer} satisfies {len(request.packages)} requirements "
            f"for {wheels.describe(request.target)}: what is asked for is younger. Wait, or resolve without the age "
            f"limit\n{stderr}"
        )
    return None


def _explained(request: ResolveRequest, stderr: str) -> ResolveError:
    target = wheels.describe(request.target)
    failed = _BUILD_FAILED.search(stderr)
    if failed and not request.allow_source_builds:
        subject = failed[1].replace("==", " ", 1)
        chain = "".join(f"\n{line.strip()}" for line in stderr.splitlines() if "was included because" in line)
        return NoFittingWheel(
            f"no wheel of {subject} tells what it needs, for the image ({target}): there is only source, whose build "
            f"code would have to run here. Pin a version that has a wheel, set allow_source_builds for pure-Python "
            f"sources, or use a Dockerfile for compiled ones{chain}"
        )
    if failed:
        return ResolveError(f"building {failed[1]} from source, to learn what it needs, failed; uv says:\n{stderr}")
    if _NO_WHEEL.search(" ".join(stderr.split())):  # some releases of uv wrap lines
        return NoFittingWheel(
            f"no wheel fits the image ({target}) for a package that uv names below. Choose a base image with another "
            f"Python or a newer libc, another version of the package, or a Dockerfile\n{stderr}"
        )
    asked = f"{len(request.packages)} requirements for {target}"
    if refused := _REFUSED.search(stderr):
        return ResolveError(
            f"a package index refused the credentials, or wants some ({refused[0]}), so {asked} cannot be resolved. "
            "Give user and password in a PackageIndexCredentials block, a netrc file or UV_INDEX_… variables."
            f"{_shared_hosts(request)}\n{stderr}"
        )
    if unreached := _UNREACHED.search(stderr):
        return ResolveError(
            f"a package index or git host could not be read ({unreached[0]}), so {asked} cannot be resolved. Check its "
            f"address, the network and the proxy, then run again\n{stderr}"
        )
    return ResolveError(
        f"no set of packages satisfies {asked}. Loosen or correct the requirements that uv names below, or choose "
        f"a base image with another Python. The first index that has a package decides, extra ones first\n{stderr}"
    )
