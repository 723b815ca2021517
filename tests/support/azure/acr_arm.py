"""A stand-in for the part of Azure Resource Manager that imports images into a Container Registry."""

import ssl
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from tests.support.azure.acr import AzureContainerRegistryServer
from tests.support.azure.entra import App, Entra
from tests.support.azure.server import StandIn

_REGISTRY = (
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.ContainerRegistry/registries/{name}"
)


class Manager(StandIn):
    """Imports from `source` into `target`; `allowed` may do it. `running` is how often a poll says "not yet"."""

    def __init__(
        self,
        entra: Entra,
        tls: ssl.SSLContext,
        source: AzureContainerRegistryServer,
        target: AzureContainerRegistryServer,
    ) -> None:
        super().__init__(tls)
        self.entra, self.source, self.target = entra, source, target
        self.allowed: set[str] = set()
        self.running = 1
        self.bodies: list[dict[str, Any]] = []
        self.places: list[str] = []

    def routes(self) -> Iterable[web.RouteDef]:
        self.entra.resources.add(self.url)
        return [web.post(f"{_REGISTRY}/importImage", self._import), web.get("/operations/{id}", self._poll)]

    def resume(self) -> None:
        super().resume()
        self.entra.resources.add(self.url)  # the port is known now

    def allow(self, app: App) -> None:
        self.allowed.add(app.oid)

    async def _import(self, request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        claims = self.entra.claims(token, self.url) if scheme == "Bearer" else None
        if claims is None:
            return _refusal(401, "AuthenticationFailed", "Authentication failed.")
        if claims["oid"] not in self.allowed:
            return _refusal(403, "AuthorizationFailed", f"The client '{claims['oid']}' does not have authorization")
        body = await request.json()
        self.bodies.append(body)
        self.places.append("/".join(request.match_info[key] for key in ("subscription", "group", "name")))
        name, _, digest = body["source"]["sourceImage"].partition("@")
        path, _, tag = name.partition(":")
        found = self.source.store.repositories.get(path)
        digest = digest or (found.tags[tag].digest if found and tag in found.tags else "")
        if found is None or digest not in found.manifests:
            return _refusal(404, "NotFound", "the source image does not exist")
        manifest = found.manifests[digest]
        for goal in [*body.get("targetTags", []), *body.get("untaggedTargetRepositories", [])]:
            where, _, wanted = goal.partition(":")
            own = self.target.store.make(where)
            if wanted in own.tags and body["mode"] == "NoForce":
                return _refusal(409, "Conflict", f"the tag {goal} exists")
            for blob in found.blobs:
                self.target.store.blob_file(blob).write_bytes(self.source.store.blob_file(blob).read_bytes())
                own.blobs.add(blob)
            self.target.store.put_manifest(where, wanted or digest, manifest.content, manifest.media_type)
        headers = {"Location": f"{self.url}/operations/1", "Retry-After": "1"}
        return web.Response(status=202, headers=headers)

    async def _poll(self, request: web.Request) -> web.Response:
        self.running -= 1
        if self.running >= 0:
            return web.Response(status=202, headers={"Location": f"{self.url}/operations/1", "Retry-After": "1"})
        return web.Response(status=200)


def _refusal(status: int, code: str, text: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": text}}, status=status)
