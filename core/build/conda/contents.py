"""What a conda package brings, read before anything of it is unpacked: everything unsafe in it is refused here.

rattler, which unpacks and links it then, follows `info/paths.json` wherever it leads.
"""

import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from prefect_environments.core.build import recipe
from prefect_environments.core.build.archive import MEMBERS_MAX, NAME_MAX
from prefect_environments.core.build.conda.stream import members, refused
from prefect_environments.core.build.tar import parents
from prefect_environments.core.errors import PackageError
from prefect_environments.core.lock.model import LockedCondaPackage

_INFO_MAX = 64 * 1024 * 1024
_INFO = ("index.json", "paths.json", "files", "link.json")
_BAD_NAME = re.compile(r"[\0-\x1f\x7f-\x9f\ud800-\udfff]|^/|(^|/)(\.{0,2}|\.wh\.[^/]*)(/|$)")
_FILENAME = re.compile(r"[A-Za-z0-9_.!+~-]+(\.conda|\.tar\.bz2)")
_ENTRY_POINT = re.compile(r"\s*([A-Za-z0-9_.+][A-Za-z0-9_.+-]*)\s*=\s*([\w.]+)\s*:\s*([\w.]+)\s*")
_LINK_SCRIPT = re.compile(r"bin/\.[^/]+-(pre-link|post-link|pre-unlink)\.sh")
_ACTIVATION = re.compile(r"etc/conda/(activate\.d|env_vars\.d)/[^/]+")
_DISTRIBUTION = re.compile(r"([^/-]+)(-[^/]*)?\.(dist|egg)-info(/|$)")
_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE)
_OURS = re.compile(r"conda-meta|conda-meta/(history|[^/]+\.json)(/.*)?|pyvenv\.cfg(/.*)?|CACHEDIR\.TAG")


@dataclass(frozen=True, slots=True)
class Contents:
    """A checked package. Paths are relative to the environment's prefix."""

    index: Mapping[str, Any]
    """`info/index.json` as it is."""
    files: frozenset[str]
    """What will be linked, scripts of entry points included."""
    links: frozenset[str]
    """Those of `files` that are symbolic links."""
    folders: frozenset[str]
    """Folders that are listed as such, empty ones among them."""
    distributions: frozenset[str] = frozenset()
    """Normalised names of the Python distributions in it."""

    @property
    def is_noarch_python(self) -> bool:
        return self.index.get("noarch") == "python"

    @property
    def not_run(self) -> list[str]:
        """Link and activation scripts: conda runs them on a machine, and nobody does in an image."""
        return sorted(path for path in self.files if _LINK_SCRIPT.fullmatch(path) or _ACTIVATION.fullmatch(path))


@dataclass(slots=True)
class _Found:
    """What the archive holds, by the names of its members."""

    label: str
    members: dict[str, bytes] = field(default_factory=dict)
    """Kinds by name."""
    info: dict[str, bytes] = field(default_factory=dict)

    def add(self, member: tarfile.TarInfo, read: Callable[[], bytes]) -> None:
        name = member.name.removeprefix("./")
        if name in ("", ".") and member.isdir():
            return
        check_name(name, self.label)
        if member.type not in _KINDS or member.sparse is not None:
            raise refused(self.label, f"its member {name!r} is a device or another special file")
        if name in self.members and not (member.isdir() and self.members[name] == tarfile.DIRTYPE):
            raise refused(self.label, f"it holds {name!r} twice")
        if len(self.members) >= MEMBERS_MAX:
            raise refused(self.label, f"it has more than {MEMBERS_MAX} members")
        if member.islnk() and self.members.get(member.linkname.removeprefix("./")) not in _KINDS[:2]:
            raise refused(self.label, f"its hard link {name!r} leads to no file of it before: {member.linkname!r:.200}")
        if member.issym():
            self._check_link(name, member.linkname)
        self.members[name] = tarfile.REGTYPE if member.islnk() else member.type
        folder, _, rest = name.partition("/")
        if folder == "info" and "/" not in rest and not (member.isreg() or member.isdir()):
            raise refused(self.label, f"its {name} is a link")  # other readers would read what it leads to
        if folder == "info" and rest in _INFO and member.isreg():
            if member.size > _INFO_MAX:
                raise refused(self.label, f"its {name} has {member.size} bytes, more than {_INFO_MAX}")
            self.info[rest] = read()

    def _check_link(self, name: str, target: str) -> None:
        """An absolute link is kept, nobody follows it here; a relative one must stay in the environment."""
        if not target or re.search(r"[\0-\x1f\ud800-\udfff]", target):
            raise refused(self.label, f"its link {name!r} has an unsafe target")
        depth = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if not target.startswith("/") and depth.split("/")[0] == "..":
            raise refused(self.label, f"its link {name!r} leads out of the environment: {target!r:.200}")

    def document(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self.info[name])
        except (ValueError, RecursionError) as error:
            raise refused(self.label, f"its info/{name} is not JSON ({type(error).__name__})") from None
        if not isinstance(found, dict):
            raise refused(self.label, f"its info/{name} is no JSON object")
        return found


