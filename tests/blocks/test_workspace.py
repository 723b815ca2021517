"""The Workspace block: its form, its vaults and feeds, where it is found, and what `check` says of real servers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from pydantic import SecretStr

from prefect_environments import Keyvault, Workspace
from prefect_environments.blocks import (
    AzureContainerRegistry,
    AzureCredentials,
    ContainerRegistry,
    PackageIndexCredentials,
)
from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.findings import Finding, failures
from prefect_environments.core.references import feed_logins
from prefect_environments.core.secrets import SecretReference, SecretValue
from prefect_environments.core.workspace_config import VARIABLE
from tests.support.azure.acr_parts import Acr, running_acr
from tests.support.azure.parts import Azure
from tests.support.channel import Channel, CondaPackage, serve
from tests.support.registry import Registry
from tests.support.session import Session
from tests.support.wheels import make_wheel, serve_index


@pytest.fixture
def acr(test_session: Session, tmp_path: Path) -> Iterator[Acr]:
    """A registry of the test's own, where the application may push, beside a vault that it may read."""
    with running_acr(test_session, tmp_path / "acr") as running:
        running.server.grant(running.azure.app, "AcrPush")
        yield running


@pytest.fixture
def azure(acr: Acr) -> Azure:
    return acr.azure


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:12]}"


def vault(azure: Azure, **fields: Any) -> Keyvault:
    return Keyvault(vault=azure.vault.vault_url, credentials=AzureCredentials(**azure.fields), **fields)


def open_to(keyvault: Keyvault | None = None, **fields: Any) -> Workspace:
    return Workspace(
        name="team", registry=ContainerRegistry(address="registry.example.com"), keyvault=keyvault, **fields
    )


def test_the_form_asks_first_for_what_everybody_needs() -> None:
    fields = list(Workspace.model_fields)
    assert fields[:6] == ["name", "registry", "keyvault", "credentials", "default_base_image", "index"]
    assert fields[-4:] == ["build_timeout", "build_agent_pool", "build_as_caller", "local_folder"]
    schema = Workspace.model_json_schema()
    assert schema["required"] == ["name", "registry"]
    for name, field in schema["properties"].items():
        assert len(field["description"]) < 130, name


async def test_vaults_and_feeds_survive_saving_and_no_secret_is_in_the_workspaces_document(
    azure: Azure, prefect_server: str
) -> None:
    who = AzureCredentials(**azure.fields)
    await who.asave(unique("azure"))
    own = Keyvault(vault=azure.vault.vault_url, credentials=who)
    await own.asave(unique("vault"))
    name, value = unique("ws"), f"planted-{uuid4().hex}"
    azure.vault.put("registry-password", value)
    await open_to(own, known_vaults=["other", " "], feeds=["", "conda"], work_pool="gpus").asave(name)
    loaded: Workspace = await Workspace.aload(name)
    assert (loaded.known_vaults, loaded.feeds, loaded.work_pool) == (["other"], ["conda"], "gpus")
    assert [found.host for found in loaded.vaults] == [azure.vault.host, f"other.{azure.vault.suffix}"]
    assert loaded.vaults[1].identity == azure.identity(retries=3)
    password = loaded.get_default_keyvault().get_secret(name="registry-password")
    assert password == value and isinstance(password, SecretValue)
    async with get_client() as client:
        document = await client.read_block_document_by_name(name, "environments-workspace", include_secrets=True)
    assert azure.app.secret not in json.dumps(document.data["keyvault"] | {"credentials": None})
    assert document.block_document_references["keyvault"]["block_document"]["id"] == str(own._block_document_id)


async def test_references_to_the_vault_and_to_secret_blocks_are_resolved_others_refused(
    azure: Azure, prefect_server: str
) -> None:
    """Both forms of Key Vault; what is refused names the field that would allow it."""
    azure.vault.put("pull", "value-of-pull")
    name = unique("pull")
    await Secret(value=SecretStr("value-of-block")).asave(name)
    store = open_to(vault(azure)).secrets
    uri = f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/pull)"
    assert await store.get(SecretReference.parse(uri)) == "value-of-pull"
    assert await store.get(SecretReference.parse(f"secret:{name}")) == "value-of-block"
    stranger = SecretReference.parse("@Microsoft.KeyVault(VaultName=strange;SecretName=pull)")
    with pytest.raises(SecretError, match=r"known_vaults.*allow_unknown_vaults"):
        await store.get(stranger)
    with pytest.raises(SecretError, match="field keyvault"):
        await open_to().secrets.get(stranger)


