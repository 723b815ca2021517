"""Secret references, values that stay masked, and the guess at what is a secret."""

import copy
import logging
import pickle
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.redact import MASK
from prefect_environments.core.registry_settings import RegistrySettings, check_address
from prefect_environments.core.secrets import (
    RedactingFilter,
    SecretReference,
    SecretValue,
    check_variables,
    looks_secret,
    resolve,
)

VERSION = "0123456789abcdef0123456789abcdef"


class Drawer:
    """A store over a dictionary."""

    def __init__(self, **values: str) -> None:
        self.values = values

    async def get(self, reference: SecretReference) -> str:
        if reference.name not in self.values:
            raise SecretError(f"{reference}: no such secret")
        return self.values[reference.name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("secret:db-password", SecretReference("block", "db-password")),
        (
            "@Microsoft.KeyVault(SecretUri=https://team.vault.example.com/secrets/Token)",
            SecretReference("secret-uri", "Token", "team.vault.example.com"),
        ),
        (
            f"@Microsoft.KeyVault(SecretUri=https://team.vault.example.com:8443/secrets/Token/{VERSION})",
            SecretReference("secret-uri", "Token", "team.vault.example.com:8443", VERSION),
        ),
        ("@Microsoft.KeyVault(VaultName=team;SecretName=Token)", SecretReference("vault-name", "Token", "team")),
        (
            f"@Microsoft.KeyVault(VaultName=team;SecretName=Token;SecretVersion={VERSION})",
            SecretReference("vault-name", "Token", "team", VERSION),
        ),
    ],
)
def test_a_canonical_reference_is_read_and_written_back_unchanged(text: str, expected: SecretReference) -> None:
    assert SecretReference.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "@microsoft.keyvault( SecretUri = https://T.example.com/secrets/n/ )",
        "@Microsoft.KeyVault(secreturi=https://t.example.com/secrets/n)",
    ],
)
def test_other_spellings_get_the_canonical_text(text: str) -> None:
    assert str(SecretReference.parse(text)) == "@Microsoft.KeyVault(SecretUri=https://t.example.com/secrets/n)"


def test_fields_may_come_in_any_order_and_an_empty_version_is_the_newest() -> None:
    text = "@Microsoft.KeyVault(SecretVersion=;SecretName=Token;VaultName=team)"
    assert SecretReference.parse(text) == SecretReference("vault-name", "Token", "team")


@pytest.mark.parametrize(
    "text",
    [
        "secret:",
        "secret:hunter2 hunter2",
        "secret:Hunter2",
        "@Microsoft.KeyVault(",
        "@Microsoft.KeyVault()",
        "@Microsoft.KeyVault(hunter2)",
        "@Microsoft.KeyVault(SecretUri=http://v.example.com/secrets/hunter2)",
        "@Microsoft.KeyVault(SecretUri=https://v.example.com/keys/hunter2)",
        "@Microsoft.KeyVault(SecretUri=https://user:hunter2@v.example.com/secrets/n)",
        "@Microsoft.KeyVault(SecretUri=https://v.example.com/secrets/n?hunter2)",
        "@Microsoft.KeyVault(SecretUri=https://v.example.com/secrets/n;SecretName=hunter2)",
        "@Microsoft.KeyVault(VaultName=team)",
        "@Microsoft.KeyVault(VaultName=team;SecretName=hunter2!)",
        "@Microsoft.KeyVault(VaultName=team;SecretName=a;SecretName=hunter2)",
        "@Microsoft.KeyVault(VaultName=hunter2/;SecretName=a)",
        "@Microsoft.KeyVault(VaultName=team;SecretName=a;SecretVersion=hunter2!)",
        "@Microsoft.KeyVault(VaultName=team;SecretName=a)hunter2",
    ],
)
def test_a_malformed_reference_is_refused_without_being_shown(text: str) -> None:
    assert SecretReference.is_reference(text)
    with pytest.raises(SecretError, match="malformed secret reference") as caught:
        SecretReference.parse(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["secret:", "@Microsoft.KeyVault(planted)"])
