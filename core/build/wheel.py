"""What a wheel installs: the rules of the Python packaging "binary distribution format", as entries of a layer.

Nothing is written and nothing is executed: a wheel becomes a mapping from paths in the image to content.
"""

import base64
import csv
import hashlib
import io
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zipfile import ZipInfo

from installer.scripts import Script
from installer.utils import parse_entrypoints, parse_metadata_file
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from prefect_environments.core.build import recipe
from prefect_environments.core.build.archive import Archive
from prefect_environments.core.build.tar import Entry, parents
from prefect_environments.core.errors import PackageError
from prefect_environments.core.lock.target import Target

_SCRIPT_NAME = re.compile(r"(?!\.{1,2}$|\.wh\.)[A-Za-z0-9_.+][A-Za-z0-9_.+ -]*")
_PYTHON_SHEBANG = re.compile(rb"#!python(w|[23](\.\d+)?)?(?=[ \t\r\n]|$)")


@dataclass(frozen=True, slots=True)
class Content:
    """An entry with what it holds: bytes made here, or a member of the wheel, still packed."""

    entry: Entry
    data: bytes | ZipInfo


@dataclass(frozen=True, slots=True)
class Bytecode:
    """The compiled form of a module: its entry, its size in bytes, and what gives them in chunks."""

    entry: Entry
    size: int
    read: Callable[[], Iterable[bytes]]


class Wheel:
    """An opened and checked wheel. `contents` maps paths in the image (no leading slash) to their content;
    `bytecode` has the compiled form of modules, by the module's path."""

    def __init__(self, archive: Archive, contents: dict[str, Content], record: str) -> None:
        self.archive = archive
        self.contents = contents
        self.bytecode: Mapping[str, Bytecode] = {}
        self._record = record

    @classmethod
    def open(cls, path: Path, filename: str, target: Target, prefix: str = recipe.PREFIX) -> Self:
        """Read a wheel for a target and the environment at `prefix`. Raises `PackageError` for what is unsafe or not
        a valid wheel."""
        archive = Archive(path, filename)
        try:
            installation = _Installation(archive, filename, target, prefix)
            return cls(archive, installation.contents(), installation.record_path)
        except BaseException:
            archive.__exit__(None, None, None)
            raise

    @property
    def site_packages(self) -> str:
        """The folder in the image, without leading slash, that its modules go to."""
        return posixpath.dirname(posixpath.dirname(self._record))

    def add_bytecode(self, compiled: Mapping[str, Bytecode]) -> None:
        """Take the bytecode of modules, by the module's path, in place of what the wheel itself brings of it.

        RECORD lists it without hash and size, because Python may replace it ("Recording installed projects").
        """
        self.bytecode = compiled
        names = {posixpath.relpath(one.entry.path, self.site_packages) for one in compiled.values()}
        old = self.contents[self._record].data
        assert isinstance(old, bytes)  # noqa: S101  # it was made here
        rows = [row for row in csv.reader(io.StringIO(old.decode(), newline="")) if row[0] not in names]
        content = _record_text([*rows, *([name, "", ""] for name in names)])
        for one in compiled.values():
            self.contents.pop(one.entry.path, None)
        self.contents[self._record] = Content(Entry(self._record, 0o644), content)

    def close(self) -> None:
        self.archive.__exit__(None, None, None)


