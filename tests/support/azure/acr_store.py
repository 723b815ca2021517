"""What a Container Registry keeps: blobs in files, manifests, tags and their attributes in memory."""

import datetime
import hashlib
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ATTRIBUTES = ("deleteEnabled", "writeEnabled", "listEnabled", "readEnabled")


class Refused(Exception):
    """The registry's answer to a request that it does not grant: status, code (distribution-spec) and text."""

    def __init__(self, status: int, code: str, text: str = "", **headers: str) -> None:
        super().__init__(text or code)
        self.status, self.code, self.headers = status, code, headers


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


@dataclass
class Kept:
    """What can be locked: a repository, a tag or a manifest."""

    attributes: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(ATTRIBUTES, True))
    created: str = field(default_factory=now)
    updated: str = field(default_factory=now)

    @property
    def frozen(self) -> bool:
        """Whether it may not be deleted."""
        return not (self.attributes["deleteEnabled"] and self.attributes["writeEnabled"])

    def change(self, wanted: dict[str, Any]) -> None:
        self.attributes |= {name: value for name, value in wanted.items() if name in ATTRIBUTES and value is not None}
        self.updated = now()


@dataclass
class Tag(Kept):
    digest: str = ""


@dataclass
class Manifest(Kept):
    content: bytes = b""
    media_type: str = ""

    @property
    def parsed(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.content)
        return found


@dataclass
class Upload:
    """A blob on its way. `state` changes with each piece: clients must follow the Location of the last answer."""

    file: Path
    size: int = 0
    state: str = field(default_factory=lambda: uuid.uuid4().hex)
    broken: bool = False


@dataclass
class Repository(Kept):
    blobs: set[str] = field(default_factory=set)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tags: dict[str, Tag] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)

    def find(self, reference: str) -> str | None:
        """The digest behind a tag or digest."""
        if ":" in reference:
            return reference if reference in self.manifests else None
        return self.tags[reference].digest if reference in self.tags else None

    def tags_of(self, digest: str) -> list[str]:
        return sorted(name for name, tag in self.tags.items() if tag.digest == digest)

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Descriptors of the manifests whose subject is `digest` (distribution-spec, "Listing Referrers")."""
        found = []
        for own, manifest in self.manifests.items():
            parsed = manifest.parsed
            if (parsed.get("subject") or {}).get("digest") != digest:
                continue
            kind = parsed.get("artifactType") or (parsed.get("config") or {}).get("mediaType", "")
            descriptor = {"mediaType": manifest.media_type, "digest": own, "size": len(manifest.content)}
            found.append({**descriptor, "artifactType": kind, "annotations": parsed.get("annotations") or {}})
        return found


class Store:
    """All repositories; blobs are files in `folder`, shared between repositories that know them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, Repository] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def repository(self, name: str) -> Repository:
        """A repository that exists. Raises `Refused`."""
        if name not in self.repositories:
            raise Refused(404, "NAME_UNKNOWN", "repository name not known to registry")
        return self.repositories[name]

    def make(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())

    def blob_file(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-")

    def begin(self, name: str) -> str:
        identifier = str(uuid.uuid4())
        file = self.folder / f"upload-{identifier}"
        file.touch()
        self.make(name).uploads[identifier] = Upload(file)
        return identifier

    def finish(self, name: str, identifier: str, digest: str) -> None:
        """Take an upload in as a blob, if it is what its digest says."""
        repository = self.repository(name)
        upload = repository.uploads.pop(identifier)
        with upload.file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != f"sha256:{found}":
            upload.file.unlink()
            raise Refused(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        upload.file.rename(self.blob_file(digest))
        repository.blobs.add(digest)

    def put_manifest(self, name: str, reference: str, content: bytes, media_type: str) -> tuple[str, str | None]:
        """Take a manifest in; gives its digest and that of its subject. Locks and missing parts refuse it."""
        repository = self.make(name)
        tag = repository.tags.get(reference)
        if not repository.attributes["writeEnabled"] or (tag and not tag.attributes["writeEnabled"]):
            raise Refused(405, "DENIED", "The operation is disallowed on this registry, repository or image.")
        try:
            parsed = json.loads(content)
            parts = [
                d["digest"] for d in [*parsed.get("layers", []), *([parsed["config"]] if "config" in parsed else [])]
            ]
            children = [d["digest"] for d in parsed.get("manifests", [])]
        except (ValueError, KeyError, TypeError):
            raise Refused(400, "MANIFEST_INVALID", "manifest invalid") from None
        missing = [d for d in parts if d not in repository.blobs] + [d for d in children if not repository.find(d)]
        if missing:
            raise Refused(400, "MANIFEST_BLOB_UNKNOWN", f"blob unknown to registry: {missing[0]}")
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if ":" in reference and reference != digest:
            raise Refused(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        repository.manifests.setdefault(digest, Manifest(content=content, media_type=media_type))
        if ":" not in reference:
            known = repository.tags.setdefault(reference, Tag(digest=digest))
            known.digest, known.updated = digest, now()
        repository.updated = now()
        return digest, (parsed.get("subject") or {}).get("digest")

    def delete_manifest(self, name: str, digest: str) -> None:
        repository = self.repository(name)
        if digest not in repository.manifests:
            raise Refused(404, "MANIFEST_UNKNOWN", "manifest unknown")
        tags = repository.tags_of(digest)
        if any(
            kept.frozen for kept in (repository, repository.manifests[digest], *map(repository.tags.get, tags)) if kept
        ):
            raise Refused(405, "DENIED", "The operation is disallowed on this registry, repository or image.")
        del repository.manifests[digest]
        for tag in tags:
            del repository.tags[tag]

    def delete_tag(self, name: str, tag: str) -> None:
        repository = self.repository(name)
        if tag not in repository.tags:
            raise Refused(404, "TAG_UNKNOWN", "the specified tag does not exist")
        if repository.frozen or repository.tags[tag].frozen:
            raise Refused(405, "DENIED", "The operation is disallowed on this registry, repository or image.")
        del repository.tags[tag]

    def delete_repository(self, name: str) -> dict[str, list[str]]:
        repository = self.repository(name)
        if any(kept.frozen for kept in (repository, *repository.manifests.values(), *repository.tags.values())):
            raise Refused(405, "DENIED", "The operation is disallowed on this registry, repository or image.")
        del self.repositories[name]
        return {"manifestsDeleted": sorted(repository.manifests), "tagsDeleted": sorted(repository.tags)}
