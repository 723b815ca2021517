"""The blocks of Azure: Prefect's rules, a real Prefect server, and the stand-ins of Entra ID and Key Vault."""

import asyncio
import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from cryptography.fernet import Fernet
from fastapi.encoders import jsonable_encoder
from prefect import flow
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr

from prefect_environments.blocks import AzureCredentials, ContainerRegistry, Keyvault, KeyvaultSecret
from prefect_environments.blocks.secrets import WorkspaceSecretStore
from prefect_environments.core.azure.clouds import CLOUDS
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.redact import MASK, redact
from prefect_environments.core.secrets import SecretReference, SecretValue, resolve
from tests.support.azure.parts import Azure, running_azure
from tests.support.leaks import find_secret
from tests.support.session import Session

BLOCKS = [AzureCredentials, Keyvault, KeyvaultSecret]
CLIENT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def azure(test_session: Session) -> Iterator[Azure]:
    """A tenant and a vault of the test's own."""
    with running_azure(test_session) as running:
        yield running


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def keyvault(azure: Azure, **fields: Any) -> Keyvault:
    return Keyvault(vault=azure.vault.vault_url, credentials=AzureCredentials(**azure.fields), **fields)


def principal(secret: str) -> AzureCredentials:
    return AzureCredentials(
        kind="service-principal", tenant_id="contoso.example.com", client_id=CLIENT, client_secret=SecretStr(secret)
    )


@pytest.mark.parametrize("block", BLOCKS)
class TestStandard(BlockStandardTestSuite):
    """Prefect's checks of descriptions, examples and addresses."""

    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> Any:
        return request.param


@pytest.mark.parametrize("block", BLOCKS)
def test_no_field_is_a_list_or_a_union_of_blocks(block: type[Block]) -> None:
    for name, reference in block.model_json_schema()["block_schema_references"].items():
        assert isinstance(reference, dict), f"{name} may hold blocks of several types"


def test_a_script_of_sdk_v1_sets_lists_and_reads_secrets_by_keyword(azure: Azure) -> None:
    azure.vault.grant(azure.app, "Key Vault Secrets Officer")
    vault, value = keyvault(azure), unique("planted")
    vault.set_secret(name="registry-password", value=value)
    found = vault.get_secret(name="registry-password")
    assert found == value and isinstance(found, SecretValue)
    assert vault.list_secrets() == ["registry-password"]
    assert redact(value) == MASK


async def test_secrets_are_read_in_a_running_loop_and_in_a_sync_flow(prefect_server: str, azure: Azure) -> None:
    azure.vault.put("pull", unique("planted"))
    vault = keyvault(azure, cache_seconds=0)

    @flow(persist_result=False)
    def read() -> int:
        return len(vault.get_secret("pull"))

    assert len(vault.get_secret("pull")) == await asyncio.to_thread(read)


def test_an_environment_keeps_the_reference_of_a_secret_and_not_its_value(azure: Azure) -> None:
    value = unique("planted")
    azure.vault.put("feed", value)
    env = Environment("train")
    env.docker.base_image = "registry.example.com/base:1"
    env.environment_variables["FEED_TOKEN"] = keyvault(azure).get_secret("feed")
    definition = env.definition()
    reference = f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/feed)"
    assert definition.environment_variables["FEED_TOKEN"] == reference
    assert value not in definition.model_dump_json()


def test_a_reference_block_reads_its_version_or_the_newest(azure: Azure) -> None:
    old = azure.vault.put("pull", first := unique("planted"))
    azure.vault.put("pull", second := unique("planted"))
    vault = keyvault(azure)
    assert KeyvaultSecret(keyvault=vault, name="pull").get() == second
    pinned = KeyvaultSecret(keyvault=vault, name="pull", version=old)
    assert pinned.get() == first
    assert SecretReference.parse(pinned.reference).version == old
    with pytest.raises(SecretError, match="letters, digits"):
        KeyvaultSecret(keyvault=vault, name="not a name")


async def test_every_field_survives_saving_and_loading_and_only_one_document_has_the_secret(
    prefect_server: str, test_session: Session
) -> None:
    secret, names = unique("app-secret"), [unique("credentials"), unique("vault"), unique("reference")]
    credentials = principal(secret)
    vault = Keyvault(vault="team", credentials=credentials, cache_seconds=60)
    with pytest.raises(SecretError, match=r'credentials of this Azure Key Vault holds a secret.*\.save\("my-azure'):
        await vault.asave(names[1])
    await credentials.asave(names[0])
    await vault.asave(names[1])
    await KeyvaultSecret(keyvault=vault, name="pull", version="0a").asave(names[2])

    loaded: KeyvaultSecret = await KeyvaultSecret.aload(names[2])
    assert (loaded.name, loaded.version) == ("pull", "0a")
    assert loaded.keyvault.settings() == vault.settings()
    assert loaded.keyvault.settings().identity.client_secret == secret
    folder = test_session.folder / "prefect-server"
    assert find_secret(secret, folder) == []
    with closing(sqlite3.connect(folder / "prefect.db")) as database:
        (key,) = database.execute("SELECT value FROM configuration WHERE key = 'ENCRYPTION_KEY'").fetchone()
        rows = database.execute("SELECT name, data FROM block_document").fetchall()
    fernet = Fernet(json.loads(key)["fernet_key"])
    assert [name for name, data in rows if secret in fernet.decrypt(json.loads(data)).decode()] == [names[0]]


