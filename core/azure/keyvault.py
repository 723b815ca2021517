"""Azure Key Vault: secrets read at the moment of use, kept in memory for minutes at most."""

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from prefect_environments.core.azure.credentials import Identity, forget_credentials, token_credential
from prefect_environments.core.azure.failures import first_line, is_sign_in, sign_in_failure
from prefect_environments.core.azure.transport import client_options
from prefect_environments.core.azure.vault_failures import Step, explain
from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.redact import remember
from prefect_environments.core.secrets import SECRET_NAME, SECRET_VERSION, VAULT_NAME, SecretReference, SecretValue

if TYPE_CHECKING:
    from azure.keyvault.secrets import KeyVaultSecret, SecretClient


class _TokenRefused(SecretError):
    """The vault did not take the token."""


LONGEST_VALUE = 25 * 1024
"""The most that a secret can hold, in bytes (Key Vault, "About secrets")."""
LONGEST_CACHE = 600
"""The longest that values are kept, in seconds."""

_T = TypeVar("_T")
_HOST = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.-]*[0-9A-Za-z])?(?::[0-9]{1,5})?")
_PROBE = "prefect-environments-check"


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """A vault and who reads it. Raises `DefinitionError` if `vault` is neither a name nor an https URL."""

    vault: str
    """The vault's name, completed by the cloud's suffix, or its URL."""
    identity: Identity = field(default_factory=Identity)
    cache_seconds: int = 300
    """How long a value is kept in memory, at most 600 seconds; 0 asks the vault each time."""
    block: str = ""
    """The blocks that say all this, for messages."""

    def __post_init__(self) -> None:
        if not 0 <= self.cache_seconds <= LONGEST_CACHE:
            raise DefinitionError(f"cache_seconds is 0 to {LONGEST_CACHE}: a rotated secret must be seen soon")
        if VAULT_NAME.fullmatch(self.vault):
            return
        parts = urlsplit(self.vault)
        if parts.scheme != "https" or not _HOST.fullmatch(parts.netloc) or parts.path.strip("/") or parts.query:
            raise DefinitionError(
                "a vault is its name (3 to 24 letters, digits and '-') or its address without a path, as in "
                f"https://team.{self.identity.cloud.key_vault_suffix}"
            )

    @property
    def host(self) -> str:
        """`host[:port]`, in lower case."""
        if VAULT_NAME.fullmatch(self.vault):
            return f"{self.vault}.{self.identity.cloud.key_vault_suffix}".lower()
        return urlsplit(self.vault).netloc.lower().removesuffix(":443")

    @property
    def name(self) -> str:
        """The vault's name: what its host begins with."""
        return self.host.partition(".")[0]

    @property
    def where(self) -> str:
        """The host, and the blocks that name it."""
        return f"{self.host} ({self.block})" if self.block else self.host


