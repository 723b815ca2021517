"""What differs between two versions of an environment, or between a registered lock and a fresh one."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prefect_environments.core import attachments, hashes, loop, steps
from prefect_environments.core.console import megabytes
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import ImageError, NotFound
from prefect_environments.core.lock.model import Lock, LockedCondaPackage, LockedPackage
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.site import Site, open_site
from prefect_environments.core.versions import VersionRecord
from prefect_environments.core.workspace import Workspace

_Package = LockedPackage | LockedCondaPackage


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs. `sign` is `+` for what was added, `-` for what was removed, `~` for what changed.

    `kind` is `pip`, `conda`, `base`, `target`, `variable` or `about`. Of a variable, `old` and `new` are empty: its
    values are nobody's business.
    """

    sign: str
    kind: str
    name: str
    old: str = ""
    new: str = ""
    detail: str = ""

    def __str__(self) -> str:
        label = f"variable {self.name}" if self.kind == "variable" else self.name
        values = " → ".join(value for value in (self.old, self.new) if value)
        notes = [note for note in ("conda" if self.kind == "conda" else "", self.detail) if note]
        return " ".join([self.sign, label, *([values] if values else []), *(f"({note})" for note in notes)])


@dataclass(frozen=True, slots=True)
class LockDiff:
    """What differs between two locks. `archive_bytes` are the sizes of all package files, as far as they are known."""

    packages: tuple[Change, ...]
    base: tuple[Change, ...]
    """Its name and its digest."""
    target: tuple[Change, ...]
    """Python, libc, platform and bytecode."""
    image_hashes: tuple[str, str]
    archive_bytes: tuple[int, int]

    @property
    def equal(self) -> bool:
        """Whether both locks give the same image."""
        return self.image_hashes[0] == self.image_hashes[1]

    @property
    def changes(self) -> tuple[Change, ...]:
        return (*self.base, *self.target, *self.packages)

    def to_dict(self) -> dict[str, Any]:
        """The diff as plain JSON values."""
        return {**_plain(asdict(self)), "equal": self.equal}

    def to_text(self) -> str:
        """One line a change, such as `~ pandas 2.2.2 → 2.2.3`."""
        return "\n".join(map(str, self.changes)) or "no difference"

    def to_markdown(self) -> str:
        return f"```diff\n{self.to_text()}\n```"

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def __str__(self) -> str:
        return self.to_text()


@dataclass(frozen=True, slots=True)
class LayerShare:
    """Layers of two images by digest: how many they share and how many only one has, with their bytes as stored."""

    shared: int
    shared_bytes: int
    only_a: int
    only_a_bytes: int
    only_b: int
    only_b_bytes: int


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """What differs between the versions `a` and `b` of an environment; shows itself in notebooks."""

    name: str
    a: int
    b: int
    lock: LockDiff | None
    """`None` where a lock could not be read; `notes` says which one."""
    variables: tuple[Change, ...]
    about: tuple[Change, ...]
    """Description, tags and interpreter."""
    sizes: tuple[int, int]
    """Compressed bytes of the images."""
    layers: LayerShare | None
    """`None` where an image is gone from the registry."""
    image_hash_equal: bool
    digest_equal: bool
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        return (*(self.lock.changes if self.lock else ()), *self.variables, *self.about)

    def to_dict(self) -> dict[str, Any]:
        """The diff as plain JSON values."""
        return {**_plain(asdict(self)), "lock": self.lock.to_dict() if self.lock else None}

    def to_text(self) -> str:
        """A line a change, then sizes and layers."""
        facts = (f"{what}: {value}" for what, value in self._facts())
        return "\n".join([f"{self.name} {self.a} → {self.b}", *self._lines(), *facts, *self.notes])

    def to_markdown(self) -> str:
        """The same for Prefect's interface and for notebooks."""
        lines = [f"# {self.name}: version {self.a} → {self.b}", "", "```diff", *self._lines(), "```", ""]
        lines += ["| What | Value |", "|---|---|", *(f"| {what} | {value} |" for what, value in self._facts())]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip()

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def __str__(self) -> str:
        return self.to_text()

    def _lines(self) -> list[str]:
        return list(map(str, self.changes)) or ["no difference" + (" in what could be read" if self.notes else "")]

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "size", f"{megabytes(self.sizes[0])} → {megabytes(self.sizes[1])}"
        if self.layers:
            own = self.layers
            yield "layers shared", f"{own.shared} ({megabytes(own.shared_bytes)})"
            yield f"layers only in {self.a}", f"{own.only_a} ({megabytes(own.only_a_bytes)})"
            yield f"layers only in {self.b}", f"{own.only_b} ({megabytes(own.only_b_bytes)})"
        yield "image hash", "equal" if self.image_hash_equal else "differs"
        yield "image digest", "equal" if self.digest_equal else "differs"


def compare_locks(old: Lock, new: Lock) -> LockDiff:
    """What changed from one lock to another: packages of pip and conda, base image, interpreter. No network."""
    digests = _changed("base", "base digest", old.base.digest, new.base.digest)
    return LockDiff(
        (*_packages("pip", old.packages, new.packages), *_packages("conda", old.conda, new.conda)),
        (*_changed("base", "base", old.base.name, new.base.name), *digests),
        tuple(change for name, a, b in _targets(old, new) for change in _changed("target", name, a, b)),
        (hashes.image_hash(old), hashes.image_hash(new)),
        (_bytes(old), _bytes(new)),
    )


