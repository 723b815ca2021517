"""Key Vault through azure-keyvault-secrets itself, against a stand-in over https."""

import asyncio
import io
import logging
import re
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefect_environments.core.azure.keyvault import LONGEST_VALUE, KeyVault, VaultSettings, open_vault
from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.redact import MASK, redact
from prefect_environments.core.secrets import SecretReference
from tests.support.azure.parts import Azure
from tests.support.azure.server import Fault


def planted() -> str:
    return f"planted-{uuid.uuid4().hex}"


def reads(azure: Azure) -> int:
    """How often the vault was asked for a value by somebody with a token or without."""
    return sum(line.startswith("GET /secrets/") for line in azure.vault.log)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_value_remembers_its_reference_and_is_masked(azure: Azure) -> None:
    value = planted()
    azure.vault.put("pull", value)
    found = KeyVault(azure.settings()).get("pull")
    assert found == value
    assert str(found.reference) == f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/pull)"
    assert SecretReference.parse(str(found.reference)) == found.reference
    assert value not in repr(found) and redact(f"x {value}") == f"x {MASK}"


def test_a_version_stays_what_it_was_and_no_version_is_the_newest(azure: Azure) -> None:
    old, new = planted(), planted()
    version = azure.vault.put("pull", old)
    azure.vault.put("pull", new)
    vault = KeyVault(azure.settings())
    assert vault.get("pull") == new
    found = vault.get("pull", version)
    assert (found, found.reference.version) == (old, version)


def test_a_value_is_kept_for_a_while_and_a_rotated_one_is_seen_after_it(azure: Azure) -> None:
    clock, old, new = Clock(), planted(), planted()
    vault = KeyVault(azure.settings(cache_seconds=120), clock=clock)
    azure.vault.put("pull", old)
    assert vault.get("pull") == old
    asked = reads(azure)
    azure.vault.put("pull", new)
    clock.now = 119
    assert vault.get("pull") == old
    assert reads(azure) == asked
    clock.now = 121
    assert vault.get("pull") == new


def test_nothing_is_kept_without_a_cache_time(azure: Azure) -> None:
    vault, new = KeyVault(azure.settings(cache_seconds=0)), planted()
    azure.vault.put("pull", planted())
    vault.get("pull")
    azure.vault.put("pull", new)
    assert vault.get("pull") == new


def test_equal_settings_share_what_is_kept_and_other_identities_do_not(azure: Azure) -> None:
    azure.vault.put("pull", planted())
    open_vault(azure.settings()).get("pull")
    asked = reads(azure)
    open_vault(azure.settings()).get("pull")
    assert reads(azure) == asked
    stranger = azure.entra.register()
    other = azure.identity(client_id=stranger.client_id, client_secret=stranger.secret)
    with pytest.raises(SecretError, match="lacks the role"):
        open_vault(azure.settings(other)).get("pull")


def test_a_written_value_is_read_back_at_once(azure: Azure) -> None:
    azure.vault.grant(azure.app, "Key Vault Secrets Officer")
    vault, first, second = KeyVault(azure.settings()), planted(), planted()
    vault.set("pull", first)
    assert vault.get("pull") == first
    vault.set("PULL", second)
    assert redact(second) == MASK


