"""Why a Key Vault gave no secret: absent, disabled, soft-deleted, expired, a role, a network, throttling."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prefect_environments.core.azure.failures import (
    asked_host,
    caller,
    connection_failure,
    error_body,
    is_sign_in,
    sign_in_failure,
)

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError

    from prefect_environments.core.azure.credentials import Identity

_ROLES = {
    "get": ("Key Vault Secrets User", "get"),
    "list": ("Key Vault Secrets User", "list"),
    "set": ("Key Vault Secrets Officer", "set"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What was asked of a vault."""

    action: Literal["get", "set", "list"]
    name: str = ""
    version: str | None = None

    def __str__(self) -> str:
        if self.action == "list":
            return "the list of secrets"
        return f"secret {self.name!r}{f' (version {self.version})' if self.version else ''}"


def explain(
    error: "AzureError", step: Step, host: str, identity: "Identity", is_deleted: Callable[[str], bool | None]
) -> str:
    """What went wrong, for `SecretError`. `is_deleted` is asked about a name that the vault does not know."""
    if is_sign_in(error, host):
        return sign_in_failure(error, identity)
    if reason := connection_failure(error):
        asked = asked_host(error) or host
        return f"{identity} got no token from {asked}: {reason}" if asked != host else reason
    return _by_status(error, step, host, identity, is_deleted)


def _by_status(
    error: "AzureError", step: Step, host: str, identity: "Identity", is_deleted: Callable[[str], bool | None]
) -> str:
    status, body = getattr(error, "status_code", None), error_body(error)
    if status == 403:
        return _forbidden(step, host, identity, body)
    if status == 404 and step.name:
        return _absent(step, is_deleted)
    if status == 409 and step.action == "set":
        return "the name belongs to a soft-deleted secret: recover or purge that, or take another name"
    if status == 401:
        return f"the token of {identity} was refused: it was revoked, or the vault belongs to another tenant"
    if status == 429:
        return f"the vault is throttling, and kept doing so for {identity.retries} retries: try again later"
    code = str(body.get("code", "")) or type(error).__name__
    return f"the vault answered HTTP {status or 'nothing'} ({code}): try again, and see Azure's status"


def _forbidden(step: Step, host: str, identity: "Identity", body: dict[str, Any]) -> str:
    message, inner = str(body.get("message", "")), str((body.get("innererror") or {}).get("code", ""))
    if inner == "SecretDisabled" or "disabled secret" in message:
        return "it is disabled: enable it, or ask for another version"
    if "expired secret" in message:
        return "it has expired: set a new version, or move its expiry"
    if inner in ("ForbiddenByFirewall", "ForbiddenByConnection"):
        return "the vault's firewall shuts this machine out: allow its address, or use a private endpoint"
    role, permission = _ROLES[step.action]
    return (
        f"{identity}{caller(message)} lacks the role {role!r} on {host} (where the vault goes by access policies, the "
        f"secret permission {permission!r}). A role that was just given takes some minutes to count"
    )


def _absent(step: Step, is_deleted: Callable[[str], bool | None]) -> str:
    deleted = is_deleted(step.name)
    if deleted:
        return "it is soft-deleted: recover it, or set it anew under another name"
    what = f"there is no version {step.version} of it, or no such secret" if step.version else "there is no such secret"
    hint = "" if deleted is False else " (it may be soft-deleted, which this identity may not see)"
    return f"{what}: check the name, or set it{hint}"
