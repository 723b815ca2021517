"""Promotions that are refused, broken off, or left to Azure: nothing half done is registered, and no secret told."""

import asyncio
import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from prefect_environments.core.azure import acr as acr_contents
from prefect_environments.core.azure.keyvault import VaultSettings
from prefect_environments.core.errors import (
    DefinitionError,
    DigestMismatch,
    NameNotAllowed,
    NotFound,
    RegistryAuthError,
    RegistryError,
    SecretError,
    VersionNotFound,
    VersionPruned,
)
from prefect_environments.core.history import Entry
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.verify import verify_version
from tests.faults.parts import PATIENT, QUICK
from tests.faults.proxy import Proxy, Rule, drop_at_once, proxy_to, status
from tests.images.conftest import Define
from tests.images.parts import Secrets, Team, requests_of, uploads
from tests.images.promote_parts import KINDS, Ground, referrers
from tests.support.azure.acr import AzureContainerRegistryServer
from tests.support.azure.acr_arm import Manager
from tests.support.azure.acr_parts import Acr, running_acr
from tests.support.jobs import until
from tests.support.leaks import find_secret
from tests.support.registry import Registry, start_registry
from tests.support.session import Session, end


@pytest.fixture
def ground(define: Define, tmp_path: Path) -> Ground:
    return Ground.make(define, tmp_path)


@pytest.fixture
def prod(ground: Ground, fresh_registry: Registry) -> Team:
    return ground.workspace(fresh_registry, "prod")


@pytest.fixture
def closed(test_session: Session) -> Iterator[Registry]:
    """A second registry that wants a password, another one."""
    registry = start_registry(test_session, f"registry-{uuid4().hex[:8]}", username="bob", password="pass-word-55e0b7")
    yield registry
    end(registry.pid)


# ---- refused


async def test_what_cannot_be_promoted_is_refused_before_the_target_is_written(
    ground: Ground, prod: Team, fresh_registry: Registry
) -> None:
    await ground.build("alpha")
    await ground.build("alpha", "gamma")
    await ground.dev.versions.append("demo", lambda _book: Entry("dev", "demo", "pruning", version=1))
    refused: list[tuple[str, int | str, dict[str, str], type[Exception], str]] = [
        ("demo", 1, {}, VersionPruned, "is being pruned"),
        ("demo", 7, {}, VersionNotFound, "no version 7"),
        ("demo", "nightly", {}, VersionNotFound, "label 'nightly'"),
        ("other", "", {}, VersionNotFound, "no environment 'other'"),
        ("demo", "", {"label": "latest"}, NameNotAllowed, "latest"),
        ("demo", "", {"target_name": "a b"}, NameNotAllowed, "'a b'"),
        ("demo", "", {"target_name": "AzureML-sklearn"}, NameNotAllowed, "curated"),
        ("AzureML-sklearn", "", {}, NotFound, "nobody has built it"),
    ]
    for name, version, options, error, says in refused:
        with pytest.raises(error, match=says):
            await ground.promote(prod, name, version, **options)
    with pytest.raises(DefinitionError, match="to itself"):
        await ground.promote(ground.dev)
    async with open_site(ground.dev) as site:
        record = await site.workspace.versions.get("demo", 2)
        await site.repository("demo").delete_manifest(record.lock_digest)
        with pytest.raises(NotFound, match="the lock of demo version 2"):
            await ground.promote(prod)
        await site.repository("demo").delete_manifest(record.digest)
    with pytest.raises(NotFound, match="the image of demo version 2, is gone"):
        await ground.promote(prod)
    assert fresh_registry.requests() == []
    assert await prod.versions.versions("demo") == []


async def test_a_name_that_another_environment_owns_in_the_target_is_refused(
    ground: Ground, prod: Team, fresh_registry: Registry
) -> None:
    await ground.build("alpha")
    await ground.promote(prod)
    with requests_of(fresh_registry) as seen, pytest.raises(NameNotAllowed, match="share a repository with 'demo'"):
        await ground.promote(prod, target_name="Demo")
    assert seen == []


@dataclass(frozen=True)
class Vaulted(Team):
    """A workspace that knows vaults."""

    vaults: tuple[VaultSettings, ...] = ()
    allow_unknown_vaults: bool = False


