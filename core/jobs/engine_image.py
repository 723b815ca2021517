"""The ready image in a Docker engine: pulled by its digest, or loaded from an image-layout folder and checked."""

import asyncio
import json
import logging
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect_environments.core import canonical
from prefect_environments.core.build.docker.engine import Engine
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BuildError, EngineUnavailable, JobError
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.repository import Manifest
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import resolve as resolve_secret
from prefect_environments.core.site import Site
from prefect_environments.core.stores import ImageLocation, tool_login
from prefect_environments.core.versions import VersionRecord

LOADED = "prefect-environments/loaded"
"""The name under which an engine keeps images of layouts; the tag is their digest."""

_CHUNK = 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE

logger = logging.getLogger(__name__)


class _Stopped(Exception):
    """Nobody waits for the image any more."""


@contextmanager
def api_of(engine: Engine, seconds: float | None = 60.0) -> Iterator[Any]:
    """A `docker.APIClient` for jobs: what the engine refuses is a `JobError`."""
    try:
        with engine.client(seconds) as api:
            yield api
    except EngineUnavailable:
        raise
    except BuildError as error:
        raise JobError(str(error)) from error


async def ensure_image(site: Site, record: VersionRecord, engine: Engine) -> str:
    """What a container of the image is made from, which the engine has from now on.

    Raises `JobError` where it cannot be had, `NotFound` where its layout lacks it, and `SecretError`.
    """
    location = ImageLocation.parse(record.reference)
    folder = RegistrySettings(location.address).folder
    stop = threading.Event()
    try:
        if folder is not None:
            layout = Layout(folder)
            manifest = await layout.repository(location.path).get_manifest(location.identifier)
            return await asyncio.to_thread(_load, engine, layout, manifest, stop)
        login = await _login(site, record, location)
        return await asyncio.to_thread(_pull, engine, record.reference, login, stop)
    finally:
        stop.set()  # for a thread that is left behind by a cancellation


async def _login(site: Site, record: VersionRecord, location: ImageLocation) -> tuple[str, str] | None:
    """User and password of the image's registry; `None` leaves it to Docker's own configuration."""
    definition, own = EnvironmentDefinition(**record.definition), site.workspace.registry_settings
    if definition.stays_where_it_is and definition.base_image_username:
        given = {name: getattr(definition, name) for name in ("base_image_username", "base_image_password")}
        user, password = [await resolve_secret(text, site.workspace.secrets, name) for name, text in given.items()]
        return str(user), str(password)
    return await tool_login(own, site.workspace.secrets) if location.address == own.address else None


def _pull(engine: Engine, reference: str, login: tuple[str, str] | None, stop: threading.Event) -> str:
    from docker.errors import ImageNotFound  # noqa: PLC0415  # the docker package takes a while to load

    repository, _, digest = reference.partition("@")
    with api_of(engine, None) as api:
        with suppress(ImageNotFound):
            api.inspect_image(reference)
            return reference
        logger.info("pulling %s", reference)
        credentials = {"username": login[0], "password": login[1]} if login else None
        for message in api.pull(repository, tag=digest, auth_config=credentials, stream=True, decode=True):
            _check_message(message, f"the Docker engine could not pull {reference}", stop)
        api.inspect_image(reference)
    return reference


def _load(engine: Engine, layout: Layout, stored: Manifest, stop: threading.Event) -> str:
    from docker.errors import ImageNotFound  # noqa: PLC0415  # the docker package takes a while to load

    manifest, digest = ImageManifest.from_bytes(stored.content), stored.descriptor.digest
    name = f"{LOADED}:{digests.hex_of(digest)}"
    wanted = (manifest.config.digest, digest)  # engines call an image by its config, or by its manifest
    with api_of(engine, None) as api:
        with suppress(ImageNotFound):
            if api.inspect_image(name)["Id"] in wanted:
                return name
        logger.info("loading %s into the Docker engine", digest)
        for message in api.load_image(_archive(layout, manifest, stored, name, stop)):
            _check_message(message, f"the Docker engine could not load {digest}", stop)
        found = str(api.inspect_image(name)["Id"])
        if found not in wanted:
            api.remove_image(name)
            raise JobError(f"the Docker engine made {found} of the image {digest} in {layout.folder}; build it again")
    return name


def _check_message(message: Any, what: str, stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped
    if "error" in message:
        raise JobError(f"{what}: {message['error']}. Check the registry and its credentials, or the engine's disk")


def _archive(
    layout: Layout, manifest: ImageManifest, stored: Manifest, name: str, stop: threading.Event
) -> Iterator[bytes]:
    """A tar that both kinds of engine load: an OCI layout, with the `manifest.json` of `docker save` in it."""
    blobs = {blob.digest: blob.size for blob in (manifest.config, *manifest.layers)}
    described = {
        "mediaType": stored.descriptor.media_type,
        "digest": stored.descriptor.digest,
        "size": stored.descriptor.size,
        "annotations": {"io.containerd.image.name": f"docker.io/{name}"},
    }
    saved = {
        "Config": _place(manifest.config.digest),
        "RepoTags": [name],
        "Layers": [_place(layer.digest) for layer in manifest.layers],
    }
    yield from _member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    yield from _member("index.json", canonical.dumps({"schemaVersion": 2, "manifests": [described]}))
    yield from _member("manifest.json", json.dumps([saved]).encode())
    yield from _member(_place(stored.descriptor.digest), stored.content)
    for digest, size in blobs.items():
        yield _header(_place(digest), size)
        yield from _file(layout.blob_path(digest), size, stop)
    yield bytes(2 * _BLOCK)


def _place(digest: str) -> str:
    return f"blobs/sha256/{digests.hex_of(digest)}"


def _member(name: str, content: bytes) -> Iterator[bytes]:
    yield _header(name, len(content))
    yield content + bytes(-len(content) % _BLOCK)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)


def _file(path: Path, size: int, stop: threading.Event) -> Iterator[bytes]:
    """Exactly `size` bytes of a file, padded; a file of another length would shift all that follows."""
    left = size
    with path.open("rb") as file:
        while left and (chunk := file.read(min(_CHUNK, left))):
            if stop.is_set():
                raise _Stopped
            left -= len(chunk)
            yield chunk
    if left:
        raise JobError(f"{path} is cut short; remove it and build the environment again")
    yield bytes(-size % _BLOCK)