def test_a_value_of_25_kb_goes_there_and_back_and_a_longer_one_is_not_sent(azure: Azure) -> None:
    azure.vault.grant(azure.app, "Key Vault Secrets Officer")
    vault, value = KeyVault(azure.settings()), "é" * (LONGEST_VALUE // 2)
    vault.set("big", value)
    assert KeyVault(azure.settings()).get("big") == value
    sent = len(azure.vault.log)
    for wrong in (value + "x", ""):
        with pytest.raises(SecretError, match=f"1 to {LONGEST_VALUE} bytes"):
            vault.set("big", wrong)
    assert len(azure.vault.log) == sent


def test_names_are_listed_page_by_page_without_a_value(azure: Azure) -> None:
    names = [f"secret-{number:02}" for number in range(60)]
    for name in names:
        azure.vault.put(name, planted())
    assert KeyVault(azure.settings()).names() == names
    assert reads(azure) == 0


def test_what_is_wrong_with_a_secret_is_told_apart(azure: Azure) -> None:
    vault = KeyVault(azure.settings())
    azure.vault.put("off", planted(), enabled=False)
    azure.vault.put("old", planted(), exp=int(time.time()) - 60)
    azure.vault.put("gone", planted())
    azure.vault.deleted["gone"] = azure.vault.secrets.pop("gone")
    azure.vault.put("there", planted())
    for name, version, says in (
        ("off", None, "it is disabled: enable it"),
        ("old", None, "expired on 20"),
        ("gone", None, "soft-deleted: recover it"),
        ("never", None, r"there is no such secret: check the name, or set it$"),
        ("there", "f" * 32, f"no version {'f' * 32} of it"),
    ):
        with pytest.raises(SecretError, match=says) as caught:
            vault.get(name, version)
        assert name in str(caught.value) and azure.vault.host in str(caught.value)


def test_a_soft_deleted_name_cannot_be_set(azure: Azure) -> None:
    azure.vault.grant(azure.app, "Key Vault Secrets Officer")
    azure.vault.put("gone", planted())
    azure.vault.deleted["gone"] = azure.vault.secrets.pop("gone")
    with pytest.raises(SecretError, match="soft-deleted secret: recover or purge"):
        KeyVault(azure.settings()).set("gone", planted())


@pytest.mark.parametrize(
    ("role", "action", "missing"),
    [
        ("Key Vault Reader", "get", "Key Vault Secrets User"),
        ("Key Vault Secrets User", "set", "Key Vault Secrets Officer"),
    ],
)
def test_a_missing_role_is_named_with_vault_and_caller(azure: Azure, role: str, action: str, missing: str) -> None:
    azure.vault.grant(azure.app, role)
    azure.vault.put("pull", planted())
    vault = KeyVault(azure.settings())
    with pytest.raises(SecretError, match=f"lacks the role '{missing}' on {re.escape(azure.vault.host)}") as caught:
        if action == "get":
            vault.get("pull")
        else:
            vault.set("pull", planted())
    said = str(caught.value)
    assert f"client id {azure.app.client_id}" in said and f"oid {azure.app.oid}" in said


def test_a_firewall_is_told_from_a_missing_role(azure: Azure) -> None:
    azure.vault.firewall = True
    with pytest.raises(SecretError, match="firewall shuts this machine out"):
        KeyVault(azure.settings()).get("pull")


def test_throttling_is_waited_out_as_the_vault_says_and_told_if_it_lasts(azure: Azure) -> None:
    value = planted()
    azure.vault.put("pull", value)
    azure.vault.throttle(times=1, retry_after=1)
    assert KeyVault(azure.settings()).get("pull") == value
    azure.vault.throttle(times=9, retry_after=0)
    with pytest.raises(SecretError, match="throttling, and kept doing so for 1 retries"):
        KeyVault(azure.settings()).get("pull")


def test_a_vault_that_is_down_and_one_that_fails_are_told_and_work_again_later(azure: Azure) -> None:
    value, vault = planted(), KeyVault(azure.settings(azure.identity(retries=0)))
    azure.vault.put("pull", value)
    azure.vault.go_down()
    with pytest.raises(SecretError, match=f"the Key Vault {re.escape(azure.vault.host)}: it could not be reached"):
        vault.get("pull")
    azure.vault.resume()
    azure.vault.faults.append(Fault(503, 1))
    with pytest.raises(SecretError, match=r"answered HTTP 503 \(InternalServerError\): try again"):
        vault.get("pull")
    assert vault.get("pull") == value


def test_entra_that_is_down_is_told_from_a_vault_that_is_down(azure: Azure) -> None:
    azure.entra.go_down()
    with pytest.raises(SecretError, match="got no token") as caught:
        KeyVault(azure.settings(azure.identity(retries=0))).get("pull")
    assert f"from {azure.entra.url}: it could not be reached" in str(caught.value)


def test_a_vault_of_another_tenant_says_which_one(azure: Azure) -> None:
    identity = azure.identity(tenant_id="99999999-0000-0000-0000-000000000000")
    with pytest.raises(SecretError, match=f"belongs to tenant {azure.entra.tenant}; set tenant_id") as caught:
        KeyVault(azure.settings(identity)).get("pull")
    assert "of tenant 99999999-0000" in str(caught.value)


def test_a_token_that_ended_early_is_renewed(azure: Azure) -> None:
    vault = KeyVault(azure.settings(cache_seconds=0))
    azure.vault.put("pull", planted())
    azure.entra.lifetime, azure.entra.announced = 1, 3600
    vault.get("pull")
    time.sleep(1.1)
    azure.entra.lifetime = 60
    assert vault.get("pull")


def test_revoked_credentials_end_the_reading(azure: Azure) -> None:
    vault = KeyVault(azure.settings(cache_seconds=0))
    azure.vault.put("pull", planted())
    vault.get("pull")
    azure.entra.revoke(azure.app)
    with pytest.raises(SecretError, match="application is disabled"):
        vault.get("pull")
    azure.app.enabled = True  # it gets tokens, but none of them counts
    with pytest.raises(SecretError, match=r"the token of .* was refused: it was revoked"):
        vault.get("pull")


def test_a_server_that_asks_for_tokens_of_others_gets_none(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(azure.vault), "resource", property(lambda _: "https://vault.example.com"))
    with pytest.raises(SecretError, match="does not match the requested domain"):
        KeyVault(azure.settings()).get("pull")
    assert azure.entra.issued == []


@pytest.mark.parametrize(
    "vault",
    [
        "",
        "ab",
        "http://team.example.com",
        "team.example.com",
        "https://u:hunter2@team.example.com",
        "https://v/secrets/x",
    ],
)
def test_what_is_no_vault_is_refused_without_being_shown(vault: str) -> None:
    with pytest.raises(DefinitionError, match="a vault is its name") as caught:
        VaultSettings(vault)
    assert "hunter2" not in str(caught.value)


def test_a_name_gets_the_suffix_of_its_cloud() -> None:
    assert VaultSettings("Team").host == "team.vault.azure.net"
    assert (VaultSettings("https://Team.example.com:8443/").host, VaultSettings("https://t.example.com").name) == (
        "team.example.com:8443",
        "t",
    )
    with pytest.raises(DefinitionError, match="cache_seconds is 0 to 600"):
        VaultSettings("team", cache_seconds=3600)


@pytest.mark.parametrize(("name", "version"), [("a b", None), ("", None), ("x/y", None), ("ok", "../x")])
def test_a_name_that_is_none_is_refused_before_the_network(azure: Azure, name: str, version: str | None) -> None:
    with pytest.raises(SecretError, match="letters"):
        KeyVault(azure.settings()).get(name, version)
    assert azure.vault.log == []


def test_many_threads_read_at_once(azure: Azure) -> None:
    value, vault = planted(), KeyVault(azure.settings(cache_seconds=0))
    azure.vault.put("pull", value)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: vault.get("pull"), range(40))) == {value}