class _Installation:
    """The mapping of one wheel's members to their places (PEP 427, "Installing a wheel")."""

    def __init__(self, archive: Archive, filename: str, target: Target, root: str) -> None:
        self.archive = archive
        self.python = recipe.executable(root)
        self.site_packages = recipe.site_packages(target, root)
        self.dist_info = self._find_dist_info(filename)
        self.data_folder = self.dist_info.removesuffix(".dist-info") + ".data"
        prefix = root.strip("/")
        project = canonicalize_name(self.dist_info.split("-")[0])
        self.schemes = {
            "purelib": self.site_packages,
            "platlib": self.site_packages,
            "scripts": f"{prefix}/bin",
            "data": prefix,
            "headers": f"{prefix}/include/site/python{target.python_minor}/{project}",
        }
        python = f"python{target.python_minor}"
        self.files = {
            f"{prefix}/{name}"
            for name in ("pyvenv.cfg", "conda-meta", "lib64", "bin/python", "bin/python3", f"bin/{python}")
        }
        """Paths of the environment itself that must stay what they are, its links and settings."""
        self.folders = parents([*self.files, f"{self.site_packages}/x", f"{prefix}/include/site/{python}/x"])
        self.found: dict[str, Content] = {}
        self.record: list[tuple[str, str, str]] = []

    def contents(self) -> dict[str, Content]:
        self._check_wheel_file()
        hashes = self._recorded_hashes()
        for name, member in self.archive.members.items():
            # a wheel that was packed from an installed package may carry that installer's name
            if name not in (f"{self.dist_info}/RECORD", f"{self.dist_info}/INSTALLER"):
                self._place(name, member, hashes.get(name, ""))
        for script in self._scripts():
            self._add_bytes(*script, mode=0o755)
        self._add_bytes(f"{self.site_packages}/{self.dist_info}/INSTALLER", f"{recipe.INSTALLER}\n".encode())
        self._add_record()
        self._check_folders()
        return self.found

    def _find_dist_info(self, filename: str) -> str:
        try:
            name, version, _, _ = parse_wheel_filename(filename)
        except InvalidWheelFilename as error:
            raise PackageError(f"{filename!r} is not a wheel's file name ({error})") from error
        folders = {m.split("/")[0] for m in self.archive.members if m.split("/")[0].endswith(".dist-info")}
        if len(folders) != 1:
            raise self.archive.refused(f"it must have exactly one .dist-info folder, has {sorted(folders)}")
        folder = folders.pop()
        project, _, found = folder.removesuffix(".dist-info").partition("-")
        try:
            same = canonicalize_name(project) == name and Version(found) == version
        except InvalidVersion:
            same = False
        if not same:
            raise self.archive.refused(f"its folder {folder!r} belongs to another package or version")
        return folder

    def _check_wheel_file(self) -> None:
        text = self.archive.read(f"{self.dist_info}/WHEEL", 1 << 20).decode("utf-8", "replace")
        version = parse_metadata_file(text).get("Wheel-Version", "")
        if version.split(".")[0] != "1":
            raise self.archive.refused(f"it has wheel format {version or 'unknown'!r}; 1.x is understood")
        self.archive.read(f"{self.dist_info}/METADATA")

    def _recorded_hashes(self) -> dict[str, str]:
        content = self.archive.read(f"{self.dist_info}/RECORD")
        try:
            rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
        except (csv.Error, UnicodeDecodeError) as error:
            raise self.archive.refused(f"its RECORD cannot be read ({error})") from error
        return {row[0]: row[1] for row in rows if len(row) >= 2 and row[1].startswith("sha256=")}

    def _place(self, name: str, member: ZipInfo, recorded: str) -> None:
        executable = bool((member.external_attr >> 16) & 0o111)
        top, _, rest = name.partition("/")
        if top != self.data_folder:
            self._add_member(f"{self.site_packages}/{name}", member, recorded, executable)
            return
        scheme, _, rest = rest.partition("/")
        if scheme not in self.schemes or not rest:
            raise self.archive.refused(f"{name!r} is in no known folder of a wheel's .data")
        path = f"{self.schemes[scheme]}/{rest}"
        if scheme == "scripts":
            shebang = _PYTHON_SHEBANG.match(next(self.archive.stream(member), (b"", b""))[1])
            if shebang:
                content = b"#!" + self.python.encode() + self.archive.read(name)[shebang.end() :]
                self._add_bytes(path, content, mode=0o755)
                return
            executable = True
        self._add_member(path, member, recorded, executable)

    def _scripts(self) -> list[tuple[str, bytes]]:
        name = f"{self.dist_info}/entry_points.txt"
        if name not in self.archive.members:
            return []
        found = []
        try:
            for script, module, attribute, section in parse_entrypoints(self.archive.read(name, 1 << 20).decode()):
                if not _SCRIPT_NAME.fullmatch(script):
                    raise self.archive.refused(f"the entry point {script!r:.100} is not a file name")
                if not re.fullmatch(r"[\w.]+", module) or not re.fullmatch(r"[\w.]+", attribute):
                    raise self.archive.refused(f"the entry point {script!r} does not name a function")
                kind = Script(script, module, attribute, section)
                file, content = kind.generate(self.python, "posix")
                found.append((f"{self.schemes['scripts']}/{file}", content))
        except PackageError:
            raise
        except Exception as error:  # configparser and installer raise many kinds, all of them for malformed text
            raise self.archive.refused(f"its entry_points.txt cannot be read ({type(error).__name__})") from error
        return found

    def _add_member(self, path: str, member: ZipInfo, recorded: str, executable: bool) -> None:
        self._add(Content(Entry(path, 0o755 if executable else 0o644), member))
        self._note(path, recorded or self._hash(member), member.file_size)

    def _add_bytes(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        self._add(Content(Entry(path, mode), data))
        self._note(path, _record_hash(hashlib.sha256(data)), len(data))

    def _add(self, content: Content) -> None:
        path = content.entry.path
        if path in self.found and not path.startswith(f"{self.schemes['scripts']}/"):
            raise self.archive.refused(f"two of its members would be installed at /{path}")
        if path in self.files or path in self.folders:
            raise self.archive.refused(f"it would replace /{path}, a part of the environment itself")
        self.found[path] = content

    def _note(self, path: str, digest: str, size: int | str) -> None:
        inside = f"{self.site_packages}/"
        name = path.removeprefix(inside) if path.startswith(inside) else posixpath.relpath(path, self.site_packages)
        self.record.append((name, digest, str(size)))

    def _hash(self, member: ZipInfo) -> str:
        hasher = hashlib.sha256()
        for _, content in self.archive.stream(member):
            hasher.update(content)
        return _record_hash(hasher)

    def _add_record(self) -> None:
        path = f"{self.dist_info}/RECORD"
        rows = {row[0]: row for row in self.record} | {path: (path, "", "")}
        self._add(Content(Entry(self.record_path, 0o644), _record_text(rows.values())))

    @property
    def record_path(self) -> str:
        return f"{self.site_packages}/{self.dist_info}/RECORD"

    def _check_folders(self) -> None:
        folders = parents(self.found)
        if clash := sorted(folders & self.found.keys()):
            raise self.archive.refused(f"/{clash[0]} would be a file and a folder")
        if clash := sorted(folders & self.files):
            raise self.archive.refused(f"it would replace /{clash[0]}, a part of the environment itself")


def _record_text(rows: Iterable[Sequence[str]]) -> bytes:
    text, ordered = io.StringIO(), sorted(rows, key=lambda row: row[0])
    csv.writer(text, lineterminator="\n").writerows(ordered)
    return text.getvalue().encode()


def _record_hash(hasher: "hashlib._Hash") -> str:
    return "sha256=" + base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode()