async def test_references_to_vaults_that_the_target_does_not_know_are_named_by_field(
    ground: Ground, prod: Team, fresh_registry: Registry
) -> None:
    """All of them at once; references to its own vaults and to Secret blocks, and literal values, pass."""
    theirs, ours = (f"@Microsoft.KeyVault(VaultName={vault};SecretName=token)" for vault in ("devvault", "prodvault"))
    variables = {"TOKEN": theirs, "OURS": ours, "OTHER": "secret:other", "PLAIN": "1"}
    login: dict[str, Any] = {"base_image_username": "ann", "base_image_password": theirs}
    await ground.build("alpha", environment_variables=variables, **login)
    with pytest.raises(SecretError, match=r"workspace 'prod'.*environment_variables\.TOKEN: .*no Key Vault is known"):
        await ground.promote(prod)
    fields = {field.name: getattr(prod, field.name) for field in dataclasses.fields(prod)}
    knows = Vaulted(**fields, vaults=(VaultSettings("prodvault"),))
    with pytest.raises(SecretError, match="the Key Vault devvault is not one of the workspace's") as caught:
        await ground.promote(knows)
    told = re.findall(r"(environment_variables\.\w+|base_image_\w+): @", str(caught.value))
    assert told == ["environment_variables.TOKEN", "base_image_password"]
    assert fresh_registry.requests() == []
    assert (await ground.promote(replace(knows, allow_unknown_vaults=True))).is_new
    both = replace(knows, vaults=(VaultSettings("prodvault"), VaultSettings("devvault")))
    assert not (await ground.promote(both)).is_new


async def test_a_damaged_layer_is_refused_and_nothing_is_registered_or_tagged(
    ground: Ground, prod: Team, fresh_registry: Registry
) -> None:
    """Between two registries the bytes are verified on their way; with the layer restored the next run completes."""
    stage = ground.workspace(fresh_registry, "stage", "stage")
    await ground.build("alpha", team=stage)
    record = await stage.versions.get("demo", 1)
    async with open_site(stage) as site:
        manifest = json.loads((await site.repository("demo").get_manifest(record.digest)).content)
    layer = manifest["layers"][-1]["digest"].partition(":")[2]
    file = fresh_registry.folder / f"docker/registry/v2/blobs/sha256/{layer[:2]}/{layer}/data"
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    place = ground.workspace(ground.folder / "images", "prod")
    with pytest.raises(DigestMismatch, match=layer):
        await ground.between(stage, place)
    assert await place.versions.versions("demo") == []
    layout = Layout(ground.folder / "images")
    assert layout.entries() == [] and not layout.blob_path(f"sha256:{layer}").exists()
    file.write_bytes(whole)
    assert (await ground.between(stage, place)).record.version == 1


# ---- faults