def test_a_workspace_without_a_vault_says_so(prefect_server: str) -> None:
    with pytest.raises(DefinitionError, match="'team' has no Key Vault; set its field keyvault"):
        open_to().get_default_keyvault()
    for fields in ({"known_vaults": ["other"]}, {"allow_unknown_vaults": True}):
        with pytest.raises(DefinitionError, match="field keyvault"):
            open_to(**fields)
    with pytest.raises(DefinitionError, match="a vault is its name"):
        open_to(Keyvault(vault="team"), known_vaults=["http://team"])


async def test_feeds_are_read_by_name_at_each_use_and_their_references_resolved(
    azure: Azure, prefect_server: str
) -> None:
    """Changing a feed's block, or the secret behind it, reaches the workspace without saving it again."""
    azure.vault.put("conda", "first-password")
    reference, name = f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/conda)", unique("feed")
    url = "https://conda.example.com/team"
    await PackageIndexCredentials(url=url, username="ann", password=SecretStr(reference)).asave(name)
    index = PackageIndexCredentials(url="https://p.example.com/simple", username="token")
    workspace = open_to(vault(azure, cache_seconds=0), feeds=[name], index=index)
    assert await feed_logins(workspace) == {url: ("ann", "first-password"), index.url: ("token", "")}
    azure.vault.put("conda", "second-password")
    assert (await feed_logins(workspace))[url] == ("ann", "second-password")
    await PackageIndexCredentials(url=url, username="bob", password=SecretStr(reference)).asave(name, overwrite=True)
    assert (await feed_logins(workspace))[url] == ("bob", "second-password")
    with pytest.raises(DefinitionError, match="feeds of the workspace 'team' names 'gone-feed'"):
        await feed_logins(open_to(feeds=["gone-feed"]))


