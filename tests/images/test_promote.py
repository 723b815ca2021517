"""Versions promoted from one workspace to another: what is copied, what is not, and what is registered."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core import attachments, canonical, labels, steps
from prefect_environments.core.build import private_wheels
from prefect_environments.core.copy import copy_image
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import (
    NotFound,
    VersionNotFound,
)
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.verify import verify_version
from tests.images.conftest import Define
from tests.images.parts import Secrets, Team, build, mounts, repository_of, requests_of, uploads
from tests.images.promote_parts import KINDS, Ground, put, referrers
from tests.support.registry import Registry
from tests.support.wheels import make_wheel


@pytest.fixture
def ground(define: Define, tmp_path: Path) -> Ground:
    return Ground.make(define, tmp_path)


@pytest.fixture
def prod(ground: Ground, fresh_registry: Registry) -> Team:
    return ground.workspace(fresh_registry, "prod")


def sent_digests(requests: list[str], repository: str) -> set[str]:
    """Digests of the blobs that were sent to a repository."""
    start = re.compile(rf"PUT /v2/{re.escape(repository)}/blobs/uploads/\S*digest=(sha256%3A|sha256:)([0-9a-f]{{64}})")
    return {f"sha256:{found[2]}" for found in map(start.match, requests) if found}


async def test_a_version_is_promoted_by_digest_with_all_that_is_attached_and_verifies_in_the_target(
    ground: Ground, prod: Team, fresh_registry: Registry
) -> None:
    """Layout to registry. The record says where it came from, its image's maker stays known, and a build of the same
    definition in the target finds it, as one of a new environment finds its layers."""
    built = await ground.build("alpha", environment_variables={"MODE": "fast"}, tags={"team": "vision"})
    dev = await ground.dev.versions.get("demo", 1)
    done = await ground.promote(prod, label="production")
    record = await prod.versions.get("demo", 1)
    assert done.record == record and done.is_new and done.how == "sent"
    assert record.reference == f"{fresh_registry.address}/prod/demo@{built.ready.digest}"
    kept = ("digest", "image_hash", "record_hash", "definition_hash", "definition", "lock_digest", "size", "packages")
    assert [getattr(record, one) for one in kept] == [getattr(dev, one) for one in kept]
    assert (record.environment_variables, record.tags) == ({"MODE": "fast"}, {"team": "vision"})
    assert record.origin == {
        "workspace": "dev",
        "name": "demo",
        "version": 1,
        "reference": dev.reference,
        "record_digest": dev.record_digest(),
    }
    assert record.created_by["image_by"] == {**dev.created_by, "version": 1}
    assert record.created_by["flow_run_name"] == "promoting" and record.created != "" != record.nonce != dev.nonce
    found = await referrers(prod, "demo", record.digest)
    assert found == await referrers(ground.dev, "demo", record.digest) and len(found) == len(KINDS) == done.attached
    assert done.ready.reference == record.reference and done.ready.layers_new == done.layers_new > 2
    assert done.bytes_sent > 0.9 * record.size and set(done.seconds) == {"check", "copy", "register"}
    async with open_site(prod, cache=ground.folder / "verify") as site:
        report = await verify_version(site, "demo", 1, full=True)
        report.raise_for_failures()
        assert (await site.repository("demo").find_manifest("production")).digest == record.digest  # type: ignore[union-attr]
    again = await ground.build("alpha", team=prod, environment_variables={"MODE": "fast"}, tags={"team": "vision"})
    assert again.ready.reused and again.ready.version == 1 and again.lock is None
    with requests_of(fresh_registry) as seen:
        other = await ground.build("alpha", team=prod, name="another")
    assert [title for title in other.sent_layers if "empty environment" not in title] == []
    assert mounts(seen, "prod/another") >= 2


async def test_of_a_second_version_only_the_new_layer_is_sent_and_of_a_third_promotion_nothing(
    ground: Ground, prod: Team, fresh_registry: Registry
) -> None:
    await ground.build("alpha")
    await ground.promote(prod)
    await ground.build("alpha", "gamma")
    async with open_site(ground.dev) as site:
        record = await site.workspace.versions.get("demo", 2)
        manifest = json.loads((await site.repository("demo").get_manifest(record.digest)).content)
    with requests_of(fresh_registry) as seen:
        done = await ground.promote(prod, version=2)
    assert (done.record.version, done.layers_new) == (2, 1)
    sent = sent_digests(seen, "prod/demo")
    new = {layer["digest"] for layer in manifest["layers"]} & sent
    assert len(new) == 1 and len(sent) == 1 + 1 + len(KINDS)  # its config, and the contents of what is attached
    with requests_of(fresh_registry) as seen:
        again = await ground.promote(prod, version="2")
    assert again.record == done.record and not again.is_new and again.how == "there" and again.bytes_sent == 0
    assert [line for line in seen if not line.startswith(("GET ", "HEAD "))] == []
    assert len(seen) < 4 * (len(manifest["layers"]) + 10)


async def test_an_older_version_is_production_again_without_a_new_number(ground: Ground, prod: Team) -> None:
    """Promoted by label, and rolled back by promoting the older one again; the history has both moves."""
    await ground.build("alpha")
    async with open_site(ground.dev) as site:
        await labels.set_label(site, "demo", "staging", 1)
    first = await ground.promote(prod, version="staging", label="production")
    await ground.build("alpha", "gamma")
    second = await ground.promote(prod, label="production")
    back = await ground.promote(prod, version=1, label="production")
    assert [first.record.version, second.record.version, back.record.version] == [1, 2, 1]
    assert [record.version for record in await prod.versions.versions("demo")] == [1, 2]
    entries = (await prod.versions.book("demo")).entries
    assert [(entry.version, entry.reason) for entry in entries] == [
        (1, "promoted from dev, demo version 1"),
        (2, "promoted from dev, demo version 2"),
        (1, "promoted from dev, demo version 1"),
    ]


async def test_a_new_name_in_the_target_borrows_the_layers_of_its_neighbours(
    ground: Ground, prod: Team, fresh_registry: Registry
) -> None:
    """Base layers from an environment on the same base, package layers from the catalogue: only the config is sent."""
    await ground.build("alpha")
    await ground.promote(prod)
    with requests_of(fresh_registry) as seen:
        done = await ground.promote(prod, target_name="served")
    assert (done.how, done.layers_new, done.record.name, done.record.version) == ("mounted", 0, "served", 1)
    assert mounts(seen, "prod/served") >= 3 and uploads(seen, "prod/served") == 1 + 1 + len(KINDS)
    assert done.record.definition["name"] == "served" and done.record.origin["name"] == "demo"
    async with open_site(prod, cache=ground.folder / "verify") as site:
        (await verify_version(site, "served", 1)).raise_for_failures()


async def test_within_one_registry_nothing_is_sent(
    ground: Ground, prod: Team, fresh_registry: Registry, open_base: str
) -> None:
    """Every layer is mounted; so are what is attached, and the layers in the target's catalogue."""
    stage = ground.workspace(fresh_registry, "stage", "stage")
    await ground.build("alpha", team=stage)
    with requests_of(fresh_registry) as seen:
        done = await ground.between(stage, prod)
    assert (done.how, done.layers_new, done.bytes_sent) == ("mounted", 0, 0)
    assert uploads(seen, "prod/demo") == 0 and mounts(seen, "prod/demo") > 5
    assert done.record.digest == (await stage.versions.get("demo", 1)).digest
    other = await ground.build("alpha", team=prod, name="another")
    assert [title for title in other.sent_layers if "empty environment" not in title] == []


