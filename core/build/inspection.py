"""What is in an image: its interpreters, its system, and what Azure ML asks of a base image. Nothing of it is run.

Files tell: the package manager's list (dpkg, apk), version files, names of shared libraries.
"""

import json
import posixpath
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect_environments.core.build.base import BaseImage
from prefect_environments.core.build.inspect import Facts, look_through
from prefect_environments.core.oci.image import oci_layer

_WANTED = re.compile(
    r"etc/os-release|usr/lib/os-release|var/lib/dpkg/status(\.d/[^/]+)?|lib/apk/db/installed"
    r"|(.+/)?conda-meta/(conda|micromamba|mamba)-[^/]+\.json|(.+/)?bin/(micromamba|mpirun|ofed_info)"
    r"|(.+/)?pkgconfig/ompi\.pc|usr/local/cuda[^/]*/version\.(json|txt)|(.+/)?lib(64)?/([^/]+/)?libfuse3?\.so\.\d[\d.]*"
    r"|(.+/)?libcudart\.so\.\d[\d.]*|(.+/)?libibverbs\.so\.\d[\d.]*"
)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python of the image, by its absolute path."""

    path: str
    version: str


@dataclass(frozen=True, slots=True)
class Capability:
    """Something that a base image may bring. `version` is empty where it was found without telling one."""

    name: str
    found: bool
    version: str = ""
    where: str = ""
    """The file, or the package, that tells."""
    without: str = ""
    """What does not work without it."""


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What an image of one platform holds."""

    reference: str
    digest: str
    platform: str
    size: int
    """Bytes as stored."""
    layers: int
    system: str = ""
    """As the image calls itself: `Debian GNU/Linux 12 (bookworm)`."""
    libc: str = ""
    interpreters: tuple[Interpreter, ...] = ()
    capabilities: tuple[Capability, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables of its config that say what it is (versions), none that could be a secret."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ImageReport":
        """Read back `to_json`; raises `KeyError` or `TypeError` for anything else."""
        fields = dict(data)
        fields["interpreters"] = tuple(Interpreter(**item) for item in data["interpreters"])
        fields["capabilities"] = tuple(Capability(**item) for item in data["capabilities"])
        return cls(**fields)


async def inspect_image(base: BaseImage, scratch: Path) -> ImageReport:
    """Look through all layers of an image, from the top down, as a container would see them.

    Raises `BaseImageError` for layers that cannot be looked through, `ImageError` for malformed ones.
    """
    facts = Facts(wanted=_WANTED)
    for layer in reversed(base.manifest.layers):
        await look_through(base, oci_layer(layer), facts, scratch)
    packages = _packages(facts.files)
    libc = sorted({f"{kind} {version}" for kind, version in facts.libc.values()})
    return ImageReport(
        reference=base.locked.name,
        digest=base.locked.digest,
        platform="/".join(base.config.platform),
        size=base.manifest.config.size + sum(layer.size for layer in base.manifest.layers),
        layers=len(base.manifest.layers),
        system=_system(facts),
        libc=", ".join(libc),
        interpreters=_interpreters(facts),
        capabilities=tuple(_capability(name, look, facts, packages, base) for name, look in _LOOKS.items()),
        environment={k: v for k, v in base.config.environment.items() if re.fullmatch(r"[A-Z0-9_]*VERSION", k)},
    )


def _interpreters(facts: Facts) -> tuple[Interpreter, ...]:
    found = {
        f"/{path}": version
        for path, version in facts.versions.items()
        if version and re.fullmatch(r"python3?(\.\d+)?", posixpath.basename(path))
    }
    return tuple(Interpreter(path, version) for path, version in sorted(found.items()))


def _system(facts: Facts) -> str:
    text = facts.files.get("etc/os-release") or facts.files.get("usr/lib/os-release") or b""
    match = re.search(rb'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
    return match[1].decode("utf-8", "replace") if match else ""


def _packages(files: Mapping[str, bytes]) -> dict[str, str]:
    """Versions by name of the system's packages: Debian's (dpkg) and Alpine's (apk)."""
    found: dict[str, str] = {}
    for path, content in files.items():
        text = content.decode("utf-8", "replace")
        if path.startswith("var/lib/dpkg/"):
            for block in text.split("\n\n"):
                fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", block, re.MULTILINE))
                if fields.get("Package") and "deinstall" not in fields.get("Status", ""):
                    found[fields["Package"]] = fields.get("Version", "")
        elif path == "lib/apk/db/installed":
            found |= dict(re.findall(r"^P:(.*)\n(?:[^V\n].*\n)*?V:(.*)$", text, re.MULTILINE))
    return found


# ---- what Azure ML asks of a base image

_Found = tuple[str, str] | None
"""Version and place, where it is there."""
_Look = Callable[[Facts, Mapping[str, str], BaseImage], _Found]


def _capability(
    name: str, look: tuple[_Look, str], facts: Facts, packages: Mapping[str, str], base: BaseImage
) -> Capability:
    found = look[0](facts, packages, base)
    return Capability(name, False, without=look[1]) if found is None else Capability(name, True, *found)


def _package(packages: Mapping[str, str], pattern: str) -> _Found:
    for name in sorted(packages):
        if re.fullmatch(pattern, name):
            version = packages[name].rpartition(":")[2]  # without Debian's epoch
            return re.split(r"[-+~]", version)[0], f"package {name} {packages[name]}"
    return None


def _file(facts: Facts, pattern: str, version: str = "") -> _Found:
    for path in sorted(facts.files, key=lambda path: (-len(path), path)):  # libfuse.so.2.9.9 rather than .so.2
        if match := re.fullmatch(pattern, path):
            told = re.search(version.encode(), facts.files[path]) if version else None
            named = match.groupdict().get("version") or ""
            return (told[1].decode("utf-8", "replace") if told else named), f"/{path}"
    return None


def _conda(facts: Facts, packages: Mapping[str, str], base: BaseImage) -> _Found:
    for tool in ("conda", "mamba", "micromamba"):
        if found := _file(facts, rf"(.+/)?conda-meta/{tool}-(?P<version>[^-]+)-[^/]+\.json"):
            return found
    return _file(facts, r"(.+/)?bin/micromamba") or _package(packages, "conda|micromamba")


def _libfuse(facts: Facts, packages: Mapping[str, str], base: BaseImage) -> _Found:
    return _package(packages, r"libfuse(2|3-\d+)(t64)?|fuse3?-libs|fuse3?") or _file(
        facts, r"(.+/)?libfuse3?\.so\.(?P<version>\d[\d.]*)"
    )


def _open_mpi(facts: Facts, packages: Mapping[str, str], base: BaseImage) -> _Found:
    found = _file(facts, r"(.+/)?pkgconfig/ompi\.pc", r"(?m)^Version: *(\S+)")
    return found or _package(packages, r"openmpi-bin|libopenmpi\d.*|openmpi") or _file(facts, r"(.+/)?bin/mpirun")


def _cuda(facts: Facts, packages: Mapping[str, str], base: BaseImage) -> _Found:
    for path in sorted(facts.files):
        if path.endswith("/version.json") and "/cuda" in path:
            with suppress(ValueError, KeyError, TypeError):
                return str(json.loads(facts.files[path])["cuda"]["version"]), f"/{path}"
    if declared := base.config.environment.get("CUDA_VERSION"):
        return declared, "variable CUDA_VERSION"
    return (
        _file(facts, r"usr/local/cuda[^/]*/version\.txt", r"CUDA Version ([\d.]+)")
        or _package(packages, r"cuda-cudart-[\d-]+|libcudart[\d.]+")
        or _file(facts, r"(.+/)?libcudart\.so\.(?P<version>\d[\d.]*)")
    )


def _ofed(facts: Facts, packages: Mapping[str, str], base: BaseImage) -> _Found:
    return (
        _file(facts, r"(.+/)?bin/ofed_info", r"OFED[-A-Za-z_]*-(\d[\d.]*(?:-[\d.]+)*)")
        or _package(packages, r"mlnx-ofed.*|ofed-scripts|doca-ofed.*")
        or _package(packages, r"libibverbs1|libibverbs")
        or _file(facts, r"(.+/)?libibverbs\.so\.(?P<version>\d[\d.]*)")
    )


_LOOKS: dict[str, tuple[_Look, str]] = {
    "conda": (_conda, "Azure ML itself cannot build a conda environment on it; images built here don't need it"),
    "libfuse": (_libfuse, "data cannot be mounted into the job as a folder, only downloaded"),
    "Open MPI": (_open_mpi, "jobs over several processes or machines with MPI (MpiConfiguration) cannot start"),
    "CUDA": (_cuda, "programs that link with the system's CUDA don't see a GPU; PyTorch's wheels bring their own"),
    "Mellanox OFED": (_ofed, "jobs over several machines go by TCP instead of InfiniBand"),
}
