"""What the tests of images share: a workspace without Prefect, the steps in order, base images with a twist."""

import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from prefect_environments.core import steps
from prefect_environments.core.build import converters
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.distribution.registry import Registry as Client
from prefect_environments.core.errors import SecretError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageConfig, ImageManifest
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.repository import Repository, Store, Traffic
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretReference
from prefect_environments.core.site import open_site
from prefect_environments.core.steps import BuiltImage
from prefect_environments.core.stores import ImageLocation
from prefect_environments.core.versions import FolderVersionStore, VersionStore
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.registry import Registry

PYTHON = "/opt/env/bin/python"


@dataclass(frozen=True)
class Secrets:
    """A secret store of the values that it was given, by the name in `secret:NAME`."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)

    async def get(self, reference: SecretReference) -> str:
        if reference.name not in self.values:
            raise SecretError(f"there is no secret {reference}")
        return self.values[reference.name]


@dataclass(frozen=True)
class Team:
    """A workspace for core alone: versions in a folder, images in a registry or a layout."""

    registry_settings: RegistrySettings
    versions: VersionStore
    name: str = "team"
    repository_prefix: str = "environments"
    default_base_image: str | None = None
    allow_source_builds: bool = False
    secrets: Secrets = Secrets()
    index_url: str | None = None
    index_credentials: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def on(cls, place: "Registry | Path", folder: Path, **options: Any) -> "Team":
        """A workspace whose images are in a running registry or in a layout folder, its versions in `folder`."""
        settings = RegistrySettings(f"oci:{place}" if isinstance(place, Path) else place.address)
        return cls(settings, FolderVersionStore(folder, "team"), **options)


@dataclass(frozen=True)
class Outcome:
    """A build's result; `lock` and `image` are there where something was resolved, `traffic` for a registry."""

    ready: ReadyImage
    traffic: Traffic
    lock: Lock | None = None
    image: BuiltImage | None = None

    @property
    def layers(self) -> tuple[tuple[str, bool], ...]:
        """Titles of package layers with whether they were reused; the base's are left out."""
        assert self.image is not None
        return tuple((x.title, x.reused) for x in self.image.layers if not x.title.startswith("base "))

    @property
    def sent_layers(self) -> list[str]:
        return [title for title, reused in self.layers if not reused]


async def build(
    team: Team, definition: EnvironmentDefinition, cache: Path, *, upgrade: bool = False, force: bool = False
) -> Outcome:
    """All steps from a definition to a registered image, as the flow takes them, by a worker with this `cache`."""
    async with open_site(team, cache=cache) as site:
        traffic = site.store.traffic if isinstance(site.store, Client) else Traffic()
        if not (upgrade or force) and (found := await steps.find_registered(site, definition)):
            return Outcome(found, replace(traffic))
        lock = await steps.resolve(site, definition, upgrade=upgrade)
        image = await steps.build(site, definition, lock, force=force)
        record = await steps.register(site, definition, image)
        return Outcome(steps.ready_image(record, image, {}), replace(traffic), lock, image)


@asynccontextmanager
async def repository_of(reference: str) -> AsyncIterator[tuple[Repository, str]]:
    """The repository behind a reference on this machine, and the tag or digest; a registry lets everybody in."""
    location = ImageLocation.parse(reference)
    folder = RegistrySettings(location.address).folder
    store: Store = Layout(folder) if folder else Client(location.address)
    try:
        yield store.repository(location.path), location.identifier
    finally:
        await store.close()


async def read_image(repository: Repository, reference: str) -> tuple[ImageManifest, ImageConfig]:
    """Manifest and config of an image."""
    manifest = ImageManifest.from_bytes((await repository.get_manifest(reference)).content)
    blob = b"".join([chunk async for chunk in repository.read_blob(manifest.config)])
    return manifest, ImageConfig.from_bytes(blob)


# ---- what the registry saw


@contextmanager
def requests_of(registry: Registry) -> Iterator[list[str]]:
    """The `METHOD /path` lines of what a registry answers inside the block; filled at its end."""
    before, seen = len(registry.requests()), list[str]()
    yield seen
    seen += registry.requests()[before:]


def uploads(requests: list[str], repository: str) -> int:
    """How many blobs were sent to a repository."""
    start = re.compile(rf"PUT /v2/{re.escape(repository)}/blobs/uploads/")
    return sum(1 for line in requests if start.match(line))


def mounts(requests: list[str], repository: str) -> int:
    """How many blobs were mounted into a repository from another one; a mount from itself begins an upload."""
    start = f"POST /v2/{repository}/blobs/uploads/?mount="
    return sum(1 for line in requests if line.startswith(start) and f"from={quote(repository, safe='')}" not in line)


