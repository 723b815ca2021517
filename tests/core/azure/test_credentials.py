"""Identities against a stand-in of Entra ID, through azure-identity itself."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError
from cryptography.hazmat.primitives import serialization

from prefect_environments.core.azure.clouds import CLOUDS
from prefect_environments.core.azure.credentials import Identity, forget_credentials, token_credential
from prefect_environments.core.azure.failures import sign_in_failure
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.redact import MASK, redact
from tests.support.azure.certificates import client_certificate
from tests.support.azure.entra import App
from tests.support.azure.managed_identity import ManagedIdentity
from tests.support.azure.parts import Azure


def claims(azure: Azure, identity: Identity) -> Any:
    """What the token of an identity for the vault says, as the vault reads it."""
    token = token_credential(identity).get_token(f"{azure.vault.resource}/.default")
    return azure.entra.claims(token.token, azure.vault.resource)


def test_a_service_principal_signs_in_with_its_secret(azure: Azure) -> None:
    assert claims(azure, azure.identity())["appid"] == azure.app.client_id


@pytest.mark.parametrize("password", [None, "key-password-1"])
def test_a_service_principal_signs_in_with_a_certificate_as_text_and_from_a_file(
    azure: Azure, tmp_path: Path, password: str | None
) -> None:
    pem, azure.app.certificate = client_certificate()
    if password:
        key = serialization.load_pem_private_key(pem, None)
        locked = serialization.BestAvailableEncryption(password.encode())
        format_ = serialization.PrivateFormat.PKCS8
        pem = pem[: pem.index(b"-----BEGIN PRIVATE")] + key.private_bytes(serialization.Encoding.PEM, format_, locked)
    file = tmp_path / "principal.pem"
    file.write_bytes(pem)
    for proof in ({"certificate": pem.decode()}, {"certificate_path": str(file)}):
        identity = azure.identity(client_secret=None, certificate_password=password, **proof)
        assert claims(azure, identity)["appid"] == azure.app.client_id


def test_a_certificate_that_was_not_registered_is_refused_in_words(azure: Azure) -> None:
    azure.app.certificate = client_certificate()[1]
    identity = azure.identity(client_secret=None, certificate=client_certificate()[0].decode())
    with pytest.raises(ClientAuthenticationError) as caught:
        claims(azure, identity)
    assert "certificate is not registered" in sign_in_failure(caught.value, identity)


def test_a_workload_signs_in_with_the_token_of_its_service_account(azure: Azure, tmp_path: Path) -> None:
    azure.app.federated_subject = "system:serviceaccount:ml:trainer"
    file = tmp_path / "token"
    file.write_text(azure.entra.service_account_token(azure.app))
    identity = azure.identity(kind="workload-identity", client_secret=None, token_file=str(file))
    assert claims(azure, identity)["appid"] == azure.app.client_id
    azure.app.federated_subject = "system:serviceaccount:ml:other"
    forget_credentials()
    with pytest.raises(ClientAuthenticationError) as caught:
        claims(azure, identity)
    assert "no federated credential" in sign_in_failure(caught.value, identity)


def test_a_workload_finds_what_the_webhook_set(azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DefinitionError, match=r"azure\.workload\.identity/use"):
        token_credential(azure.bare(kind="workload-identity"))
    azure.app.federated_subject = "system:serviceaccount:ml:trainer"
    (tmp_path / "token").write_text(azure.entra.service_account_token(azure.app))
    monkeypatch.setenv("AZURE_TENANT_ID", azure.entra.tenant)
    monkeypatch.setenv("AZURE_CLIENT_ID", azure.app.client_id)
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "token"))
    assert claims(azure, azure.bare(kind="workload-identity"))["appid"] == azure.app.client_id


@pytest.mark.parametrize("where", ["virtual_machine", "app_service"])
def test_a_managed_identity_is_the_machines_own_or_one_chosen_by_client_id(
    azure: Azure, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    own = azure.entra.register()
    with ManagedIdentity(azure.entra, system=own, assigned=[azure.app]) as machine:
        for name, value in getattr(machine, where).items():
            monkeypatch.setenv(name, value)
        forget_credentials()
        assert claims(azure, azure.bare(kind="managed-identity"))["appid"] == own.client_id
        chosen = azure.bare(kind="managed-identity", client_id=azure.app.client_id)
        assert claims(azure, chosen)["appid"] == azure.app.client_id
        stranger = azure.bare(kind="managed-identity", client_id=App().client_id, retries=0)
        with pytest.raises(ClientAuthenticationError) as caught:
            claims(azure, stranger)
    assert f"client id {stranger.client_id}" in sign_in_failure(caught.value, stranger)


def test_the_default_chain_takes_the_first_identity_that_works(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TENANT_ID", azure.entra.tenant)
    monkeypatch.setenv("AZURE_CLIENT_ID", azure.app.client_id)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", azure.app.secret)
    assert claims(azure, azure.bare(kind="default-chain"))["appid"] == azure.app.client_id


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"client_secret": "not-the-secret-77"}, r"secret is wrong.*AADSTS7000215"),
        ({"client_id": "11111111-2222-3333-4444-555555555555"}, "no application with this client id"),
    ],
)
def test_a_refused_sign_in_says_why_and_shows_no_secret(azure: Azure, change: dict[str, str], says: str) -> None:
    identity = azure.identity(**change)
    with pytest.raises(ClientAuthenticationError) as caught:
        claims(azure, identity)
    said = sign_in_failure(caught.value, identity)
    assert str(identity.client_id) in said
    assert re.search(says, said)
    assert "not-the-secret-77" not in said and azure.app.secret not in said


def test_an_expired_secret_and_a_disabled_application_are_told_apart(azure: Azure) -> None:
    identity = azure.identity()
    for change, says in (("expired", "secret has expired"), ("disabled", "application is disabled")):
        azure.app.expired, azure.app.enabled = change == "expired", change != "disabled"
        with pytest.raises(ClientAuthenticationError) as caught:
            claims(azure, identity)
        assert says in sign_in_failure(caught.value, identity)


def test_a_token_is_masked_as_soon_as_it_exists(azure: Azure) -> None:
    token = token_credential(azure.identity()).get_token(f"{azure.vault.resource}/.default").token
    assert redact(f"Bearer {token}") == f"Bearer {MASK}"
    assert redact(azure.app.secret) == MASK


def test_tokens_are_kept_while_they_live_and_renewed_when_they_end(azure: Azure) -> None:
    identity, asked = azure.identity(), f"POST /{azure.entra.tenant}/oauth2/v2.0/token"
    claims(azure, identity)
    claims(azure, azure.identity())
    assert azure.entra.log.count(asked) == 1
    azure.entra.lifetime = 1
    forget_credentials()
    claims(azure, identity)
    time.sleep(1.1)
    assert claims(azure, identity) is not None
    assert azure.entra.log.count(asked) == 3


def test_a_replaced_certificate_file_is_read_after_forgetting(azure: Azure, tmp_path: Path) -> None:
    file = tmp_path / "principal.pem"
    for _ in range(2):
        pem, azure.app.certificate = client_certificate()
        file.write_bytes(pem)
        forget_credentials()
        assert claims(azure, azure.identity(client_secret=None, certificate_path=str(file)))


def test_the_authoritys_certificate_must_be_trusted(azure: Azure) -> None:
    with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
        claims(azure, azure.identity(ca_file=None, retries=0))
    with pytest.raises(DefinitionError, match=r"ca_file .*gone\.pem"):
        claims(azure, azure.identity(ca_file="gone.pem"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "service-principal", "tenant_id": "t", "client_id": "c"}, "none of these three"),
        ({"kind": "service-principal", "client_id": "c", "client_secret": "hunter2-x"}, "needs tenant_id"),
        (
            {
                "kind": "service-principal",
                "tenant_id": "t",
                "client_id": "c",
                "client_secret": "hunter2-x",
                "certificate": "hunter2-x",
            },
            "client_secret, certificate",
        ),
        ({"client_secret": "hunter2-x"}, "belongs to the kind service-principal"),
        ({"certificate_password": "hunter2-x"}, "belongs to the kind service-principal"),
        ({"token_file": "/x"}, "workload-identity"),
        ({"tenant_id": "a/b"}, "tenant_id is an id"),
        ({"client_secret": "secret:hunter2-x"}, "take no secret references"),
    ],
)
def test_fields_that_do_not_fit_are_refused_without_their_secrets(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=says) as caught:
        Identity(**fields)
    assert "hunter2-x" not in str(caught.value)


@pytest.mark.parametrize("broken", ["-----BEGIN hunter2-x", ""])
def test_a_broken_certificate_is_refused_without_being_shown(azure: Azure, broken: str) -> None:
    with pytest.raises(DefinitionError, match=r"certificate cannot be used") as caught:
        token_credential(azure.identity(client_secret=None, certificate=broken))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(DefinitionError, match=r"nowhere\.pem cannot be read"):
        token_credential(azure.identity(client_secret=None, certificate_path="nowhere.pem"))


def test_an_identity_names_itself_without_its_secret(azure: Azure) -> None:
    shown = f"{azure.identity()} {azure.identity()!r}"
    assert azure.app.client_id in shown and azure.entra.tenant in shown
    assert azure.app.secret not in shown


def test_each_cloud_has_endpoints_of_its_own() -> None:
    for name in ("authority_host", "key_vault_suffix", "registry_suffix", "resource_manager"):
        assert len({getattr(cloud, name) for cloud in CLOUDS.values()}) == len(CLOUDS)


def test_azures_sdk_is_loaded_when_it_is_used() -> None:
    code = "import sys, prefect_environments.core.azure.store; print([m for m in sys.modules if m.startswith('azure')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
