"""What a workspace lends to its registry and vault, and which vault a registry's own references are read from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from pydantic import SecretStr

from prefect_environments.blocks import (
    AzureContainerRegistry,
    AzureCredentials,
    ContainerRegistry,
    Keyvault,
    Workspace,
)
from prefect_environments.core.azure.credentials import Identity
from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.stores import open_registry
from prefect_environments.tasks import push_image
from tests.support.azure.acr_parts import Acr, put_image, running_acr
from tests.support.registry import Registry
from tests.support.session import Session

MANAGED: dict[str, Any] = {"kind": "managed-identity", "client_id": "11111111-2222-3333-4444-555555555555"}


@pytest.fixture
def acr(test_session: Session, tmp_path: Path) -> Iterator[Acr]:
    """A registry of the test's own, in which the application may do everything, and its vault."""
    with running_acr(test_session, tmp_path / "acr") as running:
        running.server.grant(running.azure.app, "Owner")
        yield running


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:12]}"


def reference(acr: Acr, name: str) -> SecretStr:
    return SecretStr(f"@Microsoft.KeyVault(SecretUri={acr.azure.vault.vault_url}/secrets/{name})")


def lending(acr: Acr, **fields: Any) -> Workspace:
    """A workspace whose registry and vault name no credentials of their own."""
    registry = AzureContainerRegistry(login_server=acr.server.address)
    keyvault = Keyvault(vault=acr.azure.vault.vault_url)
    who = AzureCredentials(**acr.fields)
    return Workspace(name="team", **{"registry": registry, "keyvault": keyvault, "credentials": who, **fields})


def identities(workspace: Workspace) -> list[Identity | None]:
    azure = workspace.registry_settings.azure
    return [azure.identity if azure else None, *(vault.identity for vault in workspace.vaults)]


def test_credentials_of_the_workspace_sign_in_to_registry_and_vault(acr: Acr) -> None:
    """Its methods, those of its registry and its vault, and builds: all are the same identity."""
    acr.azure.vault.put("pull", "value-of-pull")
    workspace = lending(acr)
    assert identities(workspace) == [acr.azure.identity(retries=3)] * 2
    assert workspace.get_default_keyvault().get_secret("pull") == "value-of-pull"
    assert workspace.keyvault is not None and workspace.keyvault.get_secret("pull") == "value-of-pull"
    assert isinstance(workspace.registry, AzureContainerRegistry)
    assert workspace.registry.list_repositories() == []


def test_blocks_that_name_their_own_keep_them_and_a_plain_registry_gets_none() -> None:
    own, other = AzureCredentials(**MANAGED), AzureCredentials(kind="default-chain")
    workspace = Workspace(
        name="team",
        registry=AzureContainerRegistry(login_server="team.example.com", credentials=own),
        keyvault=Keyvault(vault="team", credentials=own),
        credentials=other,
    )
    assert identities(workspace) == [own.identity()] * 2
    plain = Workspace(name="team", registry=ContainerRegistry(address="registry.example.com"), credentials=other)
    assert plain.registry_settings.azure is None and plain.vaults == []


def test_one_registry_in_two_workspaces_signs_in_for_each_as_that_one_says() -> None:
    registry, vault = AzureContainerRegistry(login_server="team.example.com"), Keyvault(vault="team")
    managed, chain = AzureCredentials(**MANAGED), AzureCredentials()
    first = Workspace(name="a", registry=registry, keyvault=vault, credentials=managed)
    second = Workspace(name="b", registry=registry, keyvault=vault, credentials=chain)
    assert identities(first) == [managed.identity()] * 2
    assert identities(second) == [chain.identity()] * 2
    first.credentials = chain
    assert identities(first) == [chain.identity()] * 2, "a changed field counts at once"


def test_tasks_are_built_by_the_workspaces_credentials_where_a_user_pushes() -> None:
    registry = AzureContainerRegistry(
        login_server="teamregistry.example.com",
        username="ci",
        password=SecretStr("token-pass-word"),
        subscription_id="00000000-0000-0000-0000-000000000000",
        resource_group="group",
    )
    with pytest.raises(DefinitionError, match="with credentials"):
        Workspace(name="team", registry=registry, builder="acr-tasks")
    lent = AzureCredentials(**MANAGED)
    workspace = Workspace(name="team", registry=registry, builder="acr-tasks", credentials=lent)
    assert workspace.acr_tasks is not None and workspace.acr_tasks.identity == lent.identity()
    assert workspace.registry_settings.username == "ci"


async def test_they_are_stored_as_a_reference_and_follow_rotation(acr: Acr, prefect_server: str) -> None:
    """Nothing of them is in the documents of the workspace, the registry or the vault."""
    workspace, names = lending(acr), {field: unique(field) for field in ("credentials", "registry", "keyvault", "ws")}
    with pytest.raises(SecretError, match="credentials of this Environments Workspace holds a secret and is not saved"):
        await workspace.asave(names["ws"])
    for field in ("credentials", "registry", "keyvault"):
        await getattr(workspace, field).asave(names[field])
    await workspace.asave(names["ws"])
    loaded: Workspace = await Workspace.aload(names["ws"])
    assert identities(loaded) == identities(workspace)
    where = loaded.registry_settings.azure
    assert where is not None and f"credentials '{names['credentials']}' of the workspace" in where.where
    async with get_client() as client:
        for name, slug in (("ws", "environments-workspace"), ("registry", "azure-container-registry")):
            document = await client.read_block_document_by_name(names[name], slug, include_secrets=True)
            if name == "ws":
                assert set(document.block_document_references) == {"registry", "keyvault", "credentials"}
                document.data["credentials"] = None
            assert acr.azure.app.secret not in json.dumps(document.data)
    workspace.credentials = AzureCredentials(**{**acr.fields, "client_secret": "another-pass-word"})
    await workspace.credentials.asave(names["credentials"], overwrite=True)
    again: Workspace = await Workspace.aload(names["ws"])
    assert {found.client_secret for found in identities(again) if found} == {"another-pass-word"}