async def test_from_config_works_inside_a_running_loop_and_in_a_plain_function(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is synchronous in notebooks, too; `workspace_name` becomes the name of a block."""
    name = f"Team_{uuid4().hex[:8]}"
    await open_to().asave(name.lower().replace("_", "-"))
    (tmp_path / "config.json").write_text(json.dumps({"workspace_name": name}))
    monkeypatch.chdir(tmp_path)
    found = Workspace.from_config()
    assert isinstance(found, Workspace) and found.name == "team"
    assert Workspace.from_config("config.json").name == "team"
    monkeypatch.setenv(VARIABLE, "no-such-block")
    with pytest.raises(DefinitionError, match=rf"'no-such-block'(?s:.*){VARIABLE}(?s:.*)lower case"):
        Workspace.from_config()
    with pytest.warns(UserWarning, match="auth has no effect"):
        assert Workspace.from_config(tmp_path, auth=object()).name == "team"


def test_from_config_without_any_workspace_says_all_that_was_tried(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DefinitionError) as caught:
        Workspace.from_config()
    for word in ("argument", VARIABLE, ".azureml/config.json", str(tmp_path), "'default'", "Workspace.local"):
        assert word in str(caught.value)


def on_azure(acr: Acr, **fields: Any) -> Workspace:
    who = AzureCredentials(**acr.fields)
    registry = AzureContainerRegistry(login_server=acr.server.address, credentials=who)
    keyvault = Keyvault(vault=acr.azure.vault.vault_url, credentials=who)
    return Workspace(name="team", registry=registry, **{"keyvault": keyvault, **fields})


def by_name(workspace: Workspace) -> dict[str, Finding]:
    return {finding.name: finding for finding in workspace.check()}


def test_a_check_finds_all_in_order_and_leaves_nothing_behind(acr: Acr, prefect_server: str, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "pip", "26.1")
    with serve_index(tmp_path / "wheels") as index:
        found = by_name(on_azure(acr, index=PackageIndexCredentials(url=index.url)))
    needed = {"registry", "pull", "push", "Azure credentials", f"Key Vault {acr.azure.vault.host}", "versions"}
    assert needed | {"package index", "Docker engine"} == set(found)
    assert failures(found.values()) == [], [one for one in found.values() if not one.ok]
    assert "pip 26.1" in found["package index"].found
    assert str(acr.azure.identity()) in found["push"].found
    assert acr.count("POST /v2/") == acr.count("DELETE /v2/") == 1  # an upload that was cancelled
    assert not acr.server.store.repositories or not list(acr.server.store.repositories["environments/check"].blobs)
    assert "PUT" not in {line.split()[0] for line in (*acr.server.log, *acr.azure.vault.log)}
    told = "\n".join(f"{one}" for one in found.values())
    assert [secret for secret in acr.secrets if secret in told] == []


def test_a_check_names_the_role_that_is_missing_and_its_resource(acr: Acr, prefect_server: str, tmp_path: Path) -> None:
    acr.server.grant(acr.azure.app, "AcrPull")
    acr.azure.vault.grant(acr.azure.app, "Key Vault Reader")  # sees names, not values
    found = by_name(on_azure(acr))
    assert found["pull"].ok
    assert not found["push"].ok and not found[f"Key Vault {acr.azure.vault.host}"].ok
    assert "the role AcrPush on the registry 127.0.0.1" in found["push"].advice
    assert str(acr.azure.identity()) in found["push"].advice
    secrets_role = f"the role Key Vault Secrets User on {acr.azure.vault.host}"
    assert secrets_role in found[f"Key Vault {acr.azure.vault.host}"].advice
    assert {one.name for one in failures(found.values())} == {"push", f"Key Vault {acr.azure.vault.host}"}


def test_a_check_with_a_wrong_client_secret_says_so_once_and_does_not_show_it(acr: Acr, prefect_server: str) -> None:
    who = AzureCredentials(**{**acr.fields, "client_secret": "wr0ng-secret-value"})
    registry = AzureContainerRegistry(login_server=acr.server.address, credentials=who)
    found = by_name(Workspace(name="team", registry=registry))
    assert "client secret is wrong" in found["Azure credentials"].found
    assert not found["registry"].ok
    assert found["push"].advice == "See pull" and "not asked" in found["pull"].found
    assert "wr0ng-secret-value" not in str(found)


def test_a_check_of_a_plain_registry_pushes_nothing_and_tells_a_wrong_password(
    basic_registry: Registry, prefect_server: str, azure: Azure
) -> None:
    """The password is a reference to the vault."""
    azure.vault.put("good", basic_registry.password)
    azure.vault.put("bad", "wrong-pass-word")
    for name, ok in (("good", True), ("bad", False)):
        reference = f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/{name})"
        registry = ContainerRegistry(address=basic_registry.address, username="ann", password=SecretStr(reference))
        found = by_name(Workspace(name="team", registry=registry, keyvault=vault(azure), repository_prefix="chk"))
        assert found["push"].ok is found["registry"].ok is ok
        assert "wrong-pass-word" not in str(found)
    assert "PUT" not in {line.split()[0] for line in basic_registry.requests() if "/chk/" in line}
    missing = SecretStr(f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/gone)")
    registry = ContainerRegistry(address=basic_registry.address, username="ann", password=missing)
    told = by_name(Workspace(name="team", registry=registry, keyvault=vault(azure)))["registry"].found
    assert told.startswith(f"password of the registry {basic_registry.address}: @Microsoft.KeyVault(SecretUri=")


def test_a_check_looks_at_base_image_feeds_and_work_pool(
    open_registry: Registry, prefect_server: str, tmp_path: Path
) -> None:
    Channel(tmp_path / "served" / "team").add(CondaPackage("app", subdir="linux-64"))
    name = unique("feed")
    with serve(tmp_path / "served", auth=("ann", "feed-pass-word")) as server:
        for password, ok in (("feed-pass-word", True), ("other-pass-word", False)):
            feed = PackageIndexCredentials(url=f"{server.url}/team", username="ann", password=SecretStr(password))
            feed.save(name, overwrite=True)
            workspace = Workspace(
                name="team",
                registry=ContainerRegistry(address=open_registry.address),
                feeds=[name],
                default_base_image=f"{open_registry.address}/no/such:image",
                work_pool="no-such-pool",
                index=PackageIndexCredentials(url="http://127.0.0.1:9/simple"),
            )
            found = by_name(workspace)
            assert found["private feeds"].ok is ok
            assert "pass-word" not in str(found)
    assert "no/such:image does not exist" in found["default base image"].found
    assert found["work pool"].state == "missing" and "no-such-pool" in found["work pool"].found
    assert not found["package index"].ok and found["package index"].required


def test_a_check_of_a_folder_needs_no_server(tmp_path: Path) -> None:
    found = by_name(Workspace.local(tmp_path / "not" / "there" / "yet"))
    assert found["registry"].ok and found["versions"].ok
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    assert "because of" in by_name(Workspace.local(tmp_path / "file" / "x"))["registry"].found
