"""ACR's own API (`/acr/v1`): listings with times and sizes, locks, untagging, deleting repositories."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.support.azure.acr_store import Kept, Refused, Repository

if TYPE_CHECKING:
    from tests.support.azure.acr import AzureContainerRegistryServer as Server

_TARGET = re.compile(r"/acr/v1/(?P<name>.+?)(?:/_(?P<kind>tags|manifests)(?:/(?P<reference>[^/]+))?)?")
_ACTIONS = {"GET": "metadata_read", "PATCH": "metadata_write", "DELETE": "delete"}


@dataclass(frozen=True)
class Target:
    """What a request is about, and the scopes that it needs."""

    scopes: str
    name: str = ""
    kind: str = ""
    reference: str = ""


def parse(request: web.Request) -> Target:
    """Read path and method. Raises `Refused`."""
    if request.path == "/acr/v1/_catalog":
        return Target("registry:catalog:*", kind="catalog")
    match = _TARGET.fullmatch(request.path)
    if not match or request.method not in _ACTIONS:
        raise Refused(405, "UNSUPPORTED", "the operation is unsupported")
    scopes = f"repository:{match['name']}:{_ACTIONS[request.method]}"
    return Target(scopes, match["name"], match["kind"] or "", match["reference"] or "")


async def answer(server: "Server", target: Target, request: web.Request) -> web.Response:
    """Do what an authorized request asks. Raises `Refused`."""
    if target.kind == "catalog":
        return _page(request, {name: name for name in server.store.repositories}, "repositories", {})
    repository = server.store.repository(target.name)
    about = {"registry": server.service, "imageName": target.name}
    if request.method == "DELETE":
        return _delete(server, target)
    if target.kind and not target.reference:
        return _list(target, request, repository, about)
    kept: Kept | None = repository
    if target.kind == "tags":
        kept = repository.tags.get(target.reference)
    elif target.kind == "manifests":
        kept = repository.manifests.get(target.reference)
    if kept is None:
        raise Refused(404, f"{target.kind[:-1].upper()}_UNKNOWN", f"{target.reference} is unknown")
    if request.method == "PATCH":
        kept.change(await request.json())
    if target.kind == "tags":
        return web.json_response({**about, "tag": _tag(repository, target.reference)})
    if target.kind == "manifests":
        return web.json_response({**about, "manifest": _manifest(repository, target.reference)})
    counts = {"manifestCount": len(repository.manifests), "tagCount": len(repository.tags)}
    return web.json_response({**about, **_times(repository), **counts})


def _delete(server: "Server", target: Target) -> web.Response:
    if target.kind == "tags" and target.reference:
        server.store.delete_tag(target.name, target.reference)
        return web.Response(status=202)
    if target.kind:
        raise Refused(405, "UNSUPPORTED", "the operation is unsupported")
    return web.json_response(server.store.delete_repository(target.name), status=202)


def _list(target: Target, request: web.Request, repository: Repository, about: dict[str, str]) -> web.Response:
    if target.kind == "manifests":
        manifests = {digest: _manifest(repository, digest) for digest in repository.manifests}
        return _page(request, manifests, "manifests", about)
    wanted = request.query.get("digest")
    tags = {name: _tag(repository, name) for name, tag in repository.tags.items() if wanted in (None, tag.digest)}
    return _page(request, tags, "tags", about)


def _page(request: web.Request, items: dict[str, Any], key: str, about: dict[str, str]) -> web.Response:
    from tests.support.azure.acr import page

    names, headers = page(request, sorted(items))
    return web.json_response({**about, key: [items[name] for name in names]}, headers=headers)


def _times(kept: Kept) -> dict[str, Any]:
    return {"createdTime": kept.created, "lastUpdateTime": kept.updated, "changeableAttributes": kept.attributes}


def _tag(repository: Repository, name: str) -> dict[str, Any]:
    tag = repository.tags[name]
    return {"name": name, "digest": tag.digest, "signed": False, **_times(tag)}


def _manifest(repository: Repository, digest: str) -> dict[str, Any]:
    manifest = repository.manifests[digest]
    parsed = manifest.parsed
    sizes = [part["size"] for part in [*parsed.get("layers", []), *([parsed["config"]] if "config" in parsed else [])]]
    return {
        "digest": digest,
        "imageSize": sum(sizes),
        "mediaType": manifest.media_type,
        "configMediaType": (parsed.get("config") or {}).get("mediaType"),
        "architecture": "amd64",
        "os": "linux",
        "tags": repository.tags_of(digest),
        **_times(manifest),
    }