async def test_everything_attached_goes_along_signatures_of_attachments_too(ground: Ground, prod: Team) -> None:
    """Also a signature under a tag, as older tools keep it; one that the target made itself is left alone."""
    built = await ground.build("alpha")
    digest = built.ready.digest
    async with open_site(ground.dev) as site:
        repository = site.repository("demo")
        (sbom,) = await repository.referrers(digest, attachments.SBOM)
        kind, tag = "application/vnd.example.signature", f"{digest.replace(':', '-')}.sig"
        signature = await put(repository, kind, b"signed", subject=sbom)
        tagged = await put(repository, kind, b"by dev", tag=tag)
    done = await ground.promote(prod)
    assert done.attached == len(KINDS) + 1
    async with open_site(prod) as site:
        repository = site.repository("demo")
        assert [one.digest for one in await repository.referrers(sbom.digest)] == [signature.digest]
        assert (await repository.get_manifest(tag)).descriptor.digest == tagged.digest
        own = await put(repository, kind, b"by prod", tag=tag)
    await ground.promote(prod)
    async with open_site(prod) as site:
        assert (await site.repository("demo").get_manifest(tag)).descriptor.digest == own.digest


# ---- kinds of environments


async def test_a_user_managed_image_stays_where_it_is_and_must_be_reachable(
    ground: Ground, prod: Team, fresh_registry: Registry, open_base: str, define: Callable[..., EnvironmentDefinition]
) -> None:
    """Lock and SBOM go along; with `mirror` the image does, too."""
    plain: dict[str, Any] = {"user_managed": True, "find_links": (), "no_index": False, "base_image": open_base}
    await ground.build(**plain, name="own")
    done = await ground.promote(prod, "own")
    dev = await ground.dev.versions.get("own", 1)
    assert (done.how, done.record.reference, done.layers_new) == ("stays", dev.reference, 0)
    assert await referrers(prod, "own", dev.digest) == await referrers(ground.dev, "own", dev.digest) != set()
    async with open_site(prod) as site:
        assert await site.repository("own").tags() == [f"sha256-{digests.hex_of(dev.digest)}"]
        assert await steps.has_image(site, done.record)
    await ground.build(**plain, mirror=True, name="copied")
    copied = await ground.promote(prod, "copied")
    assert copied.record.reference == f"{fresh_registry.address}/prod/copied@{dev.digest}"
    gone = replace(dev, version=0, nonce="", record_hash="x", reference=f"{dev.reference[:-4]}0000")
    gone = replace(gone, digest=gone.reference.rpartition("@")[2])
    await ground.dev.versions.register(gone)
    with pytest.raises(NotFound, match="the image of own version 2, is gone"):
        await ground.promote(prod, "own")


