"""Who a worker is on Azure."""

from typing import TYPE_CHECKING, ClassVar, Self

from prefect.blocks.core import Block
from pydantic import Field, SecretStr, field_validator, model_validator

from prefect_environments.blocks.base import DOCUMENTATION_URL, LOGO_URL, EnvironmentsBlock, given
from prefect_environments.core.azure.clouds import CLOUDS, Cloud, CloudName
from prefect_environments.core.azure.credentials import Identity, IdentityKind, token_credential
from prefect_environments.core.errors import DefinitionError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

_ENDPOINTS = ("authority_host", "key_vault_suffix", "registry_suffix", "registry_audience", "resource_manager")
_TEXTS = (
    *("tenant_id", "client_id", "client_secret", "certificate", "certificate_path", "certificate_password"),
    *("token_file", *_ENDPOINTS, "ca_file"),
)


class AzureCredentials(EnvironmentsBlock):
    """How to sign in to Azure: the default chain, a managed identity, a service principal or a workload identity.

    Example:
        Load stored credentials:
        ```python
        from prefect_environments.blocks import AzureCredentials

        credentials = AzureCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "Azure Credentials"
    _documentation_url = DOCUMENTATION_URL
    _logo_url = LOGO_URL

    kind: IdentityKind = Field(
        default="default-chain",
        description="Which identity: the first that works of the default chain, or one of a kind.",
    )
    tenant_id: str | None = Field(default=None, description="The tenant's (directory's) id, for a service principal.")
    client_id: str | None = Field(
        default=None, description="The application's id, or that of a user-assigned managed identity."
    )
    client_secret: SecretStr | None = Field(default=None, description="A service principal's secret.")
    certificate: SecretStr | None = Field(
        default=None, description="A service principal's certificate with its private key, as PEM text."
    )
    certificate_path: str | None = Field(
        default=None, description="Or a PEM or PKCS#12 file with the same, where the worker runs."
    )
    certificate_password: SecretStr | None = Field(default=None, description="Password of the certificate's key.")
    token_file: str | None = Field(
        default=None, description="A workload identity's token; AZURE_FEDERATED_TOKEN_FILE's if none is given."
    )
    cloud: CloudName = Field(default="public", description="Which of Azure's clouds.")
    authority_host: str | None = Field(
        default=None, description="Where to sign in if not at the cloud's own address, as an https URL."
    )
    key_vault_suffix: str | None = Field(
        default=None, description="What follows a vault's name, if not the cloud's own suffix."
    )
    registry_suffix: str | None = Field(
        default=None, description="What follows a registry's name, if not the cloud's own suffix."
    )
    registry_audience: str | None = Field(
        default=None, description="What tokens for registries are for, if not the cloud's own audience."
    )
    resource_manager: str | None = Field(
        default=None, description="Azure Resource Manager's address, if not the cloud's own."
    )
    instance_discovery: bool = Field(
        default=True, description="Have the authority confirmed by the public cloud; off where that is out of reach."
    )
    ca_file: str | None = Field(
        default=None, description="PEM file with certificate authorities to trust in addition to the system's."
    )

    _no_empty_text = field_validator(*_TEXTS)(given)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        self.identity()
        return self

    @classmethod
    def from_block(cls, block: Block, **fields: object) -> Self:
        """Credentials from a block of prefect-azure that carries tenant, client and secret; `fields` add to them.

        A block without them that signs in by the default chain gives that. Raises `DefinitionError` for one that only
        opens something else, such as a storage account by its connection string.
        """
        tenant = _text(block, "tenant_id")
        client = _text(block, "client_id") or _text(block, "service_principal_id")
        secret = _text(block, "client_secret") or _text(block, "service_principal_password")
        known = {"tenant_id": tenant, "client_id": client, "client_secret": secret}
        found = {name: value for name, value in known.items() if value}
        if len(found) == len(known):
            return cls.model_validate({"kind": "service-principal", **found, **fields})
        signs_in = {"client_id", "service_principal_id"} & set(type(block).model_fields)
        if found or not signs_in or _text(block, "connection_string"):
            raise DefinitionError(
                f"this {type(block).__name__} block carries no service principal with tenant, client and secret "
                f"(it has {', '.join(sorted(found)) or 'none of them'}); make an AzureCredentials block instead"
            )
        return cls.model_validate(fields)

    def identity(self) -> Identity:
        """What core needs to sign in. Raises `DefinitionError` for fields that don't fit the kind."""
        return Identity(
            kind=self.kind,
            tenant_id=self.tenant_id,
            client_id=self.client_id,
            client_secret=_plain(self.client_secret),
            certificate=_plain(self.certificate),
            certificate_path=self.certificate_path,
            certificate_password=_plain(self.certificate_password),
            token_file=self.token_file,
            cloud=self.endpoints(),
            instance_discovery=self.instance_discovery,
            ca_file=self.ca_file,
        )

    def endpoints(self) -> Cloud:
        """The cloud's endpoints, with those that this block replaces."""
        own = CLOUDS[self.cloud]
        return Cloud(**{name: getattr(self, name) or getattr(own, name) for name in _ENDPOINTS})

    def credential(self) -> "TokenCredential":
        """The `TokenCredential` for any client of Azure's SDK. Raises `DefinitionError`; uses no network."""
        return token_credential(self.identity())


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _text(block: Block, name: str) -> str | None:
    value = getattr(block, name, None)
    return value.get_secret_value() if isinstance(value, SecretStr) else value
