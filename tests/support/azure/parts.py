"""An Entra tenant and a Key Vault, running, with what core needs to use them."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from azure.keyvault.secrets._shared import HttpChallengeCache

from prefect_environments.core.azure.clouds import PUBLIC
from prefect_environments.core.azure.credentials import Identity
from prefect_environments.core.azure.keyvault import VaultSettings
from tests.support.azure.certificates import VAULT_DOMAIN, Authority, session_authority
from tests.support.azure.entra import App, Entra
from tests.support.azure.keyvault import VaultServer
from tests.support.session import Session

REGISTRY_SUFFIX = "0.0.1"
"""What the addresses of registries of this tenant's cloud end with, without port."""


@dataclass(frozen=True)
class Azure:
    """The servers, and an application that may read the vault's secrets."""

    authority: Authority
    entra: Entra
    vault: VaultServer
    app: App

    def identity(self, **fields: Any) -> Identity:
        """The application as a service principal, in a cloud of its own, but for `fields`."""
        given = {
            "kind": "service-principal",
            "tenant_id": self.entra.tenant,
            "client_id": self.app.client_id,
            "client_secret": self.app.secret,
            "cloud": replace(
                PUBLIC,
                authority_host=self.entra.url,
                key_vault_suffix=self.vault.suffix,
                registry_suffix=REGISTRY_SUFFIX,
            ),
            "instance_discovery": False,
            "ca_file": str(self.authority.ca_file),
            "retries": 1,
        }
        return Identity(**{**given, **fields})

    def bare(self, **fields: Any) -> Identity:
        """An identity without tenant, client and secret, but for `fields`."""
        return self.identity(**{"tenant_id": None, "client_id": None, "client_secret": None, **fields})

    def settings(self, identity: Identity | None = None, *, cache_seconds: int = 300) -> VaultSettings:
        return VaultSettings(self.vault.vault_url, identity or self.identity(), cache_seconds)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of an `AzureCredentials` block for the application."""
        return {
            "kind": "service-principal",
            "tenant_id": self.entra.tenant,
            "client_id": self.app.client_id,
            "client_secret": self.app.secret,
            "authority_host": self.entra.url,
            "key_vault_suffix": self.vault.suffix,
            "registry_suffix": REGISTRY_SUFFIX,
            "instance_discovery": False,
            "ca_file": str(self.authority.ca_file),
        }


@contextmanager
def running_azure(session: Session, vault_name: str = "") -> Iterator[Azure]:
    """Start the servers and stop them at the end; a named vault needs `vault_names_resolve`."""
    authority = session_authority(session)
    tls = authority.server_context()
    name = f"{vault_name}.{VAULT_DOMAIN}" if vault_name else ""
    with Entra(tls) as entra, VaultServer(entra, tls, name) as vault:
        # the SDK remembers for the whole process which tenant a vault belongs to: of an earlier one at this port, too
        HttpChallengeCache.remove_challenge_for_url(vault.vault_url)
        app = entra.register()
        vault.grant(app, "Key Vault Secrets User")
        yield Azure(authority, entra, vault, app)


def vault_names_resolve(patch: pytest.MonkeyPatch) -> None:
    """Let names under `VAULT_DOMAIN` lead to this machine, as the DNS of a cloud would."""
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith(VAULT_DOMAIN) else host, *args, **kwargs)

    patch.setattr(socket, "getaddrinfo", resolve)