def test_a_malformed_reference_is_refused_with_the_field_that_it_stands_in(text: str) -> None:
    with pytest.raises(SecretError, match=r"^build_secrets\.token: malformed secret reference: ") as caught:
        SecretReference.parse(text, "build_secrets.token")
    assert "planted" not in str(caught.value)
    with pytest.raises(SecretError, match=r"^environment_variables\.TOKEN: malformed secret reference: "):
        check_variables({"TOKEN": text}, allow_literal=True)


@pytest.mark.parametrize("text", ["", "hunter2", "Secret:x", "{{ secret }}", "x secret:y", None, 7])
def test_other_text_is_no_reference(text: object) -> None:
    assert not SecretReference.is_reference(text)


def test_parsing_what_is_no_reference_names_the_forms_and_not_the_text() -> None:
    with pytest.raises(SecretError, match="VaultName=VAULT") as caught:
        SecretReference.parse("hunter2")
    assert "hunter2" not in str(caught.value)


@given(st.text())
def test_parsing_any_text_gives_a_reference_or_a_secret_error(text: str) -> None:
    for candidate in (text, f"secret:{text}", f"@Microsoft.KeyVault({text})"):
        try:
            found = SecretReference.parse(candidate)
        except SecretError:
            continue
        assert SecretReference.parse(str(found)) == found


async def test_resolve_looks_references_up_and_leaves_other_text_alone() -> None:
    store = Drawer(token="s3cr3t-value")
    value = await resolve("secret:token", store)
    assert value == "s3cr3t-value"
    assert isinstance(value, SecretValue)
    assert str(value.reference) == "secret:token"
    assert await resolve(value, store) is value
    assert await resolve("plain", store) == "plain"
    assert await resolve(None, store) is None
    with pytest.raises(SecretError, match="no such secret"):
        await resolve("secret:other", store)
    with pytest.raises(SecretError, match="malformed"):
        await resolve("secret:Not A Name", store)


def test_a_secret_value_is_a_str_whose_repr_and_errors_are_masked() -> None:
    value = SecretValue("kept-from-view", SecretReference("block", "x"))
    assert f"{value}" == str(value) == "kept-from-view"
    assert type(str(value)) is str
    assert "kept-from-view" not in repr(value) + repr({"a": [value]})
    assert "secret:x" in repr(value)
    assert str(DefinitionError(f"cannot use {value}")) == f"cannot use {MASK}"


def test_a_secret_value_keeps_its_reference_when_copied_and_is_not_pickled() -> None:
    value = SecretValue("kept-from-disk", SecretReference("block", "x"))
    copied = copy.deepcopy({"a": value})["a"]
    assert (copied, copied.reference) == (value, value.reference)
    with pytest.raises(SecretError, match="secret:x is not pickled"):
        pickle.dumps(value)


@pytest.fixture
def logger(caplog: pytest.LogCaptureFixture) -> Iterator[logging.Logger]:
    redacting = RedactingFilter()
    caplog.handler.addFilter(redacting)
    yield logging.getLogger("redacting-test")
    caplog.handler.removeFilter(redacting)


