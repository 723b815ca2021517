"""Who we are on Azure: the one place that makes the SDK's `TokenCredential`."""

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from prefect_environments.core.azure.clouds import PUBLIC, Cloud
from prefect_environments.core.azure.transport import client_options
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.redact import remember
from prefect_environments.core.secrets import SecretReference

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, AccessTokenInfo, TokenCredential

IdentityKind = Literal["default-chain", "managed-identity", "service-principal", "workload-identity"]

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]*")


@dataclass(frozen=True, slots=True)
class Identity:
    """How to sign in to Entra ID. Raises `DefinitionError` for fields that don't fit the kind.

    `str()` names the identity for messages; it holds nothing secret, nor does `repr`.
    """

    kind: IdentityKind = "default-chain"
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    """The service principal's certificate and its private key, as PEM text."""
    certificate_path: str | None = None
    """A PEM or PKCS#12 file with the same."""
    certificate_password: str | None = field(default=None, repr=False)
    token_file: str | None = None
    """The workload's token; what AZURE_FEDERATED_TOKEN_FILE names if none is given."""
    cloud: Cloud = PUBLIC
    instance_discovery: bool = True
    """Ask the public cloud whether the authority is one of Azure's; not where that cannot be reached."""
    ca_file: str | None = None
    """PEM file of certificate authorities to trust in addition to the usual ones."""
    retries: int = 3
    """Of each request but those for a managed identity's token."""

    def __post_init__(self) -> None:
        for secret in self._secrets():
            if SecretReference.is_reference(secret):
                raise DefinitionError(
                    "Azure credentials take no secret references: they are what references are resolved with. "
                    "Put the value itself into this credentials block, or use a managed or workload identity"
                )
            remember(secret)
        for name in ("tenant_id", "client_id"):
            value = getattr(self, name)
            if value is not None and not _ID.fullmatch(value):
                raise DefinitionError(f"{name} is an id such as 00000000-0000-0000-0000-000000000000")
        self._check_kind()

    def _secrets(self) -> list[str]:
        return [s for s in (self.client_secret, self.certificate, self.certificate_password) if s is not None]

    def _check_kind(self) -> None:
        proofs = {
            name: getattr(self, name)
            for name in ("client_secret", "certificate", "certificate_path")
            if getattr(self, name) is not None
        }
        if self.kind == "service-principal":
            if not self.tenant_id or not self.client_id or len(proofs) != 1:
                raise DefinitionError(
                    "a service principal needs tenant_id, client_id and one of client_secret, certificate and "
                    f"certificate_path; given are {', '.join(proofs) or 'none of these three'}"
                )
        elif proofs or self.certificate_password is not None:
            raise DefinitionError(
                f"{', '.join(proofs) or 'certificate_password'} belongs to the kind service-principal; this is "
                f"{self.kind}. Change the kind, or remove it"
            )
        if self.certificate_password is not None and "client_secret" in proofs:
            raise DefinitionError("certificate_password goes with a certificate, not with a client_secret")
        if self.token_file is not None and self.kind != "workload-identity":
            raise DefinitionError("token_file belongs to the kind workload-identity")

    def __str__(self) -> str:
        client = f"client id {self.client_id}" if self.client_id else ""
        if self.kind == "service-principal":
            proof = "client secret" if self.client_secret is not None else "certificate"
            return f"the service principal with {client} of tenant {self.tenant_id} ({proof})"
        if self.kind == "managed-identity":
            return f"the managed identity ({client or 'system-assigned'})"
        if self.kind == "workload-identity":
            return f"the workload identity ({client or 'client id from AZURE_CLIENT_ID'})"
        return f"the default chain of identities{f' ({client})' if client else ''}"


def token_credential(identity: Identity) -> "TokenCredential":
    """The SDK's credential for an identity; the same one, with its tokens, for the same identity.

    Making it uses no network. Raises `DefinitionError` if a certificate or its password cannot be used, or the
    settings of a workload identity are nowhere to be found.
    """
    return _token_credential(identity)


def forget_credentials() -> None:
    """Make credentials anew from now on, so that a replaced certificate file is read."""
    _token_credential.cache_clear()