def read_contents(package: LockedCondaPackage, path: Path, python: str) -> Contents:
    """Check a package's archive, and what it will install for Python `python` (`3.11`; empty where there is none).

    Raises `PackageError` for what is unsafe, damaged, or not the package that the lock names.
    """
    label = package.filename
    if not _FILENAME.fullmatch(label):
        raise PackageError(f"{label!r:.200} is no file name of a conda package (NAME-VERSION-BUILD.conda or .tar.bz2)")
    found = _Found(label)
    for member, read in members(path, label):
        found.add(member, read)
    files = {name for name, kind in found.members.items() if kind != tarfile.DIRTYPE}
    if clash := sorted(parents(found.members) & files):
        raise refused(label, f"{clash[0]!r} is a file or link and a folder")
    index = _index(found, package)
    listed = _listed(found)
    own = index.get("python_site_packages_path") if package.name == "python" else None
    if own not in (None, f"lib/python{python}/site-packages"):
        raise refused(label, f"this Python looks for packages in {own!r:.100}; free-threaded builds are not supported")
    noarch = index.get("noarch") == "python"
    if noarch and not python:
        raise refused(label, "it is for any Python, but the environment has no Python; add python to the definition")
    places = {name: _place(name, python) if noarch else name for name in listed}
    placed = {places[name]: kind for name, kind in listed.items()}
    scripts = {f"bin/{name}" for name in _entry_points(found)} if noarch else set()
    result = Contents(
        index,
        frozenset({name for name, kind in placed.items() if kind != "directory"} | scripts),
        frozenset(place for name, place in places.items() if found.members.get(name) == tarfile.SYMTYPE),
        frozenset(name for name, kind in placed.items() if kind == "directory"),
        _distributions(placed, python),
    )
    _check_places(result, len(listed), label)
    return result


def check_name(name: str, label: str) -> None:
    if _BAD_NAME.search(name) or any(len(part.encode()) > NAME_MAX for part in name.split("/")):
        raise refused(label, f"{name!r:.200} is an unsafe name")


def _index(found: _Found, package: LockedCondaPackage) -> dict[str, Any]:
    if "index.json" not in found.info:
        raise refused(found.label, "it has no info/index.json")
    index = found.document("index.json")
    told = (str(index.get("name")).lower(), index.get("version"), index.get("build"))
    if told != (package.name.lower(), package.version, package.build) or index.get("subdir", package.subdir) not in (
        package.subdir,
        None,
    ):
        wanted = f"{package.name} {package.version} {package.build} of {package.subdir}"
        raise refused(found.label, f"it is {' '.join(map(str, told))} of {index.get('subdir')}, the lock says {wanted}")
    return index


def _listed(found: _Found) -> dict[str, str]:
    """Kinds by name of what is to be installed: from `info/paths.json`, in packages before 2017 from `info/files`."""
    label = found.label
    if "paths.json" not in found.info:
        names = found.info.get("files", b"").decode("utf-8", "surrogateescape").split("\n")
        entries: Any = [{"_path": name, "path_type": "hardlink"} for name in names if name]
    else:
        entries = found.document("paths.json").get("paths")
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("_path"), str) for e in entries
    ):
        raise refused(label, "its info/paths.json has no list of paths")
    listed: dict[str, str] = {}
    for entry in entries:
        name, kind = entry["_path"], entry.get("path_type")
        check_name(name, label)
        if name in listed:
            raise refused(label, f"its info/paths.json names {name!r} twice")
        there = found.members.get(name)
        if kind not in ("hardlink", "softlink", "directory") or (there is None and kind != "directory"):
            raise refused(label, f"its info/paths.json names {name!r}, a {kind!r:.50} that it does not hold")
        if (kind == "directory") != (there in (tarfile.DIRTYPE, None)):
            raise refused(label, f"its info/paths.json says that {name!r} is a {kind}, which it is not")
        if there == tarfile.SYMTYPE and entry.get("prefix_placeholder") is not None:
            raise refused(label, f"its link {name!r} is to be rewritten, which would change the file it leads to")
        listed[name] = kind
    return listed


def _entry_points(found: _Found) -> list[str]:
    """Names of the commands that `info/link.json` asks for (CEP 20)."""
    if "link.json" not in found.info:
        return []
    noarch = found.document("link.json").get("noarch")
    given = noarch.get("entry_points") if isinstance(noarch, dict) else None
    names = []
    for line in given or ():
        match = _ENTRY_POINT.fullmatch(line) if isinstance(line, str) else None
        if match is None or match[1] in (".", ".."):
            raise refused(found.label, f"its entry point {line!r:.200} is not of the form NAME = MODULE:FUNCTION")
        names.append(match[1])
    return names


def _place(name: str, python: str) -> str:
    """Where a file of a noarch Python package goes (CEP 20)."""
    for source, target in (("site-packages/", f"lib/python{python}/site-packages/"), ("python-scripts/", "bin/")):
        if name.startswith(source):
            return target + name.removeprefix(source)
    return name


def _distributions(placed: Mapping[str, str], python: str) -> frozenset[str]:
    inside = f"lib/python{python}/site-packages/"
    found = (_DISTRIBUTION.match(name.removeprefix(inside)) for name in placed if name.startswith(inside))
    return frozenset(canonicalize_name(match[1]) for match in found if match)


def _check_places(contents: Contents, listed: int, label: str) -> None:
    if len(contents.files) + len(contents.folders) < listed:
        raise refused(label, "two of its files would be installed at one place")
    everything = contents.files | contents.folders
    if clash := sorted(parents(everything) & contents.files):
        raise refused(label, f"/{recipe.PREFIX.strip('/')}/{clash[0]} would be a file or link and a folder")
    if ours := sorted(path for path in everything if _OURS.fullmatch(path)):
        raise refused(label, f"it would replace {recipe.PREFIX}/{ours[0]}, a part of the environment itself")
