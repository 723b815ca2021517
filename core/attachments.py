"""What belongs to an image beside its layers, attached as referrers (distribution-spec, "Listing Referrers")."""

from collections.abc import Mapping
from dataclasses import dataclass

from prefect_environments.core import canonical, sbom
from prefect_environments.core.build.base import read_all
from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import ImageError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.artifact import EMPTY, EMPTY_DESCRIPTOR, TITLE, artifact_manifest
from prefect_environments.core.oci.descriptor import IMAGE_MANIFEST, Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.repository import Repository

DEFINITION = "application/vnd.prefect-environments.definition.v1+json"
LOCK = "application/vnd.prefect-environments.lock.v1+toml"
SBOM = sbom.MEDIA_TYPE
LIMIT = 64 * 1024 * 1024

_TITLES = {DEFINITION: "definition.json", LOCK: "pylock.toml", SBOM: "sbom.cdx.json"}


@dataclass(frozen=True, slots=True)
class Attached:
    """Digests of the attached manifests."""

    definition: str
    lock: str
    sbom: str


async def attach(repository: Repository, image: Descriptor, definition: EnvironmentDefinition, lock: Lock) -> Attached:
    """Attach definition, lock and SBOM to an image; what is attached already is left as it is.

    A registry without the referrers API keeps their list under a tag, which two workers may overwrite for each other.
    Each looks after its last write, so the last of them leaves a whole list.
    """
    contents = _contents(definition, lock)
    manifests = _manifests(image, contents)
    listed = {item.digest for item in await repository.referrers(image.digest)}

    async def lacks(kind: str) -> bool:
        digest = digests.of(manifests[kind])
        # a tag may list what is deleted
        return digest not in listed or await repository.find_manifest(digest) is None

    kinds = list(contents)
    wanted = [kind for kind, lacking in zip(kinds, await gather(lacks(kind) for kind in kinds), strict=True) if lacking]
    if wanted:
        blobs = [(EMPTY_DESCRIPTOR, EMPTY), *((_blob(kind, contents[kind]), contents[kind]) for kind in wanted)]
        await gather(repository.write_blob(blob, content) for blob, content in blobs)
        await gather(repository.put_manifest(manifests[kind], IMAGE_MANIFEST) for kind in wanted)
    return _attached(manifests)


def expected(image: Descriptor, definition: EnvironmentDefinition, lock: Lock) -> Attached:
    """What `attach` would give, without asking the registry."""
    return _attached(_manifests(image, _contents(definition, lock)))


def _manifests(image: Descriptor, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    return {
        kind: artifact_manifest(_blob(kind, content), kind, subject=image).to_bytes()
        for kind, content in contents.items()
    }


def _attached(manifests: Mapping[str, bytes]) -> Attached:
    digest = {kind: digests.of(manifest) for kind, manifest in manifests.items()}
    return Attached(digest[DEFINITION], digest[LOCK], digest[SBOM])


def _contents(definition: EnvironmentDefinition, lock: Lock) -> dict[str, bytes]:
    return {
        DEFINITION: canonical.dumps(definition.model_dump(mode="json")),
        LOCK: lock.to_pylock().encode(),
        SBOM: sbom.write_sbom(lock),
    }


def _blob(kind: str, content: bytes) -> Descriptor:
    return Descriptor(kind, digests.of(content), len(content), {TITLE: _TITLES[kind]})


async def read_lock(repository: Repository, digest: str) -> Lock:
    """The lock in an attached manifest. Raises `NotFound` or `ImageError`."""
    return Lock.from_pylock((await read_attachment(repository, digest, LOCK)).decode())


async def read_attachment(repository: Repository, digest: str, kind: str) -> bytes:
    """The content of an attached manifest of a kind, verified."""
    manifest = ImageManifest.from_bytes((await repository.get_manifest(digest)).content)
    if manifest.artifact_type != kind or len(manifest.layers) != 1:
        raise ImageError(f"{digest} in {repository.name} is no {kind}")
    return await read_all(repository, manifest.layers[0], LIMIT)
