"""Azure Container Registry: how an identity of Entra ID signs in to it, and what an error about rights should say."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect_environments.core.azure.credentials import Identity, token_credential
from prefect_environments.core.azure.failures import sign_in_failure
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.errors import RegistryAuthError, RegistryError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from yarl import URL

    from prefect_environments.core.distribution.messages import Answer, Request, Scopes

TOKEN_USER = "00000000-0000-0000-0000-000000000000"  # noqa: S105 - everybody's
"""The user name that goes with an identity token as password, as `az acr login` does."""

_EARLY = 60  # seconds; a token must still live when the registry looks at it
_ROLES = {
    "pull": ("AcrPull", "Container Registry Repository Reader"),
    "metadata_read": ("AcrPull", "Container Registry Repository Reader"),
    "push": ("AcrPush", "Container Registry Repository Writer"),
    "metadata_write": ("AcrPush", "Container Registry Repository Writer"),
    "delete": ("AcrDelete", "Container Registry Repository Contributor"),
    "*": ("AcrPull", "Container Registry Repository Catalog Lister"),
}
"""The least role for an action: on the whole registry, and where it gives permissions by repository (ABAC)."""
_STRENGTH = ("*", "metadata_read", "pull", "metadata_write", "push", "delete")


@dataclass(frozen=True, slots=True)
class AzureRegistry:
    """A registry's Azure side: who signs in, where it is managed. It is the `CredentialSource` of its identity."""

    login_server: str
    identity: Identity | None = None
    """Who signs in; without it a user with a password, what Docker's tools stored, or nobody."""
    subscription_id: str | None = None
    resource_group: str | None = None
    lock_registered: bool = False
    """Lock the image of each registered version against being overwritten and deleted."""
    block: str = field(default="", compare=False)
    """The block that says all this, for messages."""

    @property
    def name(self) -> str:
        """The registry resource's name: `team` of `team.azurecr.io` and of `team-a1b2c3.azurecr.io`, whose second part
        is a hash that keeps names apart (ACR, "Domain name label")."""
        host = self.login_server.partition(":")[0]
        return self.login_server if host.replace(".", "").isdigit() else host.partition(".")[0].partition("-")[0]

    async def get(self, host: str) -> Credentials | None:
        """The identity's Entra token, to be exchanged. Raises `RegistryAuthError` if there is none to be had, and for a
        host that is no registry of the identity's cloud: the token would open all registries of that cloud there."""
        if self.identity is None:
            return None
        suffix = self.identity.cloud.registry_suffix.partition(":")[0].lower()
        if not self.login_server.partition(":")[0].lower().endswith(f".{suffix}"):
            raise RegistryAuthError(
                f"{self.where}: no token of {self.identity} is sent there, as registries of its cloud end with "
                f".{suffix}. Correct login_server, or the cloud (else registry_suffix) of the AzureCredentials block"
            )
        token = await asyncio.to_thread(self._token, self.identity)
        exchange = EntraExchange(self, token.token, self.identity.tenant_id or "")
        return Credentials(str(self.identity), "", exchange=exchange, expires=token.expires_on - _EARLY)

    def _token(self, identity: Identity) -> "AccessToken":
        from azure.core.exceptions import AzureError  # noqa: PLC0415

        try:
            return token_credential(identity).get_token(f"{identity.cloud.registry_audience}/.default")
        except (AzureError, OSError, ValueError) as error:
            raise RegistryAuthError(f"{self.where}: {sign_in_failure(error, identity)}") from None

    @property
    def where(self) -> str:
        """The login server, and the block that names it."""
        return f"{self.login_server} ({self.block})" if self.block else self.login_server

    def advice(self, scopes: "Scopes", found: Credentials | None) -> str:
        """What to do where the registry refuses `scopes`: the role, or what else, that is missing."""
        said_by = f" (set by {self.block})" if self.block else ""
        if found is None:
            return (
                f"Set credentials{said_by}, or sign in with `az acr login --name {self.name}`; without a sign-in only "
                "pulling is possible, where the registry allows anonymous pull"
            )
        role, by_repository = _roles(scopes)
        right = (
            f"the role {role} on registry {self.name} (or {by_repository}, where it gives permissions by repository)"
        )
        if found.exchange is not None:
            return f"Give {found.username}{said_by} {right}; a new role counts after some minutes"
        if found.identity_token or found.username == TOKEN_USER:
            again = f"repeat `az acr login --name {self.name}`"
            return f"This sign-in ends after some hours: {again}. Its identity needs {right}"
        return (
            f"Check the password of {found.username!r}{said_by}: the admin user must be switched on, and a token's "
            f"scope map must allow this on the repository"
        )


@dataclass(frozen=True, slots=True)
class EntraExchange:
    """An Entra token for a registry, as an `Exchange`: `POST /oauth2/exchange` makes a refresh token of it.

    It goes to the registry itself and nowhere else, whatever realm a challenge names.
    """

    registry: AzureRegistry
    token: str = field(repr=False)
    tenant: str = ""

    def request(self, registry: "URL", service: str) -> "Request":
        from prefect_environments.core.distribution.messages import form_request  # noqa: PLC0415

        fields = {"grant_type": "access_token", "service": service, "access_token": self.token}
        if self.tenant:
            fields["tenant"] = self.tenant
        return form_request(registry / "oauth2/exchange", "exchange of an Entra token", fields)

    def read(self, registry: "URL", answer: "Answer") -> tuple[str, float | None]:
        if answer.status in (400, 401, 403):
            from prefect_environments.core.distribution.failures import error_of, tidy  # noqa: PLC0415

            said = tidy(" ".join(part for part in error_of(answer.body) if part))
            raise RegistryAuthError(
                f"{self.registry.where}: the registry did not let {self.registry.identity} in "
                f"(HTTP {answer.status}{said and f', {said}'}). "
                f"It needs the role AcrPull (to pull) or AcrPush (to push) on registry {self.registry.name}, and must "
                "be of the registry's own tenant and cloud; a new role counts after some minutes",
                status=answer.status,
            )
        try:
            token = json.loads(answer.body)["refresh_token"] if answer.status == 200 else None
        except (ValueError, RecursionError, LookupError, TypeError):
            token = None
        if not isinstance(token, str) or not token:
            raise RegistryError(
                f"{self.registry.where}: the exchange of an Entra token was answered with HTTP {answer.status} and no "
                "refresh token; check that login_server is an Azure Container Registry, as in NAME.azurecr.io",
                status=answer.status,
            )
        return token, None


def _roles(scopes: "Scopes") -> tuple[str, str]:
    actions = sorted({action for _, action in scopes if action in _STRENGTH}, key=_STRENGTH.index)
    return _ROLES[actions[-1] if actions else "pull"]