async def test_an_extended_environment_is_whole_without_its_base_and_is_not_found_by_its_definition(
    ground: Ground, prod: Team, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same base in the target, it is found as any other is."""
    await ground.build("alpha", environment_variables={"BELOW": "1"})
    more: dict[str, Any] = {"base_image": "", "extends": "demo:1", "find_links": ground.define().find_links}
    await ground.build("gamma", name="more", **more)
    done = await ground.promote(prod, "more")
    (note,) = done.notes
    assert "more extends demo:1, which prod does not have" in note and note in caplog.text
    assert done.record.environment_variables == {"BELOW": "1"} and done.record.definition_hash == ""
    with pytest.raises(VersionNotFound, match="extends demo:1"):
        await ground.build("gamma", team=prod, name="more", **more)
    await ground.promote(prod)
    again = await ground.promote(prod, "more", target_name="again")
    assert again.notes == () and again.record.definition_hash != ""
    found = await ground.build("gamma", team=prod, name="again", **more)
    assert found.ready.reused and found.lock is None


async def test_a_private_wheel_goes_along_so_that_the_target_can_build_again(
    ground: Ground, prod: Team, tmp_path: Path
) -> None:
    """It is in no index. The target resolves the definition afresh and gets the image that it was promoted with."""
    wheel = make_wheel(tmp_path / "own", "secretsauce", "1.0")
    async with open_site(ground.dev, cache=ground.folder / "cache") as site:
        requirement = await private_wheels.add(site.wheel_store, wheel, exist_ok=False)
    await ground.build("alpha", requirement)
    done = await ground.promote(prod)
    again = await build(prod, ground.define("alpha", requirement), tmp_path / "anew", upgrade=True)
    assert again.lock is not None and again.ready.digest == done.record.digest and again.ready.version == 1
    async with open_site(prod, cache=tmp_path / "anew") as site:
        (await verify_version(site, "demo", rebuild=True)).raise_for_failures()


async def test_an_index_is_copied_after_the_images_in_it(fresh_registry: Registry, tmp_path: Path) -> None:
    """A registry takes an index only with its images; what is attached to the index goes along."""
    layout = Layout(tmp_path / "images")
    repository = layout.repository("many")
    parts = [await put(repository, "text/plain", text) for text in (b"one", b"two")]
    content = canonical.dumps(
        {"schemaVersion": 2, "mediaType": types.IMAGE_INDEX, "manifests": [part.to_json() for part in parts]}
    )
    index = await repository.put_manifest(content, types.IMAGE_INDEX, tag="1")
    signature = await put(repository, "application/vnd.example.signature", b"signed", subject=index)
    settings = RegistrySettings(layout.address), RegistrySettings(fresh_registry.address)
    copied = await copy_image("many:1", *settings, "copied/many", Secrets())
    assert copied.endswith(f"/copied/many@{index.digest}")
    async with repository_of(copied) as (goal, digest):
        assert (await goal.get_manifest("1")).content == content
        assert [one.digest for one in await goal.referrers(digest)] == [signature.digest]
        assert all([await goal.find_manifest(part.digest) for part in parts])
