"""A stand-in for the local endpoints that give managed identities their tokens: a VM's IMDS, and App Service's."""

import time
import uuid
from collections.abc import Iterable, Mapping

from aiohttp import web

from tests.support.azure.entra import App, Entra
from tests.support.azure.server import StandIn


class ManagedIdentity(StandIn):
    """The machine's identities: `system` if it has one of its own, and those assigned to it by their client id."""

    def __init__(self, entra: Entra, *, system: App | None = None, assigned: Iterable[App] = ()) -> None:
        super().__init__()
        self.entra, self.system = entra, system
        self.assigned = {app.client_id: app for app in assigned}
        self._header = uuid.uuid4().hex

    @property
    def virtual_machine(self) -> Mapping[str, str]:
        """Environment variables that make the SDK take this for the metadata service of a virtual machine."""
        return {"AZURE_POD_IDENTITY_AUTHORITY_HOST": self.url}

    @property
    def app_service(self) -> Mapping[str, str]:
        """Environment variables of an App Service or Container Apps container."""
        return {"IDENTITY_ENDPOINT": f"{self.url}/msi/token", "IDENTITY_HEADER": self._header}

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.get("/metadata/identity/oauth2/token", self._metadata_service),
            web.get("/msi/token", self._app_service),
        ]

    async def _metadata_service(self, request: web.Request) -> web.Response:
        if request.headers.get("Metadata") != "true":
            return _refusal("invalid_request", "Required metadata header not specified")
        return self._token(request)

    async def _app_service(self, request: web.Request) -> web.Response:
        if request.headers.get("X-IDENTITY-HEADER") != self._header:
            return _refusal("unauthorized_client", "X-IDENTITY-HEADER is wrong", 401)
        return self._token(request)

    def _token(self, request: web.Request) -> web.Response:
        wanted, resource = request.query.get("client_id"), request.query.get("resource", "")
        app = self.assigned.get(wanted) if wanted else self.system
        if app is None or not app.enabled:
            return _refusal("invalid_request", "Identity not found")
        if resource not in self.entra.resources:
            return _refusal("invalid_resource", "AADSTS500011: The resource principal was not found in the tenant")
        answer = {
            "access_token": self.entra.issue(app, resource),
            "client_id": app.client_id,
            "expires_in": str(self.entra.lifetime),
            "expires_on": str(int(time.time()) + self.entra.lifetime),
            "resource": resource,
            "token_type": "Bearer",
        }
        return web.json_response(answer)


def _refusal(error: str, text: str, status: int = 400) -> web.Response:
    return web.json_response({"error": error, "error_description": text}, status=status)