class KeyVault:
    """One vault. Safe to use from several threads; making it uses no network.

    All methods raise `SecretError` that names the vault, the identity and what is missing.
    """

    def __init__(self, settings: VaultSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._cached: dict[tuple[str, str | None], tuple[SecretValue, float]] = {}
        self._client: SecretClient | None = None
        self._written = 0

    def get(self, name: str, version: str | None = None) -> SecretValue:
        """A secret's value: of this version, or of the newest."""
        check_secret(name, version)
        now, key = self._clock(), (name.lower(), version)
        with self._lock:
            self._cached = {known: kept for known, kept in self._cached.items() if kept[1] > now}
            if found := self._cached.get(key):
                return found[0]
            written = self._written
        secret = self._call(Step("get", name, version), lambda client: client.get_secret(name, version))
        value = self._value(secret, name, version)
        with self._lock:
            if written == self._written:  # else it may be the value before the one just written
                self._cached[key] = (value, now + self.settings.cache_seconds)
        return value

    def set(self, name: str, value: str) -> None:
        """Write a new version of a secret."""
        check_secret(name)
        remember(str(value))
        if not value or len(value.encode()) > LONGEST_VALUE:
            raise SecretError(
                f"secret {name!r} of {self.settings.where}: a value has 1 to {LONGEST_VALUE} bytes, "
                f"this one has {len(value.encode())}"
            )
        self._call(Step("set", name), lambda client: client.set_secret(name, str(value)))
        with self._lock:
            self._written += 1
            self._cached.pop((name.lower(), None), None)

    def names(self) -> list[str]:
        """The names of all secrets, sorted; no value is read."""
        found = self._call(Step("list"), lambda client: list(client.list_properties_of_secrets()))
        return sorted(str(properties.name) for properties in found)

    def check(self) -> None:
        """Ask for a secret that nobody has: raises `SecretError` unless this identity may read values."""
        from azure.core.exceptions import ResourceNotFoundError  # noqa: PLC0415

        def ask(client: "SecretClient") -> None:
            with suppress(ResourceNotFoundError):  # who may not read gets 403 for every name
                client.get_secret(_PROBE)

        self._call(Step("get", _PROBE), ask)

    def is_deleted(self, name: str) -> bool | None:
        """Whether a secret waits to be recovered or purged; `None` if this identity may not know."""
        from azure.core.exceptions import AzureError, ResourceNotFoundError  # noqa: PLC0415

        try:
            self._open().get_deleted_secret(name)
        except ResourceNotFoundError:
            return False
        except AzureError:
            return None
        return True

    def _open(self) -> "SecretClient":
        from azure.keyvault.secrets import SecretClient  # noqa: PLC0415

        with self._lock:
            if self._client is None:
                identity = self.settings.identity
                options = client_options(identity.ca_file, identity.retries)
                url = f"https://{self.settings.host}"
                self._client = SecretClient(url, token_credential(identity), **options)
            return self._client

    def _call(self, step: Step, action: "Callable[[SecretClient], _T]") -> _T:
        try:
            return self._attempt(step, action)
        except _TokenRefused:
            self._start_anew()  # revoked, or a clock is wrong: a fresh token is worth one more try
        try:
            return self._attempt(step, action)
        except _TokenRefused as refused:
            said = str(refused)
        raise SecretError(said)

    def _attempt(self, step: Step, action: "Callable[[SecretClient], _T]") -> _T:
        from azure.core.exceptions import AzureError, ClientAuthenticationError, DeserializationError  # noqa: PLC0415

        host, identity, kind = self.settings.host, self.settings.identity, SecretError
        where = f"{step} of the Key Vault {self.settings.where}"
        try:
            return action(self._open())
        except AzureError as error:
            said = f"{where}: {explain(error, step, host, identity, self.is_deleted)}"
            if isinstance(error, ClientAuthenticationError):
                kind = SecretError if is_sign_in(error, host) else _TokenRefused
                self._start_anew()
        except (DeserializationError, AttributeError, TypeError, LookupError) as error:  # it takes any answer
            said = (
                f"{where}: what answered is no Key Vault ({type(error).__name__}); check the vault's address, and "
                "proxies on the way"
            )
        except ValueError as error:  # the SDK's, for a challenge or authority that is not what it should be
            said = f"{where}: {identity} got no token: {first_line(error)}"
        except OSError as error:
            said = f"{where}: {sign_in_failure(error, identity)}"
        raise kind(said)  # out of the handlers: the SDK's error, with its request in it, is not kept

    def _start_anew(self) -> None:
        with self._lock:
            self._client = None
        forget_credentials()

    def _value(self, secret: "KeyVaultSecret", name: str, version: str | None) -> SecretValue:
        expires: Any = secret.properties.expires_on
        if expires is not None and expires <= datetime.now(UTC):
            raise SecretError(
                f"secret {name!r} of {self.settings.where} expired on {expires:%Y-%m-%d}: "
                "set a new version, or move its expiry"
            )
        if not secret.value:
            raise SecretError(f"secret {name!r} of {self.settings.where} has no value; set a new version")
        return SecretValue(secret.value, SecretReference("secret-uri", name, self.settings.host, version))


def open_vault(settings: VaultSettings) -> KeyVault:
    """The vault of these settings; the same one, with what it keeps, for the same settings."""
    return _open_vault(settings)


_open_vault = lru_cache(maxsize=32)(KeyVault)
os.register_at_fork(after_in_child=_open_vault.cache_clear)  # sockets are not shared between processes


def check_secret(name: str, version: str | None = None) -> None:
    """Raise `SecretError` unless these can be a secret's name and version. A name is not shown: what is put there by
    mistake may be the secret itself."""
    if not isinstance(name, str) or not SECRET_NAME.fullmatch(name):
        raise SecretError("the name of a secret in a Key Vault is 1 to 127 letters, digits and '-'")
    if version is not None and not SECRET_VERSION.fullmatch(version):
        raise SecretError(f"the version of secret {name!r} is letters and digits; leave it out for the newest")
