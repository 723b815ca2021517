"""The OCI distribution API (`/v2`) of the Container Registry stand-in."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from tests.support.azure.acr_store import Refused, Repository, Upload

if TYPE_CHECKING:
    from tests.support.azure.acr import AzureContainerRegistryServer as Server

_TARGET = re.compile(
    r"/v2/(?P<name>.+?)/(?:(?P<uploads>blobs/uploads)/?(?P<upload>[^/]*)|blobs/(?P<blob>sha256:[0-9a-f]{64})"
    r"|manifests/(?P<manifest>[^/]+)|(?P<tags>tags/list)|referrers/(?P<referrers>sha256:[0-9a-f]{64}))"
)
_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True)
class Target:
    """What a request is about, and the scopes that it needs."""

    kind: str
    scopes: str = ""
    name: str = ""
    reference: str = ""


def parse(request: web.Request) -> Target:
    """Read path and method. Raises `Refused`."""
    if request.path == "/v2/":
        return Target("ping")
    if request.path == "/v2/_catalog":
        return Target("catalog", "registry:catalog:*")
    match = _TARGET.fullmatch(request.path)
    if not match:
        raise Refused(404, "NAME_INVALID", "invalid repository name")
    name = match["name"]
    if match["uploads"]:
        scopes = f"repository:{name}:pull,push"
        if source := request.query.get("from"):
            scopes += f" repository:{source}:pull"
        return Target("upload" if match["upload"] else "uploads", scopes, name, match["upload"])
    action = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(request.method, "pull,push")
    if match["tags"]:
        return Target("tags", f"repository:{name}:pull", name)
    kind = next(kind for kind in ("blob", "manifest", "referrers") if match[kind])
    return Target(kind, f"repository:{name}:{action}", name, match[kind])


async def answer(server: "Server", target: Target, request: web.Request) -> web.StreamResponse:
    """Do what an authorized request asks. Raises `Refused`."""
    if target.kind == "ping":
        return web.json_response({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})
    if target.kind in ("uploads", "upload", "manifest"):
        sending = {"uploads": _begin, "upload": _continue, "manifest": _manifest}[target.kind]
        return await sending(server, target, request)
    reading: Mapping[str, Callable[..., web.StreamResponse]] = {"blob": _blob, "referrers": _referrers}
    return reading.get(target.kind, _listing)(server, target, request)


def _listing(server: "Server", target: Target, request: web.Request) -> web.Response:
    from tests.support.azure.acr import page

    if target.kind == "catalog":
        names, headers = page(request, sorted(server.store.repositories))
        return web.json_response({"repositories": names}, headers=headers)
    names, headers = page(request, sorted(server.store.repository(target.name).tags))
    return web.json_response({"name": target.name, "tags": names}, headers=headers)


def _location(target: Target, identifier: str, upload: Upload) -> dict[str, str]:
    path = f"/v2/{target.name}/blobs/uploads/{identifier}?_nouploadcache=false&_state={upload.state}"
    return {"Location": path, "Range": f"0-{max(upload.size - 1, 0)}", "Docker-Upload-UUID": identifier}


def _created(target: Target, digest: str) -> web.Response:
    headers = {"Location": f"/v2/{target.name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return web.Response(status=201, headers=headers)


async def _begin(server: "Server", target: Target, request: web.Request) -> web.Response:
    store = server.store
    digest, source = request.query.get("mount", ""), request.query.get("from", "")
    if digest and source in store.repositories and digest in store.repositories[source].blobs:
        store.make(target.name).blobs.add(digest)
        return _created(target, digest)
    identifier = store.begin(target.name)
    upload = store.repository(target.name).uploads[identifier]
    if whole := request.query.get("digest"):  # all in one POST
        await _receive(upload, request)
        store.finish(target.name, identifier, whole)
        return _created(target, whole)
    return web.Response(status=202, headers=_location(target, identifier, upload))


async def _receive(upload: Upload, request: web.Request) -> None:
    upload.broken = True  # until all of the body is there
    with upload.file.open("ab") as file:
        async for piece in request.content.iter_any():
            upload.size += file.write(piece)
    upload.broken = False


async def _continue(server: "Server", target: Target, request: web.Request) -> web.Response:
    repository = server.store.repository(target.name)
    upload = repository.uploads.get(target.reference)
    if upload is None or upload.broken or request.query.get("_state") != upload.state:
        raise Refused(404, "BLOB_UPLOAD_INVALID", "blob upload invalid")
    if request.method == "GET":
        return web.Response(status=204, headers=_location(target, target.reference, upload))
    if request.method == "DELETE":
        repository.uploads.pop(target.reference).file.unlink()
        return web.Response(status=204)
    if (sent := request.headers.get("Content-Range")) and int(sent.partition("-")[0].split()[-1]) != upload.size:
        raise Refused(416, "RANGE_INVALID", "the piece does not follow the last one")
    await _receive(upload, request)
    upload.state = f"{upload.state[:24]}{upload.size:08x}"
    if request.method == "PATCH":
        return web.Response(status=202, headers=_location(target, target.reference, upload))
    digest = request.query.get("digest", "")
    server.store.finish(target.name, target.reference, digest)
    return _created(target, digest)


def _blob(server: "Server", target: Target, request: web.Request) -> web.StreamResponse:
    from tests.support.azure.acr import signature

    digest = target.reference
    repository = server.store.repository(target.name)
    if digest not in repository.blobs:
        raise Refused(404, "BLOB_UNKNOWN", "blob unknown to registry")
    if request.method == "DELETE":
        repository.blobs.remove(digest)
        return web.Response(status=202)
    if server.redirect_blobs and request.method == "GET":
        scheme = server.url.partition(":")[0]
        there = f"{scheme}://localhost:{server.port}/storage/{digest}?sig={signature(digest)}"
        return web.Response(status=307, headers={"Location": there})
    headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
    return web.FileResponse(server.store.blob_file(digest), headers=headers)


def _referrers(server: "Server", target: Target, request: web.Request) -> web.Response:
    repository = server.store.repositories.get(target.name, Repository())
    found, headers = repository.referrers(target.reference), {}
    if kind := request.query.get("artifactType"):
        found = [descriptor for descriptor in found if descriptor["artifactType"] == kind]
        headers["OCI-Filters-Applied"] = "artifactType"
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": found}
    return web.json_response(index, content_type=_INDEX, headers=headers)


async def _manifest(server: "Server", target: Target, request: web.Request) -> web.Response:
    store, reference = server.store, target.reference
    if request.method == "PUT":
        content = await request.read()
        if len(content) > _MANIFEST_LIMIT:
            raise Refused(413, "SIZE_INVALID", "the manifest is too large")
        digest, subject = store.put_manifest(target.name, reference, content, request.headers["Content-Type"])
        headers = {"Location": f"/v2/{target.name}/manifests/{digest}", "Docker-Content-Digest": digest}
        return web.Response(status=201, headers=headers | ({"OCI-Subject": subject} if subject else {}))
    if request.method == "DELETE":
        if ":" in reference:
            store.delete_manifest(target.name, reference)
        else:
            store.delete_tag(target.name, reference)
        return web.Response(status=202)
    repository = store.repository(target.name)
    found = repository.find(reference)
    if found is None:
        raise Refused(404, "MANIFEST_UNKNOWN", "manifest tagged by the reference is not found")
    manifest, tag = repository.manifests[found], repository.tags.get(reference)
    if any(not kept.attributes["readEnabled"] for kept in (repository, manifest, tag) if kept):
        raise Refused(405, "DENIED", "The operation is disallowed on this registry, repository or image.")
    headers = {"Docker-Content-Digest": found, "Content-Type": manifest.media_type}
    return web.Response(body=manifest.content, headers=headers)
