"""What the fault tests build: a few small wheels on a tiny base, their lock made once, without a resolver."""

import asyncio
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from prefect_environments.core import canonical, steps
from prefect_environments.core.build.base import load_base
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.distribution.limits import Limits
from prefect_environments.core.lock.model import Lock, LockedBase, LockedPackage
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import FolderVersionStore, VersionRecord
from tests.core.build.parts import TARGET, tar_of
from tests.images.parts import Team
from tests.support.wheels import make_wheel

QUICK = Limits(connect=2, stall=0.4, commit=0.6, answer=1.0, attempts=3, backoff=0.01)
"""Patience that fits a test: a registry on this machine answers in milliseconds."""

PATIENT = Limits(attempts=3, backoff=0.01)
"""For faults that take no time, however busy the machine is: a lost reply must be the fault's."""

NAME = "demo"


@dataclass(frozen=True)
class Plan:
    """A definition with its lock, ready to be built; `digest` is what its image must always have."""

    definition: EnvironmentDefinition
    lock: Lock
    digest: str = ""


async def write_base(repository: Repository, tag: str = "1") -> LockedBase:
    """A base of two small layers, put where base images are."""
    layers = [tar_of({"etc/os-release": b"ID=tests\n", "bin/sh": bytes(range(256)) * 2000}, mode="w:"),
              tar_of({"usr/bin/python3.11": b"python"}, mode="w:")]  # fmt: skip
    described = [Descriptor(types.LAYER_TAR, digests.of(layer), len(layer)) for layer in layers]
    for descriptor, layer in zip(described, layers, strict=True):
        await repository.write_blob(descriptor, layer)
    data = {"os": "linux", "architecture": "amd64", "config": {"Env": ["PATH=/usr/bin"]}}
    rootfs = {"type": "layers", "diff_ids": [layer.digest for layer in described]}
    config = canonical.dumps({**data, "rootfs": rootfs})
    named = Descriptor(types.IMAGE_CONFIG, digests.of(config), len(config))
    await repository.write_blob(named, config)
    await repository.put_manifest(ImageManifest(named, tuple(described)).to_bytes(), types.IMAGE_MANIFEST, tag=tag)
    loaded = await load_base(repository, tag, "base.example.com/tests:1", Platform())
    return loaded.locked


def make_wheels(folder: Path, sizes: tuple[int, ...] = (1_500_000, 20_000, 300)) -> list[Path]:
    """One wheel a size, of bytes that do not shrink, the same each time."""
    found = []
    for number, size in enumerate(sizes):
        seed = hashlib.shake_256(bytes([number])).digest(size)
        found.append(make_wheel(folder, f"part{number}", "1.0", {f"part{number}.py": b"", f"part{number}.bin": seed}))
    return found


def lock_of(wheels: list[Path], base: LockedBase, target: Target = TARGET) -> Lock:
    """The lock of wheels on this disk."""
    packages = []
    for path in wheels:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        known = LockedPackage.of_file(path.name, sha256, path.stat().st_size)
        fields = (known.name, known.version, known.filename, known.sha256, known.size)
        packages.append(LockedPackage(*fields, url=f"file://{quote(str(path))}"))
    return Lock(base, target, tuple(packages))


def plan_on(base_image: str, lock: Lock, digest: str = "") -> Plan:
    return Plan(EnvironmentDefinition(name=NAME, base_image=base_image, requirements=("part0",)), lock, digest)


def team(settings: RegistrySettings, folder: Path, prefix: str = "environments") -> Team:
    return Team(settings, FolderVersionStore(folder, "team"), repository_prefix=prefix)


async def push(plan: Plan, workspace: Team, cache: Path) -> VersionRecord:
    """The steps from a lock to a registered version."""
    async with open_site(workspace, cache=cache) as site:
        await steps.find_registered(site, plan.definition)
        built = await steps.build(site, plan.definition, plan.lock)
        return await steps.register(site, plan.definition, built)


def leftovers(*folders: Path) -> list[str]:
    """Temporary files under some folders."""
    return sorted(
        str(Path(place, name))
        for folder in folders
        for place, _, names in os.walk(folder)
        for name in names
        if name.startswith("tmp-") or name.endswith(".tmp")
    )


async def settled_leftovers(folder: Path) -> list[str]:
    """The same once this process's threads are done: a thread that writes is not stopped by a cancellation."""
    for _ in range(100):
        if not leftovers(folder):
            break
        await asyncio.sleep(0.05)
    return leftovers(folder)
