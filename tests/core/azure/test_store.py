"""References to Key Vaults, in both forms, through the vaults that are known."""

import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from prefect_environments.core.azure.keyvault import VaultSettings
from prefect_environments.core.azure.store import KeyVaultSecretStore
from prefect_environments.core.errors import SecretError
from prefect_environments.core.secrets import SecretReference, SecretValue, resolve
from tests.support.azure.parts import Azure, running_azure, vault_names_resolve
from tests.support.session import Session


@pytest.fixture
def team(test_session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """A vault with a name, `team`, as those of a cloud have."""
    vault_names_resolve(monkeypatch)
    with running_azure(test_session, "team") as running:
        running.vault.put("pull", f"planted-{uuid.uuid4().hex}")
        yield running


def value(azure: Azure) -> str:
    (bundle,) = azure.vault.secrets["pull"].values()
    return str(bundle["value"])


def by_name(vault: str = "team") -> str:
    return f"@Microsoft.KeyVault(VaultName={vault};SecretName=pull)"


async def test_both_forms_are_resolved_to_values_that_remember_them(team: Azure) -> None:
    store = KeyVaultSecretStore([team.settings()])
    (version,) = team.vault.secrets["pull"]
    for text in (
        by_name(),
        by_name("TEAM"),
        f"@Microsoft.KeyVault(SecretUri={team.vault.vault_url}/secrets/pull)",
        f"@Microsoft.KeyVault(SecretUri={team.vault.vault_url}/secrets/pull/{version})",
        f"@Microsoft.KeyVault(VaultName=team;SecretName=pull;SecretVersion={version})",
    ):
        found = await resolve(text, store)
        assert found == value(team)
        assert isinstance(found, SecretValue) and found.reference == SecretReference.parse(text)


async def test_a_vault_given_by_its_name_is_found_by_its_address(team: Azure) -> None:
    store = KeyVaultSecretStore([replace(team.settings(), vault="team")])
    assert await resolve(f"@Microsoft.KeyVault(SecretUri={team.vault.vault_url}/secrets/pull)", store) == value(team)


async def test_a_vault_that_is_not_known_is_refused_and_not_asked(team: Azure) -> None:
    store = KeyVaultSecretStore([VaultSettings("ours", team.identity())])
    for text in (by_name(), f"@Microsoft.KeyVault(SecretUri={team.vault.vault_url}/secrets/pull)"):
        with pytest.raises(SecretError, match=r"team.* is not one of .*ours.*known_vaults.*allow_unknown_vaults"):
            await resolve(text, store)
    assert team.vault.log == []


async def test_an_unknown_vault_of_the_same_cloud_is_asked_where_that_is_allowed(team: Azure) -> None:
    store = KeyVaultSecretStore([VaultSettings("ours", team.identity())], allow_unknown=True)
    for text in (by_name(), f"@Microsoft.KeyVault(SecretUri={team.vault.vault_url}/secrets/pull)"):
        assert await resolve(text, store) == value(team)


async def test_a_server_that_is_no_vault_of_the_cloud_is_never_asked(team: Azure) -> None:
    store = KeyVaultSecretStore([VaultSettings("ours", team.identity())], allow_unknown=True)
    for host in (team.vault.address, "team.example.com", f"x{team.vault.suffix}"):
        with pytest.raises(SecretError, match="no Key Vault of this cloud"):
            await resolve(f"@Microsoft.KeyVault(SecretUri=https://{host}/secrets/pull)", store)
    assert team.vault.log == []


async def test_without_a_vault_the_field_to_set_is_named() -> None:
    with pytest.raises(SecretError, match="workspace's field keyvault"):
        await KeyVaultSecretStore([]).get(SecretReference.parse(by_name()))
    with pytest.raises(SecretError, match="Prefect Secret block"):
        await KeyVaultSecretStore([]).get(SecretReference.parse("secret:pull"))