async def test_a_registrys_methods_read_its_password_from_its_own_vault(acr: Acr, prefect_server: str) -> None:
    """Also after it was stored, alone and in a workspace that knows no vault; without one the error names the field."""
    acr.server.add_admin("team", "admin-pass-word-1")
    acr.azure.vault.put("registry", "admin-pass-word-1")
    who, name, word = AzureCredentials(**acr.fields), unique("acr"), reference(acr, "registry")
    alone = AzureContainerRegistry(login_server=acr.server.address, username="team", password=word)
    with pytest.raises(SecretError, match=r"password of the registry .*no Key Vault is known.*registry's block"):
        alone.list_repositories()
    await who.asave(unique("who"))
    vault = Keyvault(vault=acr.azure.vault.vault_url, credentials=who)
    await vault.asave(unique("vault"))
    own = AzureContainerRegistry(login_server=acr.server.address, username="team", password=word, keyvault=vault)
    await own.asave(name)
    loaded: AzureContainerRegistry = await AzureContainerRegistry.aload(name)
    async with open_registry(await loaded.resolved_settings()) as client:
        await put_image(client.repository("team/image"), "v1")
    assert loaded.list_repositories() == ["team/image"]
    loaded.lock("team/image", "v1")
    loaded.unlock("team/image", "v1")
    workspace = Workspace(name="team", registry=loaded)
    resolved = await workspace.registry_settings.resolved(workspace.secrets)
    assert resolved.password == "admin-pass-word-1"
    loaded.delete_image("team/image", "v1")


def test_a_workspaces_registry_reads_its_password_from_the_workspaces_vaults_only(acr: Acr) -> None:
    acr.server.add_admin("team", "admin-pass-word-1")
    acr.azure.vault.put("registry", "admin-pass-word-1")
    registry = AzureContainerRegistry(
        login_server=acr.server.address, username="team", password=reference(acr, "registry")
    )
    workspace = lending(acr, registry=registry)
    assert isinstance(workspace.registry, AzureContainerRegistry)
    assert workspace.registry.list_repositories() == []
    foreign = SecretStr("@Microsoft.KeyVault(SecretUri=https://other.example.com/secrets/x)")
    refused = lending(acr, registry=registry.model_copy(update={"password": foreign})).registry
    assert isinstance(refused, AzureContainerRegistry)
    with pytest.raises(SecretError, match=r"other\.example\.com is not one of the workspace's"):
        refused.list_repositories()


async def test_push_image_resolves_references_of_both_registries(
    acr: Acr, basic_registry: Registry, prefect_server: str
) -> None:
    """By their own vaults, or by those and the credentials of a workspace."""
    acr.azure.vault.put("plain", basic_registry.password)
    name = unique("user")
    await Secret(value=SecretStr(basic_registry.username)).asave(name)
    async with acr.client() as client:
        digest = (await put_image(client.repository("team/image"), "v1")).digest
    fields: dict[str, Any] = {
        "address": basic_registry.address,
        "username": f"secret:{name}",
        "password": reference(acr, "plain"),
    }
    vault = Keyvault(vault=acr.azure.vault.vault_url, credentials=AzureCredentials(**acr.fields))
    source = AzureContainerRegistry(login_server=acr.server.address)
    path, goal = unique("copies"), ContainerRegistry(**fields)
    with pytest.raises(SecretError, match="no Key Vault is known"):
        push_image.fn("team/image:v1", goal, path, source)
    pushed = push_image.fn("team/image:v1", goal, path, source, workspace=lending(acr))
    assert pushed == f"{basic_registry.address}/{path}@{digest}"
    alone = AzureContainerRegistry(login_server=acr.server.address, credentials=vault.credentials)
    other = unique("copies")
    pushed = push_image.fn("team/image:v1", ContainerRegistry(**fields, keyvault=vault), other, alone)
    assert pushed == f"{basic_registry.address}/{other}@{digest}"


def test_texts_that_the_form_left_empty_count_as_left_out() -> None:
    """A field that was filled and emptied again in the UI is stored as an empty text."""
    azure = AzureContainerRegistry(
        login_server="team.example.com",
        credentials=AzureCredentials(**MANAGED, client_secret=SecretStr(""), authority_host=" "),
        username="",
        password=SecretStr(""),
        ca_file="",
    )
    assert (azure.username, azure.password, azure.ca_file) == (None, None, None)
    assert azure.credentials is not None and azure.credentials.client_secret is None
    plain = ContainerRegistry(address="registry.example.com", username=" ", password=None, ca_file="")
    assert (plain.username, plain.ca_file) == (None, None)


def test_an_error_of_a_vault_names_its_blocks(acr: Acr, prefect_server: str) -> None:
    who, vault = AzureCredentials(**acr.fields), unique("vault")
    who.save(name := unique("who"))
    Keyvault(vault=acr.azure.vault.vault_url, credentials=who).save(vault)
    acr.azure.vault.grant(acr.azure.app, "Key Vault Reader")
    found: Any = Keyvault.load(vault)
    with pytest.raises(SecretError, match="lacks the role 'Key Vault Secrets User'") as caught:
        found.get_secret("pull")
    assert f"(Keyvault block '{vault}', credentials '{name}')" in str(caught.value)