def compare_records(
    a: VersionRecord,
    b: VersionRecord,
    locks: tuple[Lock | None, Lock | None],
    manifests: tuple[ImageManifest | None, ImageManifest | None],
    notes: Iterable[str] = (),
) -> VersionDiff:
    """What differs between two records, with their locks and manifests where there are some. No network."""
    old, new = locks
    first, second = manifests
    return VersionDiff(
        a.name,
        a.version,
        b.version,
        compare_locks(old, new) if old and new else None,
        tuple(_names("variable", a.environment_variables, b.environment_variables)),
        tuple(_about(a, b)),
        (a.size, b.size),
        _layers(first, second) if first and second else None,
        a.image_hash == b.image_hash,
        a.digest == b.digest,
        tuple(notes),
    )


async def compare_versions(site: Site, name: str, a: int, b: int | None = None) -> VersionDiff:
    """What differs between two registered versions; `b` is the newest one unless given.

    A lock or an image that the registry no longer has is a note in the result. Raises `VersionNotFound`, and the
    registry's errors where it cannot be asked.
    """
    records = [await steps.find_version(site.workspace, name, version) for version in (a, b)]
    notes: list[str] = []
    locks = [await _lock(site, record, notes) for record in records]
    manifests = [await _manifest(site, record, notes) for record in records]
    found = dict.fromkeys(notes)  # one version against itself has each note once
    return compare_records(records[0], records[1], (locks[0], locks[1]), (manifests[0], manifests[1]), found)


def compare(workspace: Workspace, name: str, a: int, b: int | None = None) -> VersionDiff:
    """`compare_versions`, synchronous, also where a loop runs."""

    async def work() -> VersionDiff:
        async with open_site(workspace) as site:
            return await compare_versions(site, name, a, b)

    return loop.run(work())


async def _lock(site: Site, record: VersionRecord, notes: list[str]) -> Lock | None:
    if not record.lock_digest:
        notes.append(f"version {record.version} has no lock: it is not built yet")
        return None
    try:
        return await attachments.read_lock(site.repository(record.name), record.lock_digest)
    except (NotFound, ImageError) as error:
        notes.append(f"the lock of version {record.version} cannot be read, packages are not compared: {error}")
        return None


async def _manifest(site: Site, record: VersionRecord, notes: list[str]) -> ImageManifest | None:
    if not record.reference:
        return None
    try:
        async with steps.open_image(site, EnvironmentDefinition(**record.definition), record.reference) as repository:
            return ImageManifest.from_bytes((await repository.get_manifest(record.digest)).content)
    except (NotFound, ImageError) as error:
        notes.append(f"the image of version {record.version} cannot be read, layers are not compared: {error}")
        return None


def _packages(kind: str, old: Iterable[_Package], new: Iterable[_Package]) -> Iterator[Change]:
    before, after = ({package.name: package for package in side} for side in (old, new))
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if a is None or b is None:
            shown = _version(a) if b is None else _version(b)
            yield Change("-", kind, name, old=shown) if b is None else Change("+", kind, name, new=shown)
        elif a.identity() != b.identity():
            same = _version(a) == _version(b)
            yield Change("~", kind, name, _version(a), "" if same else _version(b), "another file" if same else "")


def _version(package: _Package | None) -> str:
    if isinstance(package, LockedCondaPackage):
        return f"{package.version}={package.build}"
    return package.version if package else ""


def _changed(kind: str, name: str, old: str, new: str) -> Iterator[Change]:
    if old != new:
        yield Change("~", kind, name, old or "none", new or "none")


def _targets(old: Lock, new: Lock) -> Iterator[tuple[str, str, str]]:
    a, b = old.target, new.target
    yield "Python", a.python, b.python
    yield "interpreter", a.interpreter, b.interpreter
    yield "libc", f"{a.libc} {a.libc_version}".strip(), f"{b.libc} {b.libc_version}".strip()
    yield "platform", str(a.platform), str(b.platform)
    yield "bytecode of Python", old.bytecode, new.bytecode
    yield "packages", _managed(old), _managed(new)


def _managed(lock: Lock) -> str:
    return "managed" if lock.managed else "as the image has them"


def _names(kind: str, old: Mapping[str, str], new: Mapping[str, str], label: str = "") -> Iterator[Change]:
    """Names only: a value may be what nobody is to read."""
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new or old[name] != new[name]:
            yield Change("+" if name not in old else "-" if name not in new else "~", kind, label + name)


def _about(a: VersionRecord, b: VersionRecord) -> Iterator[Change]:
    if a.description != b.description:
        yield Change("~", "about", "description")
    yield from _names("about", a.tags, b.tags, "tag ")
    yield from _changed("about", "starts Python by", a.python_path, b.python_path)


def _layers(a: ImageManifest, b: ImageManifest) -> LayerShare:
    first, second = ({layer.digest: layer.size for layer in image.layers} for image in (a, b))
    shared = first.keys() & second.keys()
    only_a, only_b = first.keys() - shared, second.keys() - shared
    return LayerShare(
        len(shared),
        sum(first[digest] for digest in shared),
        len(only_a),
        sum(first[digest] for digest in only_a),
        len(only_b),
        sum(second[digest] for digest in only_b),
    )


def _bytes(lock: Lock) -> int:
    packages: tuple[_Package, ...] = (*lock.packages, *lock.conda)
    return sum(package.size or 0 for package in packages)


def _plain(value: Any) -> Any:
    """With lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
