"""The tokens of a Container Registry: refresh tokens for identities, access tokens for scopes."""

import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

Scope = tuple[str, str, str]
"""Type, name and one action, as in `("repository", "team/image", "pull")`."""

ROLES: Mapping[str, frozenset[str]] = {
    "AcrPull": frozenset({"pull", "metadata_read", "*"}),
    "AcrPush": frozenset({"pull", "push", "metadata_read", "metadata_write", "*"}),
    "AcrDelete": frozenset({"delete", "metadata_read"}),
    "Owner": frozenset({"pull", "push", "delete", "metadata_read", "metadata_write", "*"}),
}
"""What a role on the whole registry allows; `*` is listing the catalog."""

EVERYTHING = {"": ROLES["Owner"]}
ANONYMOUS = {"": frozenset({"pull", "metadata_read"})}


@dataclass
class Holder:
    """Who may do what: actions by repository; the empty name stands for all of them and for the catalog."""

    name: str
    actions: Mapping[str, frozenset[str]]
    password: str = ""

    def allows(self, scope: Scope) -> bool:
        _, name, action = scope
        return action in self.actions.get("", frozenset()) or action in self.actions.get(name, frozenset())


def parse_scopes(text: str) -> list[Scope]:
    """Each action of `repository:team/image:pull,push registry:catalog:*`."""
    found = []
    for word in text.split():
        resource, _, actions = word.rpartition(":")
        kind, _, name = resource.partition(":")
        found += [(kind, name, action) for action in actions.split(",") if name and action]
    return found


class Tokens:
    """Makes and reads tokens. Lifetimes are in seconds, for tokens made from now on."""

    def __init__(self) -> None:
        self.access_lifetime = 75 * 60
        self.refresh_lifetime = 3 * 3600
        self.issued: list[str] = []
        self._key = uuid.uuid4().hex

    def revoke_all(self) -> None:
        """No token that was made so far counts any more."""
        self._key = uuid.uuid4().hex

    def refresh(self, holder: Holder, service: str) -> str:
        return self._make("refresh_token", holder.name, service, self.refresh_lifetime)

    def access(self, holder: Holder, service: str, scopes: Iterable[Scope]) -> str:
        """For those of `scopes` that the holder is allowed."""
        access = [{"Type": s[0], "Name": s[1], "Actions": [s[2]]} for s in scopes if holder.allows(s)]
        return self._make("access_token", holder.name, service, self.access_lifetime, access=access)

    def _make(self, kind: str, subject: str, service: str, lifetime: int, **claims: Any) -> str:
        now = int(time.time())
        known = {"sub": subject, "aud": service, "iss": "Azure Container Registry", "jti": uuid.uuid4().hex}
        times = {"iat": now, "nbf": now - 900, "exp": now + lifetime}
        token = jwt.encode({**known, **times, "grant_type": kind, **claims}, self._key, "HS256")
        self.issued.append(token)
        return token

    def read(self, kind: str, token: str, service: str) -> dict[str, Any] | None:
        """The claims of a token of this kind; nothing if it is expired, revoked or no token."""
        try:
            claims: dict[str, Any] = jwt.decode(token, self._key, ["HS256"], audience=service)
        except jwt.InvalidTokenError:
            return None
        return claims if claims["grant_type"] == kind else None