async def test_reading_works_inside_a_running_loop(azure: Azure) -> None:
    azure.vault.put("pull", planted())
    vault = KeyVault(azure.settings())
    assert vault.get("pull") == await asyncio.to_thread(vault.get, "pull")


def test_no_value_secret_or_token_reaches_logs_or_errors(azure: Azure) -> None:
    """Every logger at its most talkative, without any filter of ours; then errors with all that hangs on them."""
    azure.vault.grant(azure.app, "Key Vault Secrets Officer")
    output, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(output), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        value, wrong = planted(), planted()
        vault = KeyVault(azure.settings(cache_seconds=0))
        vault.set("pull", value)
        vault.get("pull")
        failures = []
        azure.vault.put("off", value, enabled=False)
        for identity, name in ((azure.identity(), "off"), (azure.identity(client_secret=wrong), "pull")):
            with pytest.raises(SecretError) as caught:
                KeyVault(azure.settings(identity)).get(name)
            failures.append(caught.value)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    said = output.getvalue()
    assert "/secrets/pull" in said, "the SDK's own log lines are there to be searched"
    for failure in failures:
        assert failure.__context__ is None and failure.__cause__ is None
        said += "".join(traceback.format_exception(failure)) + repr(failure)
    said += repr(vault.settings) + str(vault.__dict__)
    for secret in (value, wrong, azure.app.secret, *azure.entra.issued):
        assert secret not in said