os.register_at_fork(after_in_child=forget_credentials)  # sockets are not shared between processes


@lru_cache(maxsize=32)
def _token_credential(identity: Identity) -> "MaskingCredential":
    from azure import identity as sdk  # noqa: PLC0415

    options = client_options(identity.ca_file, identity.retries)
    signing_in: dict[str, Any] = {
        "authority": identity.cloud.authority_host,
        "disable_instance_discovery": not identity.instance_discovery,
        **options,
    }
    if identity.kind == "managed-identity":
        # with the SDK's own retries: the machine's endpoint is away for up to 70 seconds when it is renewed
        own = {"client_id": identity.client_id, "transport": options["transport"]}
        return MaskingCredential(sdk.ManagedIdentityCredential(**own))
    if identity.kind == "default-chain":
        return MaskingCredential(sdk.DefaultAzureCredential(**signing_in, **_chosen(identity)))
    if identity.kind == "workload-identity":
        return MaskingCredential(_workload(identity, signing_in))
    assert identity.tenant_id and identity.client_id  # noqa: S101 - checked when it was made
    if identity.client_secret is not None:
        made = sdk.ClientSecretCredential(identity.tenant_id, identity.client_id, identity.client_secret, **signing_in)
        return MaskingCredential(made)
    return MaskingCredential(_by_certificate(identity, signing_in))


def _chosen(identity: Identity) -> dict[str, str]:
    chosen: dict[str, str] = {}
    if identity.client_id:
        chosen |= {"managed_identity_client_id": identity.client_id, "workload_identity_client_id": identity.client_id}
    if identity.tenant_id:
        chosen["workload_identity_tenant_id"] = identity.tenant_id
    return chosen


def _workload(identity: Identity, options: dict[str, Any]) -> "TokenCredential":
    from azure.identity import WorkloadIdentityCredential  # noqa: PLC0415

    try:
        return WorkloadIdentityCredential(
            tenant_id=identity.tenant_id, client_id=identity.client_id, token_file_path=identity.token_file, **options
        )
    except ValueError:
        raise DefinitionError(
            "a workload identity needs tenant_id, client_id and token_file; where the webhook of Azure Workload "
            "Identity works, it sets AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE instead: label "
            "the pod azure.workload.identity/use=true"
        ) from None


def _by_certificate(identity: Identity, options: dict[str, Any]) -> "TokenCredential":
    from azure.identity import CertificateCredential  # noqa: PLC0415

    where = f"certificate_path {identity.certificate_path}" if identity.certificate_path else "certificate"
    try:
        data = Path(identity.certificate_path).expanduser().read_bytes() if identity.certificate_path else None
    except OSError as error:
        _unusable(f"{where} cannot be read: {error.strerror}")
    try:
        return CertificateCredential(
            str(identity.tenant_id),
            str(identity.client_id),
            certificate_data=data or str(identity.certificate).encode(),
            password=identity.certificate_password,
            **options,
        )
    except (ValueError, TypeError):  # cryptography's words for a wrong password or broken PEM
        _unusable(f"{where} cannot be used")


def _unusable(what: str) -> NoReturn:
    raise DefinitionError(
        f"{what}; it is PEM (or, in a file, PKCS#12) with an RSA private key and its certificate, "
        "opened by certificate_password if it has one"
    )


class MaskingCredential:
    """A credential of the SDK whose tokens are masked in logs and errors from the moment they exist."""

    def __init__(self, credential: Any) -> None:
        self._credential = credential

    def get_token(self, *scopes: str, **options: Any) -> "AccessToken":
        """A token (azure-core, `TokenCredential`)."""
        token: AccessToken = self._credential.get_token(*scopes, **options)
        remember(token.token)
        return token

    def get_token_info(self, *scopes: str, **options: Any) -> "AccessTokenInfo":
        """A token with what is known about it (azure-core, `SupportsTokenInfo`)."""
        token: AccessTokenInfo = self._credential.get_token_info(*scopes, **options)
        remember(token.token)
        return token

    def close(self) -> None:
        """Close its connections."""
        self._credential.close()
