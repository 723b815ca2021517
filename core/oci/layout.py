"""An OCI image layout: a folder that is a registry (OCI image-spec, image-layout.md).

One layout holds many repositories: the reference name of an entry in `index.json` is `<repository>:<tag>`. Blobs are
shared. Everything appears whole or not at all, and two processes may write at the same time.
"""

import asyncio
import os
import shutil
import stat
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from prefect_environments.core import canonical, files
from prefect_environments.core.errors import DigestMismatch, ImageError, NotFound, StorageError
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import load_object
from prefect_environments.core.oci.repository import MANIFEST_LIMIT, Manifest, Traffic

REF_NAME = "org.opencontainers.image.ref.name"
TOUCH = 3600.0
"""Seconds between two notes that a blob was asked for: each is a write to the disk. See `core.oci.collect`."""
_CHUNK = 1024 * 1024
_INDEX_LIMIT = 256 * 1024 * 1024


class Layout:
    """A layout folder as a store of repositories; made at the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.scratch = self.folder / ".tmp"

    @property
    def address(self) -> str:
        return f"oci:{self.folder}"

    def repository(self, path: str) -> "LayoutRepository":
        return LayoutRepository(self, path)

    async def close(self) -> None:
        """Nothing is held open."""

    def blob_path(self, digest: str) -> Path:
        return self.folder / "blobs" / digest.partition(":")[0] / digests.hex_of(digest)

    def has(self, blob: Descriptor) -> bool:
        """Whether a blob is there in its whole length; its bytes are verified when they are read.

        It stays for at least `collect.GRACE`, so that who asks can go on to write a manifest that names it.
        """
        found = self._keep_alive(self.blob_path(blob.digest))
        return found is not None and found.st_size == blob.size

    def _keep_alive(self, path: Path) -> os.stat_result | None:
        """A blob's file, young again if it has not been looked at for a while; `None` where there is none."""
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if time.time() - found.st_mtime > TOUCH:
            try:
                os.utime(path)
            except FileNotFoundError:
                return None  # collected just now
            except OSError:
                pass  # a layout that we may only read is nobody's to collect
        return found if stat.S_ISREG(found.st_mode) else None

    def create(self) -> None:
        """Make the folder a layout if it is none yet; a folder with other things in it is refused."""
        marker = self.folder / "oci-layout"
        with files.storage("making an image layout", self.folder):
            if not marker.exists():
                foreign = self.folder.is_dir() and any(
                    p.name not in (".tmp", ".lock", "blobs") for p in self.folder.iterdir()
                )
                if foreign and not marker.exists():  # it does where another process has just made the layout
                    raise StorageError(f"{self.folder} is not empty and no image layout; choose another folder")
                files.write_atomically(marker, b'{"imageLayoutVersion":"1.0.0"}', self.scratch)
            files.sweep(self.scratch)

    def entries(self) -> list[dict[str, Any]]:
        """The descriptors of `index.json` as JSON objects; empty where there is no layout yet."""
        path = self.folder / "index.json"
        with files.storage("reading an image layout", self.folder):
            try:
                content = path.read_bytes() if path.stat().st_size < _INDEX_LIMIT else b""
            except FileNotFoundError:
                return []
        manifests = load_object(content, f"{path}").get("manifests")
        if not isinstance(manifests, list) or not all(isinstance(item, dict) for item in manifests):
            raise ImageError(f"{path} does not list manifests")
        return manifests

    def add_entry(self, entry: dict[str, Any]) -> None:
        """Put an entry into `index.json`, in place of an older one of the same name."""
        self.create()
        with files.storage("writing an image layout", self.folder), files.locked(self.folder / ".lock"):
            before = self.entries()
            kept = [item for item in before if not _replaces(entry, item)]
            listed = {item.get("digest") for item in (*kept, entry)}
            # a manifest that loses its last name stays under its digest, as in a registry
            bare = [_without_name(item) for item in before if item.get("digest") not in listed]
            self._write_index([*kept, *bare, entry])

    def remove_entries(self, doomed: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Take the entries that are `doomed` out of `index.json`; gives them."""
        with files.storage("writing an image layout", self.folder), files.locked(self.folder / ".lock"):
            entries = self.entries()
            removed = [item for item in entries if doomed(item)]
            if removed:
                self._write_index([item for item in entries if item not in removed])
            return removed

    def _write_index(self, manifests: list[dict[str, Any]]) -> None:
        document = {"schemaVersion": 2, "mediaType": types.IMAGE_INDEX, "manifests": manifests}
        files.write_atomically(self.folder / "index.json", canonical.dumps(document), self.scratch)


class LayoutRepository:
    """One repository of a layout; see `Repository` for what the methods promise."""

    def __init__(self, layout: Layout, path: str) -> None:
        self.layout = layout
        self.path = path
        self.address = layout.address
        self.traffic = Traffic()

    @property
    def name(self) -> str:
        return f"{self.layout.address}:{self.path}" if self.path else self.layout.address

    async def find_manifest(self, reference: str) -> Descriptor | None:
        """An image without all of its layers, as after a lost or cut file, is not there."""
        try:
            manifest = await self.get_manifest(reference)
        except NotFound:
            return None
        whole = all(map(self.layout.has, parts_of(manifest.content, "config", "layers")))
        return manifest.descriptor if whole else None

    async def get_manifest(self, reference: str) -> Manifest:
        digest = reference
        if not reference.startswith(("sha256:", "sha512:")):
            entry = await asyncio.to_thread(self._tagged, reference)
            digest = "" if entry is None else Descriptor.from_json(entry).digest
        if not digest or not self.layout.blob_path(digests.check(digest)).is_file():
            raise NotFound(f"{self.name} has no manifest {reference}")
        return await self._read(self.layout.blob_path(digest), digest)

    async def put_manifest(self, content: bytes, media_type: str, *, tag: str | None = None) -> Descriptor:
        found = Descriptor(media_type, digests.of(content), len(content))
        await asyncio.to_thread(self._check_parts, content)
        await self.write_blob(found, content)
        entry = Descriptor(
            media_type,
            found.digest,
            found.size,
            {REF_NAME: f"{self.path}:{tag}" if self.path else tag} if tag else {},
            _artifact_type(content),
        )
        await asyncio.to_thread(self.layout.add_entry, entry.to_json())
        await self.write_blob(found, content)  # once more, if somebody deleted this very manifest meanwhile
        return found

    async def delete_manifest(self, digest: str) -> bool:
        """Entries without a tag name no repository: those of the digest go where no other repository tags it."""
        digests.check(digest)

        def delete() -> bool:
            self.layout.remove_entries(lambda item: item.get("digest") == digest and self._is_here(item))
            listed = [item for item in self.layout.entries() if item.get("digest") == digest]
            there = self.layout.blob_path(digest).is_file()
            if not any(map(_ref_name, listed)):
                self.layout.remove_entries(lambda item: item.get("digest") == digest and not _ref_name(item))
                self.layout.blob_path(digest).unlink(missing_ok=True)  # or it would still be found by its digest
            return there

        return self.layout.folder.is_dir() and await asyncio.to_thread(delete)

    async def delete_tag(self, tag: str) -> bool:
        """The manifest stays under its digest."""
        entry = await asyncio.to_thread(self._tagged, tag)
        if entry is None:
            return False
        await asyncio.to_thread(
            self.layout.add_entry, _without_name(entry)
        )  # first, so that the manifest is always listed
        return bool(await asyncio.to_thread(self.layout.remove_entries, lambda item: item == entry))

    async def has_blob(self, digest: str) -> bool:
        return self.layout._keep_alive(self.layout.blob_path(digest)) is not None

    async def read_blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        path = self.layout.blob_path(descriptor.digest)
        hasher, size, held = digests.hasher(descriptor.digest), 0, b""
        if not path.is_file():
            raise NotFound(f"{self.name} has no blob {descriptor.digest}")
        with files.storage("reading an image layout", path):
            try:
                file = path.open("rb")
            except FileNotFoundError:  # deleted just now
                raise NotFound(f"{self.name} has no blob {descriptor.digest}") from None
        with file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                size += len(chunk)
                await asyncio.to_thread(hasher.update, chunk)
                if held:
                    yield held
                held = chunk
        if size != descriptor.size or hasher.hexdigest() != digests.hex_of(descriptor.digest):
            raise DigestMismatch(f"{path} is not what its name says; remove it and push the image again")
        if held:
            yield held

    async def write_blob(
        self, descriptor: Descriptor, content: Path | bytes, *, on_bytes: Callable[[int], None] | None = None
    ) -> bool:
        written = await asyncio.to_thread(self._write, descriptor, content)
        if written:
            self.traffic.bytes_sent += descriptor.size
            if on_bytes is not None:
                on_bytes(descriptor.size)
        return written

    async def mount_blob(self, descriptor: Descriptor, source: str) -> bool:
        """Blobs are shared by all repositories of a layout, whatever `source` is."""
        return self.layout.has(descriptor)

    async def tags(self) -> list[str]:
        prefix = f"{self.path}:" if self.path else ""
        names = [_ref_name(entry) for entry in await asyncio.to_thread(self.layout.entries)]
        return [name.removeprefix(prefix) for name in names if name and name.startswith(prefix)]

    async def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        found: dict[str, Descriptor] = {}
        for entry in await asyncio.to_thread(self.layout.entries):
            kind = entry.get("artifactType")
            if kind is None or (artifact_type is not None and kind != artifact_type):
                continue
            item = Descriptor.from_json(entry)
            try:
                manifest = await self._read(self.layout.blob_path(item.digest), item.digest)
            except NotFound:  # deleted since the index was read
                continue
            data = load_object(manifest.content, "a manifest")
            subject = data.get("subject")
            if isinstance(subject, dict) and subject.get("digest") == digest:
                described = Descriptor.from_json({**entry, "annotations": data.get("annotations")})
                found[item.digest] = Descriptor(item.media_type, item.digest, item.size, described.annotations, kind)
        return list(found.values())

    def _is_here(self, entry: dict[str, Any]) -> bool:
        name = _ref_name(entry)
        return name is not None and name.startswith(f"{self.path}:" if self.path else "")

    def _tagged(self, tag: str) -> dict[str, Any] | None:
        name = f"{self.path}:{tag}" if self.path else tag
        return next((entry for entry in self.layout.entries() if _ref_name(entry) == name), None)

    async def _read(self, path: Path, digest: str) -> Manifest:
        with files.storage("reading an image layout", path):
            try:
                if path.stat().st_size > MANIFEST_LIMIT:
                    raise ImageError(f"{path} is larger than a manifest may be ({MANIFEST_LIMIT} bytes)")
                content = path.read_bytes()
            except FileNotFoundError:  # deleted just now
                raise NotFound(f"{self.name} has no manifest {digest}") from None
        if digests.hasher(digest).name != "sha256" or digests.of(content) != digest:
            raise DigestMismatch(f"{path} is not what its name says; remove it and push the image again")
        return Manifest(content, _describe(content))

    def _check_parts(self, content: bytes) -> None:
        parts = parts_of(content, "config", "layers", "manifests")
        if parts:
            self.layout.create()
        guard = files.locked(self.layout.folder / ".lock") if parts else nullcontext()
        with files.storage("writing an image layout", self.layout.folder), guard:
            missing = [blob for blob in parts if not self.layout.has(blob)]
        if missing:
            raise NotFound(
                f"{self.name} has no blob {missing[0].digest} of {missing[0].size} bytes, so the manifest that names "
                "it is not stored"
            )

    def _write(self, descriptor: Descriptor, content: Path | bytes) -> bool:
        final = self.layout.blob_path(descriptor.digest)
        if self.layout.has(descriptor):
            return False
        self.layout.create()
        with files.storage("writing an image layout", self.layout.folder):
            if isinstance(content, bytes):
                _verify(descriptor, digests.of(content), len(content))
                with files.temporary_file(self.layout.scratch) as file:
                    file.write(content)
                    file.flush()
                    files.publish(Path(file.name), final)
            else:
                _verify(descriptor, digests.of_file(content), content.stat().st_size)
                self._take_over(content, final)
        return True

    def _take_over(self, source: Path, final: Path) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        linked = self.layout.scratch / f"tmp-{uuid.uuid4().hex}"
        try:
            self.layout.scratch.mkdir(parents=True, exist_ok=True)
            os.link(source.resolve(), linked)  # the same file system: nothing is copied
            os.utime(linked)  # it is new here, however old the file is
            linked.replace(final)
        except OSError:
            linked.unlink(missing_ok=True)
            with files.temporary_file(self.layout.scratch) as file, source.open("rb") as given:
                shutil.copyfileobj(given, file, _CHUNK)
                file.flush()
                files.publish(Path(file.name), final)
        else:
            with suppress(OSError):
                final.chmod(0o644)


def parts_of(content: bytes, *keys: str) -> list[Descriptor]:
    """What a manifest names under these keys; one descriptor or a list of them."""
    data = load_object(content, "a manifest")
    found: list[Descriptor] = []
    for value in filter(None, map(data.get, keys)):
        found += map(Descriptor.from_json, value if isinstance(value, list) else [value])
    return found


def _describe(content: bytes) -> Descriptor:
    data = load_object(content, "a manifest")
    # the property is optional (image-index.md, manifest.md); the two kinds are told apart by what they list
    media_type = data.get("mediaType", types.IMAGE_INDEX if "manifests" in data else types.IMAGE_MANIFEST)
    if not isinstance(media_type, str):
        raise ImageError("a manifest's mediaType must be a string")
    return Descriptor(media_type, digests.of(content), len(content))


def _artifact_type(content: bytes) -> str | None:
    """What a referrer is listed as: its artifact type, else the type of its config (distribution-spec, "Listing
    Referrers"); None for what has neither a type nor a subject."""
    data = load_object(content, "a manifest")
    kind = data.get("artifactType")
    if not kind and data.get("subject") and isinstance(data.get("config"), dict):
        kind = data["config"].get("mediaType")
    return kind if isinstance(kind, str) else None


def _verify(descriptor: Descriptor, digest: str, size: int) -> None:
    if (digest, size) != (descriptor.digest, descriptor.size):
        raise DigestMismatch(
            f"a blob announced as {descriptor.digest} ({descriptor.size} bytes) is {digest} ({size} bytes)"
        )


def _ref_name(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def _without_name(entry: dict[str, Any]) -> dict[str, Any]:
    notes = {key: value for key, value in entry["annotations"].items() if key != REF_NAME}
    bare = {key: value for key, value in entry.items() if key != "annotations"}
    return {**bare, "annotations": notes} if notes else bare


def _replaces(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """A name points to one manifest; a manifest without a name is listed once."""
    name = _ref_name(new)
    if name is not None:
        return _ref_name(old) == name
    return _ref_name(old) is None and old.get("digest") == new.get("digest")