async def test_a_flow_run_with_unsaved_credentials_stores_no_secret(prefect_server: str) -> None:
    secret = unique("app-secret")

    @flow(persist_result=False)
    async def take(keyvault: Keyvault) -> str:
        return str(flow_run.id)

    run_id = await take(Keyvault(vault="team", credentials=principal(secret)))
    async with get_client() as client:
        stored = (await client.read_flow_run(run_id)).parameters  # type: ignore[arg-type]
    assert secret not in json.dumps(stored)
    assert stored["keyvault"]["credentials"]["client_id"] == CLIENT


def test_nothing_that_shows_a_block_shows_its_secrets() -> None:
    secret = unique("app-secret")
    vault = Keyvault(vault="team", credentials=principal(secret))
    shown = f"{vault!r} {vault} {jsonable_encoder(vault)} {vault.settings()!r} {vault.settings().identity}"
    assert secret not in shown and CLIENT in shown


def test_clouds_are_chosen_by_name_and_each_endpoint_can_be_replaced() -> None:
    assert AzureCredentials(cloud="china").endpoints() == CLOUDS["china"]
    own = AzureCredentials(
        cloud="us-government", authority_host="https://login.example.com", key_vault_suffix="vault.example.com"
    )
    expected = replace(
        CLOUDS["us-government"], authority_host="https://login.example.com", key_vault_suffix="vault.example.com"
    )
    assert own.endpoints() == expected
    assert Keyvault(vault="team", credentials=own).settings().host == "team.vault.example.com"
    assert Keyvault(vault="team").settings().host == f"team.{CLOUDS['public'].key_vault_suffix}"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "service-principal", "client_secret": "hunter2-x"}, "needs tenant_id, client_id"),
        ({"kind": "managed-identity", "client_secret": "hunter2-x"}, "belongs to the kind service-principal"),
        ({"authority_host": "login.example.com"}, "authority_host is an https URL"),
    ],
)
def test_credentials_that_do_not_fit_are_refused_without_their_secret(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=says) as caught:
        AzureCredentials(**fields)
    assert "hunter2-x" not in str(caught.value)


class StorageCredentials(Block):
    """Of the shape that prefect-azure's credentials for storage accounts have."""

    connection_string: SecretStr | None = None
    account_url: str | None = None
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: SecretStr | None = None


class MlCredentials(Block):
    """Of the shape that prefect-azure's credentials for Azure ML have."""

    tenant_id: str
    service_principal_id: str
    service_principal_password: SecretStr


def test_credentials_of_prefect_azure_are_taken_over(azure: Azure) -> None:
    secret = SecretStr(azure.app.secret)
    tenant = azure.entra.tenant
    more = {
        name: azure.fields[name] for name in ("authority_host", "key_vault_suffix", "instance_discovery", "ca_file")
    }
    for block in (
        StorageCredentials(
            account_url="https://x.example.com", client_id=CLIENT, client_secret=secret, tenant_id=tenant
        ),
        MlCredentials(service_principal_id=CLIENT, service_principal_password=secret, tenant_id=tenant),
    ):
        taken = AzureCredentials.from_block(block, cloud="china")
        assert (taken.kind, taken.client_id, taken.cloud) == ("service-principal", CLIENT, "china")
    azure.vault.put("pull", value := unique("planted"))
    block = StorageCredentials(client_id=azure.app.client_id, client_secret=secret, tenant_id=tenant)
    vault = Keyvault(vault=azure.vault.vault_url, credentials=AzureCredentials.from_block(block, **more))
    assert vault.get_secret("pull") == value
    assert AzureCredentials.from_block(StorageCredentials(account_url="https://x.example.com")).kind == "default-chain"


def test_credentials_that_only_open_something_else_are_refused() -> None:
    for block in (
        StorageCredentials(connection_string=SecretStr("AccountKey=hunter2-x")),
        StorageCredentials(client_id=CLIENT, client_secret=SecretStr("hunter2-x")),
        ContainerRegistry(address="registry.example.com"),
    ):
        with pytest.raises(DefinitionError, match="carries no service principal") as caught:
            AzureCredentials.from_block(block)
        assert "hunter2-x" not in str(caught.value)


async def test_a_workspaces_store_reads_secret_blocks_and_its_own_vaults(prefect_server: str, azure: Azure) -> None:
    name, value = unique("block"), unique("planted")
    await Secret(value=SecretStr("from-the-block")).asave(name)
    azure.vault.put("pull", value)
    store = WorkspaceSecretStore(keyvault(azure).known_vaults(["https://other.example.com"]))
    assert await resolve(f"secret:{name}", store) == "from-the-block"
    assert await resolve(f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/pull)", store) == value
    with pytest.raises(SecretError, match=r"third\.example\.com is not one of .*other\.example\.com"):
        await resolve("@Microsoft.KeyVault(SecretUri=https://third.example.com/secrets/pull)", store)