async def test_a_promotion_that_lost_its_target_is_finished_by_the_next_run(
    ground: Ground, fresh_registry: Registry
) -> None:
    """The first run fails in the middle and registers nothing; the second sends only what is missing."""
    await ground.build("alpha")

    async def drop_after_two(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        await until(lambda: uploads(fresh_registry.requests(), "prod/demo") == 2)  # else the failure would end them
        return await drop_at_once(proxy, request)

    rule = Rule(r"^PUT .*/blobs/uploads/", drop_after_two, times=None, skip=2)
    async with proxy_to(fresh_registry.address, rule) as proxy:
        target = ground.workspace(RegistrySettings(proxy.address, plain_http=True, limits=PATIENT), "prod")
        with pytest.raises(RegistryError):
            await ground.promote(target, label="production")
        assert proxy.hits and await target.versions.versions("demo") == []
        before = uploads(fresh_registry.requests(), "prod/demo")
        proxy.rules.clear()
        done = await ground.promote(target, label="production")
        assert done.is_new and 0 < done.layers_reused < done.layers_reused + done.layers_new
        assert before == 2
        async with open_site(target) as site:
            assert (await site.repository("demo").find_manifest("production")).digest == done.record.digest  # type: ignore[union-attr]
            (await verify_version(site, "demo")).raise_for_failures()


async def test_a_catalogue_that_cannot_be_written_costs_no_promotion(
    ground: Ground, fresh_registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    await ground.build("alpha")
    async with proxy_to(fresh_registry.address, Rule(r"/v2/prod-layers/", status(403), times=None)) as proxy:
        target = ground.workspace(RegistrySettings(proxy.address, plain_http=True, limits=QUICK), "prod")
        assert (await ground.promote(target)).is_new
    assert "going on without" in caplog.text


async def test_passwords_of_both_ends_stand_nowhere(
    ground: Ground, basic_registry: Registry, closed: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Between registries with passwords of their own, given by reference; a wrong one is refused without telling it."""
    wrong = "planted-7d31f0aa"
    secrets = Secrets({"dev": basic_registry.password, "prod": closed.password, "wrong": wrong})
    prefix = re.sub(r"\W+", "-", ground.folder.name.lower()).strip("-")

    def team(registry: Registry, name: str, secret: str) -> Team:
        settings = RegistrySettings(registry.address, registry.username, f"secret:{secret}")
        return replace(ground.workspace(settings, name, f"{prefix}-{name}"), secrets=secrets)

    dev, prod = team(basic_registry, "dev", "dev"), team(closed, "prod", "prod")
    await ground.build("alpha", team=dev)
    caplog.set_level("DEBUG")
    with pytest.raises(RegistryAuthError) as caught:
        await ground.between(dev, team(closed, "prod", "wrong"))
    done = await ground.between(dev, prod)
    assert done.is_new and done.how == "sent" and "layers were there" in caplog.text
    stored = [ground.folder / "versions-prod", ground.folder / "versions-dev", ground.folder / "worker", closed.folder]
    for secret in (wrong, basic_registry.password, closed.password):
        assert secret not in f"{caught.value}{caplog.text}{done!r}"
        assert find_secret(secret, *stored) == []
    (ground.folder / "worker/control").write_text(f"Basic {closed.password}")
    assert len(find_secret(closed.password, *stored)) == 1


async def test_of_several_who_promote_at_the_same_time_all_get_one_version(ground: Ground, prod: Team) -> None:
    await ground.build("alpha")
    done = await asyncio.gather(*(ground.promote(prod, label="production") for _ in range(3)))
    assert {one.record.version for one in done} == {1}
    assert len(await prod.versions.versions("demo", pruned=True)) == 1
    assert [entry.version for entry in (await prod.versions.book("demo")).entries] == [1]
    assert await referrers(prod, "demo", done[0].record.digest) == await referrers(
        ground.dev, "demo", done[0].record.digest
    )


# ---- Azure


@dataclass
class AzureGround:
    """Two Container Registries of one tenant, and what imports from one into the other."""

    acr: Acr
    manager: Manager
    dev: Team
    prod: Team


@pytest.fixture
def azure(ground: Ground, test_session: Session, tmp_path: Path) -> Iterator[AzureGround]:
    with (
        running_acr(test_session, tmp_path / "acr") as acr,
        AzureContainerRegistryServer(acr.azure.entra, tmp_path / "acr-dev") as source,
        Manager(acr.azure.entra, acr.azure.authority.server_context(), source, acr.server) as manager,
    ):
        for server in (acr.server, source):
            server.grant(acr.azure.app, "Owner")
        manager.allow(acr.azure.app)
        cloud = replace(acr.azure.identity().cloud, resource_manager=manager.url)
        managed: dict[str, Any] = {"subscription_id": "sub-1", "resource_group": "group-1"}
        there = acr.settings(replace(acr.azure.identity(), cloud=cloud), lock_registered=True, **managed)
        assert there.azure is not None
        here = replace(
            there,
            address=source.address,
            azure=replace(there.azure, login_server=source.address, lock_registered=False, **managed),
        )
        dev, prod = ground.workspace(here, "dev", "dev"), ground.workspace(there, "prod")
        yield AzureGround(acr, manager, dev, prod)


async def test_azure_imports_the_image_itself_and_what_is_attached_follows(ground: Ground, azure: AzureGround) -> None:
    """By digest and the source's resource id; no layer goes through this machine. The image is locked before it is
    registered, and promoting it once more writes nothing there."""
    await ground.build("alpha", team=azure.dev)
    done = await ground.between(azure.dev, azure.prod, label="production")
    record = done.record
    assert (done.how, done.layers_new, done.attached) == ("imported", 0, len(KINDS))
    assert done.bytes_sent < 20_000 < record.size
    (body,) = azure.manager.bodies
    assert body["source"]["sourceImage"] == f"dev/demo@{record.digest}"
    assert body["source"]["resourceId"].startswith("/subscriptions/sub-1/resourceGroups/group-1/providers/")
    assert "credentials" not in body["source"] and body["untaggedTargetRepositories"] == ["prod/demo"]
    async with open_site(azure.prod, cache=ground.folder / "verify") as site:
        (await verify_version(site, "demo")).raise_for_failures()
        tags = {tag.name: tag for tag in await acr_contents.list_tags(azure.acr.settings(), "prod/demo")}
    assert tags.keys() == {digests.hex_of(record.image_hash), "production"}
    assert all(tag.digest == record.digest and tag.locked for tag in tags.values())
    written = azure.acr.count("PUT /v2/prod/demo")
    again = await ground.between(azure.dev, azure.prod, label="production")
    assert (again.how, again.record) == ("there", record) and len(azure.manager.bodies) == 1
    assert azure.acr.count("PUT /v2/prod/demo") == written


async def test_where_azure_may_not_import_the_layers_are_sent_and_that_is_said(
    ground: Ground, azure: AzureGround, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither with a missing role, nor from a folder, which Azure cannot reach."""
    caplog.set_level("INFO")
    await ground.build("alpha", team=azure.dev)
    azure.manager.allowed.clear()
    done = await ground.between(azure.dev, azure.prod)
    assert done.how == "sent" and done.layers_new > 2
    assert "Azure did not import" in caplog.text and "Data Importer and Data Reader" in caplog.text
    assert not [secret for secret in azure.acr.secrets if secret in caplog.text]
    await ground.build("alpha", "gamma", name="local")
    assert (await ground.between(ground.dev, azure.prod, "local")).how == "sent"
    assert "is sent from here: Azure cannot reach oci:" in caplog.text
    assert azure.manager.bodies == []
