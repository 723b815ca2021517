"""Azure Key Vaults and references to their secrets."""

from collections.abc import Iterable
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from prefect_environments.blocks.azure import AzureCredentials
from prefect_environments.blocks.base import DOCUMENTATION_URL, LOGO_URL, EnvironmentsBlock
from prefect_environments.blocks.context import InWorkspace
from prefect_environments.core.azure.credentials import Identity
from prefect_environments.core.azure.keyvault import LONGEST_CACHE, KeyVault, VaultSettings, check_secret, open_vault
from prefect_environments.core.secrets import SecretReference


class Keyvault(InWorkspace):
    """An Azure Key Vault. Its secrets are read when they are used, and never stored by Prefect.

    Example:
        Load a stored vault and read a secret:
        ```python
        from prefect_environments.blocks import Keyvault

        keyvault = Keyvault.load("BLOCK_NAME")
        password = keyvault.get_secret(name="registry-password")
        ```
    """

    _block_type_name: ClassVar[str] = "Azure Key Vault"
    _documentation_url = DOCUMENTATION_URL
    _logo_url = LOGO_URL

    vault: str = Field(default=..., description="The vault's name, or its address, such as https://team.example.com.")
    credentials: AzureCredentials | None = Field(
        default=None, description="Who reads the vault; else the workspace's credentials or the default chain."
    )
    cache_seconds: int = Field(
        default=300, ge=0, le=LONGEST_CACHE, description="How long a value is kept in memory, at most 600 seconds."
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        self.settings()
        return self

    def settings(self) -> VaultSettings:
        """What core needs to read the vault."""
        identity = self.credentials.identity() if self.credentials else self._context.identity or Identity()
        return VaultSettings(self.vault, identity, self.cache_seconds, self._described())

    def known_vaults(self, others: Iterable[str] = ()) -> list[VaultSettings]:
        """This vault and others, by name or address, that are read with the same credentials."""
        own = self.settings()
        return [own, *(VaultSettings(other, own.identity, own.cache_seconds, own.block) for other in others)]

    def get_secret(self, name: str, version: str | None = None) -> str:
        """A secret's value, of the newest version if none is given. It remembers its reference, which is what gets
        saved, hashed and registered, and is masked in logs and errors. Raises `SecretError`."""
        return self._open().get(name, version)

    def set_secret(self, name: str, value: str) -> None:
        """Write a new version of a secret. Raises `SecretError`."""
        self._open().set(name, value)

    def list_secrets(self) -> list[str]:
        """The names of the vault's secrets, sorted; no value is read. Raises `SecretError`."""
        return self._open().names()

    def _open(self) -> KeyVault:
        return open_vault(self.settings())

    def _described(self) -> str:
        credentials = ""
        if self.credentials is not None and self.credentials._block_document_name:
            credentials = f"credentials {self.credentials._block_document_name!r}"
        elif self.credentials is None:
            credentials = self._context.credentials
        own = f"block {self._block_document_name!r}" if self._block_document_name else ""
        return ", ".join(part for part in (own and f"Keyvault {own}", credentials) if part)


class KeyvaultSecret(EnvironmentsBlock):
    """A reference to one secret of an Azure Key Vault; its value stays there until it is used.

    Example:
        Load a stored reference and read the secret:
        ```python
        from prefect_environments.blocks import KeyvaultSecret

        value = KeyvaultSecret.load("BLOCK_NAME").get()
        ```
    """

    _block_type_name: ClassVar[str] = "Azure Key Vault Secret"
    _documentation_url = DOCUMENTATION_URL
    _logo_url = LOGO_URL

    keyvault: Keyvault = Field(default=..., description="The vault that has the secret.")
    name: str = Field(default=..., description="The secret's name in the vault: letters, digits and '-'.")
    version: str | None = Field(default=None, description="The secret's version; the newest if none is given.")

    @field_validator("version")
    @classmethod
    def _newest(cls, version: str | None) -> str | None:
        return version or None

    @model_validator(mode="after")
    def _legal(self) -> Self:
        check_secret(self.name, self.version)
        return self

    @property
    def reference(self) -> str:
        """The reference to write where a secret is needed: `@Microsoft.KeyVault(SecretUri=…)`."""
        host = self.keyvault.settings().host
        return str(SecretReference("secret-uri", self.name, host, self.version))

    def get(self) -> str:
        """The secret's value, which remembers its reference and is masked in logs. Raises `SecretError`."""
        return self.keyvault.get_secret(self.name, self.version)
