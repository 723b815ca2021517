"""A container registry: where images, locks and layers go."""

from typing import ClassVar, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from prefect_environments.blocks.base import DOCUMENTATION_URL, LOGO_URL, given
from prefect_environments.blocks.context import InWorkspace
from prefect_environments.blocks.keyvault import Keyvault
from prefect_environments.blocks.secrets import registry_secrets
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.registry_settings import LAYOUT_PREFIX, RegistrySettings, check_address
from prefect_environments.core.secrets import SecretStore


class ContainerRegistry(InWorkspace):
    """An OCI registry, or an image-layout folder on disk, with the credentials to use it.

    Example:
        Load a stored registry:
        ```python
        from prefect_environments.blocks import ContainerRegistry

        registry = ContainerRegistry.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "Container Registry"
    _documentation_url = DOCUMENTATION_URL
    _logo_url = LOGO_URL

    address: str = Field(
        default=...,
        description="The registry's host[:port], such as registry.example.com:5000, or oci:<folder> for a folder.",
    )
    username: str | None = Field(default=None, description="User name, or a secret reference such as secret:NAME.")
    password: SecretStr | None = Field(
        default=None,
        description="Password or token, or a secret reference such as secret:NAME or @Microsoft.KeyVault(…).",
    )
    keyvault: Keyvault | None = Field(
        default=None, title="Key Vault", description="The vault that these two name, if no workspace knows it."
    )
    plain_http: bool = Field(default=False, description="Talk HTTP without TLS, for a registry on a trusted network.")
    ca_file: str | None = Field(
        default=None, description="PEM file with certificate authorities to trust in addition to the system's."
    )

    _no_empty_text = field_validator("username", "password", "ca_file")(given)

    @field_validator("address")
    @classmethod
    def _known_address(cls, address: str) -> str:
        return check_address(address)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise DefinitionError("a registry needs both username and password, or neither of them")
        if self.address.startswith(LAYOUT_PREFIX) and (self.username or self.plain_http or self.ca_file):
            raise DefinitionError("a folder (oci:…) takes no username, password, plain_http or ca_file")
        return self

    def settings(self) -> RegistrySettings:
        """What core needs to reach the registry, references not resolved yet."""
        password = self.password.get_secret_value() if self.password else None
        return RegistrySettings(self.address, self.username, password, self.plain_http, self.ca_file)

    @property
    def secrets(self) -> SecretStore:
        """What resolves its references: Secret blocks, its own Key Vault, and those of the workspace that it is in."""
        return registry_secrets(self.keyvault, self._context)

    async def resolved_settings(self, secrets: SecretStore | None = None) -> RegistrySettings:
        """The same with references resolved, by `secrets` or its own, for use at once. Raises `SecretError`."""
        return await self.settings().resolved(secrets or self.secrets)