def downloads(requests: list[str]) -> set[str]:
    """Digests of the blobs that were read from any repository."""
    return {line.rpartition("/")[2] for line in requests if line.startswith("GET ") and "/blobs/" in line}


# ---- base images with a twist


def tar_layer(files: Mapping[str, bytes]) -> bytes:
    """A plain tar with these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


async def derive(base: BaseLayout, folder: Path, files: Mapping[str, bytes], **settings: Any) -> str:
    """A layout with the image `derived`: `base` with one more layer of `files`, and `settings` over its config's."""
    source, target = Layout(base.folder).repository(""), Layout(folder).repository("")
    manifest, config = await read_image(source, "base")
    for layer in manifest.layers:
        await target.write_blob(layer, source.layout.blob_path(layer.digest))
    content = tar_layer(files)
    layer = Descriptor(types.LAYER_TAR, digests.of(content), len(content))
    await target.write_blob(layer, content)
    data = {**config.data, "config": {**config.settings, **settings}}
    data["rootfs"] = {"type": "layers", "diff_ids": [*config.diff_ids, digests.of(content)]}
    data.pop("history", None)
    blob = json.dumps(data).encode()
    described = Descriptor(types.IMAGE_CONFIG, digests.of(blob), len(blob))
    await target.write_blob(described, blob)
    derived = ImageManifest(described, (*manifest.layers, layer)).to_bytes()
    await target.put_manifest(derived, types.IMAGE_MANIFEST, tag="derived")
    return f"oci:{folder}:derived"


# ---- independent readers


def tool(*command: str | Path) -> str:
    """Run a program; gives its output, fails with what it says."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"`{' '.join(words)}` ended with {done.returncode}: {done.stderr}{done.stdout}"
    return done.stdout


def push_with_skopeo(layout_image: str, target: str) -> str:
    """Copy an image of a layout to `target` (`127.0.0.1:PORT/repository:tag`), bytes kept; gives it by digest."""
    digest = json.loads(tool("skopeo", "inspect", layout_image))["Digest"]
    tool("skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", layout_image, f"docker://{target}")
    return f"{target.rpartition(':')[0]}@{digest}"


async def conforms(
    reference: str,
    scratch: Path,
    *,
    engine: DockerEngine | None = None,
    check: str = "import sys",
    layout: str = "",
    managed: bool = True,
) -> None:
    """An image is what it should be for us, for skopeo, for umoci, and (in a registry) for Docker.

    `layout` is the reference by tag of an image in a layout, which skopeo cannot address by digest. Only an image that
    is `managed` has an environment at its prefix."""
    async with repository_of(reference) as (repository, digest):
        manifest = await validate(repository, digest, scratch / "validate")
        _, config = await read_image(repository, digest)
    address = layout or f"docker://{reference}"
    insecure = [] if layout else ["--tls-verify=false"]
    seen = json.loads(tool("skopeo", "inspect", *insecure, address))
    assert seen["Digest"] == digest
    assert seen["Layers"] == [layer.digest for layer in manifest.layers]
    assert json.loads(tool("skopeo", "inspect", "--config", *insecure, address))["rootfs"]["diff_ids"] == [
        *config.diff_ids
    ]
    copied = scratch / "copied"
    source = [] if layout else ["--src-tls-verify=false"]
    tool("skopeo", "copy", "-q", "--preserve-digests", *source, address, f"oci:{copied}:image")
    bundle = scratch / "bundle"
    tool("umoci", "unpack", "--rootless", "--image", f"{copied}:image", bundle)
    place = bundle / "rootfs/opt/env"
    assert os.path.lexists(place / "bin/python") == managed
    assert any(os.access(place / name, os.R_OK) for name in ("pyvenv.cfg", "conda-meta/history")) == managed
    if engine is not None:
        engine.pull(reference)
        engine.run(reference, "python" if managed else "python3", "-c", check)


def convert_by_processes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two processes convert the wheels from here on, however small these are, and no thread does; gives the list that
    their ids will be in."""
    started: list[int] = []

    class Noted(converters._Worker):
        def __init__(self) -> None:
            super().__init__()
            started.append(self.pid)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a thread converts")

    monkeypatch.setattr(converters, "WORTH_IT", 0)
    monkeypatch.setattr(converters, "_cores", lambda: 2)
    monkeypatch.setattr(converters, "_Worker", Noted)
    monkeypatch.setattr(converters, "convert_wheels", refuse)
    return started
