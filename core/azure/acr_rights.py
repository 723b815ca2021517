"""What a sign-in may do in a Container Registry beside pulling and pushing, as the registry's own token says it.

Nothing is tried: a deletion cannot be tried without one.
"""

import base64
import json
from typing import Any

from prefect_environments.core.azure.acr import scopes_of
from prefect_environments.core.errors import PrefectEnvironmentsError, RegistryAuthError
from prefect_environments.core.findings import Finding
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretStore
from prefect_environments.core.stores import open_registry

_LOCK, _DELETE = frozenset({"metadata_write"}), frozenset({"delete"})
_ASKED = _LOCK | _DELETE


async def check_rights(
    settings: RegistrySettings, secrets: SecretStore, repository: str, *, deleting: bool = False
) -> list[Finding]:
    """Whether locking is allowed, where registered images are to be locked, and with `deleting` whether that is.

    Empty for other registries, and where nothing of it is wanted. Raises nothing for what does not work.
    """
    azure = settings.azure
    wanted = {"lock": _LOCK} if azure is not None and azure.lock_registered else {}
    if azure is not None and deleting:
        wanted["delete"] = _DELETE
    if azure is None or not wanted:
        return []
    try:
        allowed, advice = await _allowed(await settings.resolved(secrets), repository)
    except RegistryAuthError as error:
        return [Finding(name, False, str(error), "See registry") for name in wanted]
    except PrefectEnvironmentsError as error:
        return [Finding(name, False, str(error), "See registry", required=False) for name in wanted]
    return [_finding(name, repository, actions, allowed, advice[name]) for name, actions in wanted.items()]


async def _allowed(settings: RegistrySettings, repository: str) -> tuple[frozenset[str] | None, dict[str, str]]:
    """What of `_ASKED` the registry's token allows, `None` where it does not say; and what to do without each."""
    scopes = scopes_of(repository, *_ASKED)
    async with open_registry(settings) as registry:
        header = await registry.authorization(scopes)
        advice = {"lock": registry.advice(scopes_of(repository, *_LOCK))}
        advice["delete"] = registry.advice(scopes_of(repository, *_DELETE))
    return granted(header or "", repository), advice


def _finding(
    name: str, repository: str, actions: frozenset[str], allowed: frozenset[str] | None, advice: str
) -> Finding:
    what = f"{name} images of {repository}"
    if allowed is None:
        unknown = f"the registry does not say whether this sign-in may {what}; only trying would tell"
        return Finding(name, False, unknown, advice, required=False)
    if actions <= allowed:
        return Finding(name, True, f"by the registry's token this sign-in may {what}")
    return Finding(name, False, f"by the registry's token this sign-in may not {what}", advice)


def granted(header: str, repository: str) -> frozenset[str] | None:
    """The actions on a repository that an `Authorization` header allows; `None` where it is no token that says so.

    The claim `access` is that of distribution-spec's token authentication ("Requested Access"); ACR spells its keys
    in upper or lower case. The signature is the registry's business.
    """
    try:
        scheme, _, token = header.partition(" ")
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==="))
        found = claims["access"] or []
        entries = [{str(key).lower(): value for key, value in entry.items()} for entry in found]
        if scheme.lower() != "bearer":
            return None
        return frozenset(action for entry in entries for action in _actions(entry, repository))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None


def _actions(entry: dict[str, Any], repository: str) -> list[str]:
    if (entry.get("type"), entry.get("name")) != ("repository", repository):
        return []
    return [str(action) for action in entry.get("actions") or []]
