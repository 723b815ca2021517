"""A bill of materials from the lock (CycloneDX 1.5): the same lock gives the same bytes."""

from typing import Any
from urllib.parse import quote

from prefect_environments.core import canonical
from prefect_environments.core.lock.model import Lock, LockedPackage

MEDIA_TYPE = "application/vnd.cyclonedx+json"


def write_sbom(lock: Lock) -> bytes:
    """The SBOM of a lock as canonical JSON: the base image and every wheel with its sha256."""
    base = {
        "type": "container",
        "bom-ref": "base",
        "name": lock.base.name or "base",
        "version": lock.base.digest,
        "hashes": [{"alg": "SHA-256", "content": lock.base.digest.partition(":")[2]}],
    }
    return canonical.dumps(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"tools": {"components": [{"type": "application", "name": "prefect-environments"}]}},
            "components": [base, *map(_component, lock.packages)],
        }
    )


def _component(package: LockedPackage) -> dict[str, Any]:
    purl = f"pkg:pypi/{package.name}@{quote(package.version, safe='')}"  # a local version has a +
    return {
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": package.sha256}],
        "properties": [{"name": "prefect-environments:filename", "value": package.filename}],
    }
