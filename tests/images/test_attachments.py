"""Definition, lock and SBOM travel with the image, can be read by others, and hold no secret."""

import json
import re
import secrets as randomness
from pathlib import Path

import pytest
from uv import find_uv_bin

from prefect_environments.core import attachments
from prefect_environments.core.copy import copy_image
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.registry_settings import RegistrySettings
from tests.images.conftest import Define
from tests.images.parts import Secrets, Team, build, conforms, repository_of, tool
from tests.support.engine import DockerEngine
from tests.support.leaks import find_secret
from tests.support.registry import Registry
from tests.support.wheels import serve_index

KINDS = {attachments.DEFINITION, attachments.LOCK, attachments.SBOM}


async def attached(reference: str) -> dict[str, bytes]:
    """What is attached to an image, found by its referrers, by artifact type."""
    async with repository_of(reference) as (repository, digest):
        found = await repository.referrers(digest)
        kinds = [item.artifact_type or "" for item in found]
        assert len(set(kinds)) == len(kinds)
        return {
            kind: await attachments.read_attachment(repository, item.digest, kind)
            for kind, item in zip(kinds, found, strict=True)
        }


@pytest.mark.parametrize("place", ["registry", "layout"])
async def test_definition_lock_and_sbom_are_found_by_the_image(
    place: str, team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    """By the fallback tag in a registry without referrers API, by the layout's index in a folder; they round-trip."""
    there = team if place == "registry" else Team.on(tmp_path / "images", tmp_path / "versions")
    wanted = define("alpha", base_image=open_base)
    built = await build(there, wanted, tmp_path / "cache")
    found = await attached(built.ready.reference)
    assert found.keys() == KINDS
    assert EnvironmentDefinition(**json.loads(found[attachments.DEFINITION])) == wanted
    assert Lock.from_pylock(found[attachments.LOCK].decode()) == built.lock
    record = await there.versions.get("demo", 1)
    async with repository_of(built.ready.reference) as (repository, digest):
        assert await attachments.read_lock(repository, record.lock_digest) == built.lock
        tags = await repository.tags()
        assert (f"sha256-{digest.partition(':')[2]}" in tags) == (place == "registry")


async def test_the_sbom_lists_the_base_and_every_wheel(pushed: str) -> None:
    """CycloneDX 1.5: unique references, package URLs, and the sha256 that the lock has."""
    found = await attached(pushed)
    lock, sbom = Lock.from_pylock(found[attachments.LOCK].decode()), json.loads(found[attachments.SBOM])
    assert (sbom["bomFormat"], sbom["specVersion"], sbom["version"]) == ("CycloneDX", "1.5", 1)
    base, *packages = sbom["components"]
    references = [component["bom-ref"] for component in sbom["components"]]
    assert len(set(references)) == len(references) and all(c["type"] and c["name"] for c in sbom["components"])
    assert f"sha256:{base['hashes'][0]['content']}" == lock.base.digest and base["type"] == "container"
    assert {(c["name"], c["version"], c["hashes"][0]["content"]) for c in packages} == {
        (p.name, p.version, p.sha256) for p in lock.packages
    }
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[0-9][^@]*", component["purl"]) for component in packages)


async def test_uv_understands_the_attached_lock(
    team: Team, define: Define, open_base: str, wheels: Path, tmp_path: Path
) -> None:
    """`uv pip install --dry-run -r pylock.toml` would install the same files from the same index."""
    with serve_index(wheels) as index:
        wanted = define("alpha", base_image=open_base, find_links=(), no_index=False, index_url=index.url)
        built = await build(team, wanted, tmp_path / "cache")
        path = tmp_path / "pylock.toml"
        path.write_bytes((await attached(built.ready.reference))[attachments.LOCK])
        assert built.lock is not None
        done = tool(
            "sh",
            "-c",
            'exec "$@" 2>&1',
            "sh",
            *(find_uv_bin(), "pip", "install", "--dry-run", "--no-config", "--target", tmp_path / "target"),
            *("--python-version", built.lock.target.python, "-r", path),
        )
    assert {line.strip(" +") for line in done.splitlines() if line.startswith(" + ")} >= {"alpha==1.0", "beta==1.0"}


async def test_no_attachment_layer_or_record_holds_a_secret(
    basic_registry: Registry, define: Define, open_base: str, wheels: Path, tmp_path: Path
) -> None:
    """The index's and the registry's passwords are in nothing that is stored: folders, caches, registered versions."""
    planted = f"planted-{randomness.token_hex(12)}"
    with serve_index(wheels, auth=("ann", planted)) as index:
        team = Team.on(
            tmp_path / "images",
            tmp_path / "versions",
            secrets=Secrets({"index-password": planted}),
            index_url=index.url,
            index_credentials={index.url: ("ann", "secret:index-password")},
        )
        wanted = define("alpha", base_image=open_base, find_links=(), no_index=False)
        built = await build(team, wanted, tmp_path / "cache")
        assert any(path.startswith("/files/alpha") for path in index.requests)
    secrets = Secrets({"registry-password": basic_registry.password})
    closed = RegistrySettings(basic_registry.address, basic_registry.username, "secret:registry-password")
    pushed = await copy_image(built.ready.reference, team.registry_settings, closed, "images/secrets", secrets)
    assert pushed == f"{basic_registry.address}/images/secrets@{built.ready.digest}"
    stored = [tmp_path / "images", tmp_path / "versions", tmp_path / "cache"]
    assert find_secret(planted, *stored) == find_secret(basic_registry.password, *stored) == []
    (tmp_path / "cache/control").write_text(f"https://ann:{planted}@example.com/")
    assert len(find_secret(planted, tmp_path / "cache")) == 1


async def test_a_copied_image_keeps_its_digest_and_its_attachments(
    define: Define, open_registry: Registry, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    """Layout, registry, layout: at every place the same image, its tag, and what is attached to it."""
    team = Team.on(tmp_path / "images", tmp_path / "versions")
    built = await build(team, define("alpha"), tmp_path / "cache")
    registry, other = RegistrySettings(open_registry.address), RegistrySettings(f"oci:{tmp_path / 'other'}")
    up = await copy_image(built.ready.reference, team.registry_settings, registry, "images/copied", Secrets())
    assert up == f"{open_registry.address}/images/copied@{built.ready.digest}"
    down = await copy_image(up, registry, other, "copied/again", Secrets())
    assert down == f"oci:{tmp_path / 'other'}:copied/again@{built.ready.digest}"
    first = await attached(built.ready.reference)
    assert first.keys() == KINDS and await attached(up) == first == await attached(down)
    await conforms(up, tmp_path / "conforms", engine=docker_engine, check="import alpha")
    tag = built.ready.image_hash.partition(":")[2]
    by_tag = await copy_image(f"environments/demo:{tag}", team.registry_settings, registry, "images/tagged", Secrets())
    async with repository_of(by_tag) as (repository, digest):
        tagged = await repository.get_manifest(tag)
    assert tagged.descriptor.digest == digest == built.ready.digest
    assert tagged.descriptor.media_type == types.IMAGE_MANIFEST
