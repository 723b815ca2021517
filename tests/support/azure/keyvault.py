"""A stand-in for Azure Key Vault (secrets, REST API 7.x) with Azure's role-based access control."""

import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiohttp import web

from tests.support.azure.entra import App, Entra
from tests.support.azure.server import StandIn

Bundle = dict[str, Any]

ROLES: Mapping[str, frozenset[str]] = {
    "Key Vault Reader": frozenset({"readMetadata"}),
    "Key Vault Secrets User": frozenset({"readMetadata", "getSecret"}),
    "Key Vault Secrets Officer": frozenset({"readMetadata", "getSecret", "setSecret", "delete", "recover", "purge"}),
}
LIMIT = 25 * 1024
"""The longest value, in bytes."""


class Refused(Exception):
    """The vault's answer to a request that it does not grant."""

    def __init__(self, status: int, code: str, text: str, inner: str = "") -> None:
        super().__init__(text)
        self.status, self.code, self.inner = status, code, inner


class VaultServer(StandIn):
    """One vault. `roles` are by client id; `firewall` shuts everybody out; the SDK wants https.

    `host` is the name that clients use; the token's audience is what follows its first label, as in Azure.
    """

    def __init__(self, entra: Entra, tls: ssl.SSLContext, name: str = "") -> None:
        super().__init__(tls)
        self.entra = entra
        self.roles: dict[str, str] = {}
        self.firewall = False
        self.secrets: dict[str, dict[str, Bundle]] = {}
        self.deleted: dict[str, dict[str, Bundle]] = {}
        self._name = name

    @property
    def host(self) -> str:
        return f"{self._name}:{self.port}" if self._name else self.address

    @property
    def vault_url(self) -> str:
        return f"https://{self.host}"

    @property
    def resource(self) -> str:
        """The audience that tokens must have. At 127.0.0.1:PORT it is https://0.0.1:PORT."""
        return f"https://{self.host.partition('.')[2]}"

    @property
    def suffix(self) -> str:
        """What follows a vault's name in this cloud."""
        return self.host.partition(".")[2]

    def resume(self) -> None:
        super().resume()
        self.entra.resources.add(self.resource)

    def put(self, name: str, value: str, **attributes: Any) -> str:
        """Set a secret behind the clients' backs; gives the version. `attributes`: enabled, exp, nbf."""
        version, now = uuid.uuid4().hex, int(time.time())
        own = {"enabled": True, "created": now, "updated": now, "recoveryLevel": "Recoverable", "recoverableDays": 90}
        bundle = {"value": value, "id": f"{self.vault_url}/secrets/{name}/{version}", "attributes": own | attributes}
        self.secrets.setdefault(name, {})[version] = bundle
        return version

    def grant(self, app: App, role: str) -> None:
        """Give an application a role on this vault."""
        assert role in ROLES
        self.roles[app.client_id] = role

    def routes(self) -> Iterable[web.RouteDef]:
        def route(method: str, path: str, action: str, answer: Callable[..., Any]) -> web.RouteDef:
            async def handle(request: web.Request) -> web.Response:
                try:
                    return await self._checked(request, action, answer)
                except Refused as refused:
                    return _refusal(refused)

            return web.route(method, path, handle)

        return [
            route("GET", "/secrets", "readMetadata", self._list),
            route("GET", "/secrets/{name}/versions", "readMetadata", self._versions),
            route("PUT", "/secrets/{name}", "setSecret", self._set),
            route("DELETE", "/secrets/{name}", "delete", self._delete),
            route("GET", "/deletedsecrets/{name}", "readMetadata", self._get_deleted),
            route("DELETE", "/deletedsecrets/{name}", "purge", self._purge),
            route("POST", "/deletedsecrets/{name}/recover", "recover", self._recover),
            route("GET", "/secrets/{name}{version:(/[^/]*)?}", "getSecret", self._get),
            route("PATCH", "/secrets/{name}{version:(/[^/]*)?}", "setSecret", self._update),
        ]

    def error(self, request: web.Request, status: int) -> web.Response:
        return _refusal(Refused(status, "Throttled" if status == 429 else "InternalServerError", "injected"))

    async def _checked(self, request: web.Request, action: str, answer: Callable[..., Any]) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        claims = self.entra.claims(token, self.resource) if scheme == "Bearer" else None
        if claims is None:  # with or without a body: a client probes without one
            challenge = f'Bearer authorization="{self.entra.url}/{self.entra.tenant}", resource="{self.resource}"'
            answered = _refusal(Refused(401, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token."))
            answered.headers["WWW-Authenticate"] = challenge
            return answered
        if "api-version" not in request.query:
            raise Refused(400, "BadParameter", "api-version must be specified")
        if self.firewall:
            raise Refused(
                403,
                "Forbidden",
                "Client address is not authorized and caller is not a trusted service.",
                "ForbiddenByFirewall",
            )
        if action not in ROLES.get(self.roles.get(claims["appid"], ""), frozenset()):
            text = (
                "Caller is not authorized to perform action on resource.\r\n"
                f"Caller: appid={claims['appid']};oid={claims['oid']};iss={claims['iss']}\r\n"
                f"Action: 'Microsoft.KeyVault/vaults/secrets/{action}/action'"
            )
            raise Refused(403, "Forbidden", text, "ForbiddenByRbac")
        data = await request.json() if request.can_read_body else {}
        found = answer(request, data)
        return web.Response(status=204) if found is None else web.json_response(found)

    def _of(self, request: web.Request) -> Bundle:
        name, version = request.match_info["name"], request.match_info["version"].strip("/")
        versions = self.secrets.get(name, {})
        if not versions or (version and version not in versions):
            text = f"A secret with (name/id) {name} was not found in this key vault. If you recently deleted this "
            raise Refused(404, "SecretNotFound", f"{text}secret you may be able to recover it.")
        return versions[version] if version else list(versions.values())[-1]

    def _get(self, request: web.Request, data: Bundle) -> Bundle:
        bundle = self._of(request)
        if not bundle["attributes"]["enabled"]:
            text = "Operation get is not allowed on a disabled secret."
            raise Refused(403, "Forbidden", text, "SecretDisabled")
        return bundle

    def _set(self, request: web.Request, data: Bundle) -> Bundle:
        name = request.match_info["name"]
        if name in self.deleted:
            text = f"Secret {name} is currently in a deleted but recoverable state, and its name cannot be reused."
            raise Refused(409, "Conflict", text, "ObjectIsDeletedButRecoverable")
        if len(str(data.get("value", "")).encode()) > LIMIT:
            raise Refused(400, "BadParameter", "The secret's value is too long")
        given = {key: value for key, value in (data.get("attributes") or {}).items() if value is not None}
        version = self.put(name, data["value"], **given)
        return self.secrets[name][version]

    def _update(self, request: web.Request, data: Bundle) -> Bundle:
        bundle = self._of(request)
        given = {key: value for key, value in (data.get("attributes") or {}).items() if value is not None}
        bundle["attributes"] |= {**given, "updated": int(time.time())}
        return _without_value(bundle)

    def _list(self, request: web.Request, data: Bundle) -> Bundle:
        newest = {name: list(versions.values())[-1] for name, versions in sorted(self.secrets.items())}
        items = [{**_without_value(b), "id": f"{self.vault_url}/secrets/{name}"} for name, b in newest.items()]
        return self._page(request, items)

    def _versions(self, request: web.Request, data: Bundle) -> Bundle:
        return self._page(
            request, [_without_value(b) for b in self.secrets.get(request.match_info["name"], {}).values()]
        )

    def _page(self, request: web.Request, items: list[Bundle]) -> Bundle:
        size, start = int(request.query.get("maxresults", 25)), int(request.query.get("$skiptoken", 0))
        rest = None
        if start + size < len(items):
            version = request.query["api-version"]
            rest = f"{self.vault_url}{request.path}?api-version={version}&$skiptoken={start + size}&maxresults={size}"
        return {"value": items[start : start + size], "nextLink": rest}

    def _delete(self, request: web.Request, data: Bundle) -> Bundle:
        name = request.match_info["name"]
        if name not in self.secrets:
            raise Refused(404, "SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault.")
        self.deleted[name] = self.secrets.pop(name)
        return self._deleted(name)

    def _get_deleted(self, request: web.Request, data: Bundle) -> Bundle:
        return self._deleted(request.match_info["name"])

    def _deleted(self, name: str) -> Bundle:
        if name not in self.deleted:
            raise Refused(404, "SecretNotFound", f"Deleted Secret not found: {name}")
        now = int(time.time())
        times = {"deletedDate": now, "scheduledPurgeDate": now + 90 * 86400}
        bundle = _without_value(list(self.deleted[name].values())[-1])
        return {**bundle, "recoveryId": f"{self.vault_url}/deletedsecrets/{name}", **times}

    def _purge(self, request: web.Request, data: Bundle) -> None:
        self._deleted(request.match_info["name"])
        del self.deleted[request.match_info["name"]]

    def _recover(self, request: web.Request, data: Bundle) -> Bundle:
        name = request.match_info["name"]
        self._deleted(name)
        self.secrets[name] = self.deleted.pop(name)
        return _without_value(list(self.secrets[name].values())[-1])


def _without_value(bundle: Bundle) -> Bundle:
    return {key: value for key, value in bundle.items() if key != "value"}


def _refusal(refused: Refused) -> web.Response:
    error: dict[str, Any] = {"code": refused.code, "message": str(refused)}
    if refused.inner:
        error["innererror"] = {"code": refused.inner}
    return web.json_response({"error": error}, status=refused.status)
