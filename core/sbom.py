"""A bill of materials from the lock (CycloneDX 1.5): the same lock gives the same bytes."""

from typing import Any
from urllib.parse import quote

from prefect_environments.core import canonical
from prefect_environments.core.lock.model import Lock, LockedCondaPackage, LockedPackage

MEDIA_TYPE = "application/vnd.cyclonedx+json"


def write_sbom(lock: Lock) -> bytes:
    """The SBOM of a lock as canonical JSON: the base image, and every wheel and conda package with its sha256.

    What a user-managed image holds is not in its lock: it is listed as the base alone.
    """
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
            "components": [base, *map(_component, lock.packages), *map(_conda_component, lock.conda)],
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


def _conda_component(package: LockedCondaPackage) -> dict[str, Any]:
    """By the purl specification's type `conda`."""
    kind = "conda" if package.filename.endswith(".conda") else "tar.bz2"
    qualifiers = f"build={quote(package.build, safe='')}&subdir={quote(package.subdir, safe='')}&type={kind}"
    purl = f"pkg:conda/{package.name}@{quote(package.version, safe='')}?{qualifiers}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": package.sha256}],
        "properties": [{"name": "prefect-environments:filename", "value": f"{package.subdir}/{package.filename}"}],
    }
