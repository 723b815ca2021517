"""What hangs on an image may be from anybody: whatever it says, a verification ends with a finding."""

from pathlib import Path

import pytest

from prefect_environments.cli.workspaces import FolderWorkspace
from prefect_environments.core import attachments
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.lock.model import Lock, LockedBase
from prefect_environments.core.lock.target import Target
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.artifact import artifact_manifest, put_artifact
from prefect_environments.core.oci.descriptor import IMAGE_MANIFEST, Descriptor
from prefect_environments.core.site import open_site
from prefect_environments.core.verify import stored
from prefect_environments.core.verify.look import Look
from prefect_environments.core.version_record import VersionRecord

LOCK = Lock(
    LockedBase("registry.example.com/python:3.12", f"sha256:{'a' * 64}"),
    Target("3.12.7", "/usr/bin/python3.12", "glibc", "2.36"),
    (),
)


@pytest.mark.parametrize("content", [b"[]", b'"text"', b'{"components": [1]}', b'{"components": null}', b"{"])
async def test_an_sbom_that_is_none_is_a_finding(content: bytes, tmp_path: Path) -> None:
    workspace = FolderWorkspace(tmp_path / "workspace")
    async with open_site(workspace, cache=tmp_path / "cache") as site:
        repository = site.repository("demo")
        some = Descriptor("text/plain", digests.of(b"image"), 5)
        await repository.write_blob(some, b"image")
        image = await put_artifact(repository, some, b"image")
        blob = Descriptor(attachments.SBOM, digests.of(content), len(content))
        await repository.write_blob(blob, content)
        manifest = artifact_manifest(blob, attachments.SBOM, subject=image).to_bytes()
        await repository.put_manifest(manifest, IMAGE_MANIFEST)
        record = VersionRecord(workspace.name, "demo", 1, f"oci:images@{image.digest}", image.digest)
        look = Look(site, record, EnvironmentDefinition(name="demo"), repository, lock=LOCK)
        await look.check("SBOM", "what to do", stored.bill)
    ((name, ok),) = [(one.name, one.ok) for one in look.findings]
    assert (name, ok) == ("SBOM", False)