def test_the_filter_masks_message_arguments_and_traceback(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    value = SecretValue("never-in-a-log", SecretReference("block", "x"))
    logger.warning("signing in with %s", value)
    try:
        raise ValueError(str(value))
    except ValueError:
        logger.exception("failed", stack_info=True)
    assert "never-in-a-log" not in caplog.text
    assert f"signing in with {MASK}" in caplog.text
    assert f"ValueError: {MASK}" in caplog.text


def test_the_filter_leaves_other_records_as_they_are() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        error = sys.exc_info()
    record = logging.LogRecord("n", logging.INFO, "f", 1, "%d packages", (3,), error)
    assert RedactingFilter().filter(record)
    assert (record.msg, record.args, record.exc_info) == ("%d packages", (3,), error)


JWT = ".".join(("eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0In0", "c2lnbmF0dXJl"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PASSWORD", "hunter2"),
        ("PGPASSWORD", "123456"),
        ("dbPassword", "hunter2"),
        ("MYSQL_PWD", "hunter2"),
        ("CLIENT_SECRET", "abc"),
        ("HF_TOKEN", "abc"),
        ("GITHUBTOKEN", "abc"),
        ("OPENAI_API_KEY", "abc"),
        ("WANDB_API_KEY", "abc"),
        ("AWS_SECRET_ACCESS_KEY", "abc"),
        ("AZURE_STORAGE_KEY", "abc"),
        ("AZURE_STORAGE_CONNECTION_STRING", "abc"),
        ("APPLICATIONINSIGHTS_CONNECTION_STRING", "abc"),
        ("SAS_TOKEN", "abc"),
        ("X", "-----BEGIN RSA PRIVATE " + "KEY-----\nMII"),
        ("X", "DefaultEndpointsProtocol=https;AccountName=a;AccountKey" + "=abc=="),
        ("X", "Server=db;User=a;Password" + "=abc"),
        ("X", "ghp_" + "a1" * 18),
        ("X", "sk-" + "a1" * 24),
        ("X", "AKIA" + "ABCD1234" * 2),
        ("X", "https://user:hunter2@example.com/x"),
        ("X", "redis://:hunter2@cache.example.com:6379/0"),
        ("X", "Bearer " + "abcdefgh12"),
        ("X", JWT),
        ("X", "https://a.example.com/c?sv=1&sig=" + "aB3%2F" * 8),
    ],
)
def test_what_looks_secret(name: str, value: str) -> None:
    assert looks_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false"),
        ("MAX_TOKENS", "4096"),
        ("MAX_TOKEN", "4096"),
        ("PAD_TOKEN", "[PAD]"),
        ("PWD", "/work"),
        ("OLDPWD", "/work"),
        ("PASSWORD_FILE", "/run/secrets/db"),
        ("AZURE_CLIENT_ID", "00000000-0000-0000-0000-000000000000"),
        ("TOKEN_URL", "https://login.example.com/token"),
        ("HF_TOKEN", ""),
        ("HF_TOKEN", "secret:hf-token"),
        ("DB_PASSWORD", "@Microsoft.KeyVault(VaultName=team;SecretName=db)"),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
        ("PRIMARY_KEY", "id"),
        ("KEYBOARD", "us"),
        ("SECRETARY", "bob"),
        ("CUDA_VISIBLE_DEVICES", "0,1"),
        ("LD_LIBRARY_PATH", "/opt/lib:/usr/lib"),
        ("MLFLOW_TRACKING_URI", "https://user@mlflow.example.com:5000/x"),
        ("WHEN", "http://example.com/a:b@c"),
        ("NOTE", "task-force-sk-1 and risk-averse-people-everywhere"),
        ("", ""),
    ],
)
def test_what_does_not_look_secret(name: str, value: str) -> None:
    assert not looks_secret(name, value)


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("registry.example.com", "registry.example.com"),
        ("Registry.Example.com:5000", "registry.example.com:5000"),
        ("localhost:5000", "localhost:5000"),
        ("[::1]:5000", "[::1]:5000"),
        ("oci:/data/Images", "oci:/data/Images"),
    ],
)
def test_an_address_is_a_host_with_a_port_or_a_folder(address: str, kept: str) -> None:
    assert check_address(address) == kept


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://registry.example.com", "no scheme"),
        ("registry.example.com/team", "no path.*repository_prefix"),
        ("user:hunter2@registry.example.com", "no credentials"),
        ("https://user:hunter2@registry.example.com", "no credentials"),
        ("", "needs an address"),
        ("oci:", "names no folder"),
        ("registry.example.com:0", "host.*port"),
        ("registry.example.com:99999", "host.*port"),
        ("a b", "host.*port"),
        (None, "needs an address"),
    ],
)
def test_a_wrong_address_is_refused_with_advice(address: object, advice: str) -> None:
    with pytest.raises(DefinitionError, match=advice) as caught:
        check_address(address)
    assert "hunter2" not in str(caught.value)


async def test_registry_settings_hide_the_password_and_resolve_references() -> None:
    settings = RegistrySettings("registry.example.com", "bob", "secret:pull")
    resolved = await settings.resolved(Drawer(pull="pull-secret-value"))
    assert resolved.password == "pull-secret-value"
    assert "pull-secret-value" not in repr(resolved)
    assert settings.folder is None
    assert str(RegistrySettings("oci:/data/images").folder) == "/data/images"


def test_a_literal_password_is_masked_in_errors_from_then_on() -> None:
    RegistrySettings("registry.example.com", "bob", "literal-password-1")
    assert "literal-password-1" not in str(DefinitionError("refused: literal-password-1"))
