"""A stand-in for Azure Container Registry: its tokens, the OCI distribution API, and `/acr/v1` for metadata.

The real SDK client, docker, skopeo and our own client talk to it. It answers as ACR does where that differs from
docker-registry: relative `Location`s with a state, no resuming of broken uploads, locks, referrers, `Link` paging.
"""

import base64
import re
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiohttp import BasicAuth, web

from tests.support.azure import acr_content, acr_metadata
from tests.support.azure.acr_store import Refused, Store
from tests.support.azure.acr_tokens import ANONYMOUS, EVERYTHING, ROLES, Holder, Tokens, parse_scopes
from tests.support.azure.entra import App, Entra
from tests.support.azure.server import StandIn

AUDIENCE = "https://containerregistry.azure.net"
TOKEN_USER = "00000000-0000-0000-0000-000000000000"
"""The user name that goes with a refresh token as password, as `az acr login` does."""

_SIGN_IN = "authentication required, visit https://aka.ms/acr/authorization for more information."


class AzureContainerRegistryServer(StandIn):
    """An empty registry, http or (with a TLS context) https. Identities are those of `entra`.

    `tokens` has the lifetimes and revokes; `holders` are users with passwords; `anonymous_pull` lets everybody pull;
    `redirect_blobs` sends readers of blobs to another host, as ACR does.
    """

    def __init__(self, entra: Entra, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.entra, self.store, self.tokens = entra, Store(folder), Tokens()
        self.holders: dict[str, Holder] = {}
        self.anonymous_pull = False
        self.redirect_blobs = False
        entra.resources.add(AUDIENCE)

    @property
    def service(self) -> str:
        return self.address

    def grant(self, app: App, *roles: str) -> None:
        """Give an identity roles on the whole registry: AcrPull, AcrPush, AcrDelete, Owner."""
        actions = frozenset[str]().union(*(ROLES[role] for role in roles))
        self.holders[app.oid] = Holder(app.oid, {"": actions})

    def add_admin(self, name: str, password: str) -> None:
        """Turn the admin user on."""
        self.holders[name] = Holder(name, EVERYTHING, password)

    def add_token(self, name: str, password: str, **actions: str) -> None:
        """A repository-scoped token; `actions` by repository, as in `**{"team/image": "pull,push"}`."""
        scoped = {repository: frozenset(words.split(",")) for repository, words in actions.items()}
        self.holders[name] = Holder(name, scoped, password)

    def refresh_token(self, app: App) -> str:
        """What `az acr login --expose-token` gives: the password of `TOKEN_USER`."""
        return self.tokens.refresh(self.holders[app.oid], self.service)

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/oauth2/exchange", self._answered(self._exchange)),
            web.get("/oauth2/token", self._answered(self._token_by_get)),
            web.post("/oauth2/token", self._answered(self._token_by_post)),
            web.get("/storage/{digest}", self._storage),
            web.route("*", "/v2/{path:.*}", self._answered(self._content)),
            web.route("*", "/acr/v1/{path:.*}", self._answered(self._metadata)),
        ]

    def error(self, request: web.Request, status: int) -> web.Response:
        return refusal(Refused(status, "TOOMANYREQUESTS" if status == 429 else "UNKNOWN", "injected"))

    def _answered(self, handler: Any) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                found: web.StreamResponse = await handler(request)
            except Refused as refused:
                return refusal(refused)
            return found

        return handle

    async def _exchange(self, request: web.Request) -> web.Response:
        """An Entra token becomes a refresh token."""
        form = await request.post()
        if form.get("grant_type") != "access_token" or form.get("service") != self.service:
            raise Refused(400, "UNAUTHORIZED", "grant_type or service is not supported")
        claims = self.entra.claims(str(form.get("access_token", "")), AUDIENCE)
        holder = self.holders.get(claims["oid"]) if claims else None
        if holder is None:
            raise Refused(401, "UNAUTHORIZED", _SIGN_IN)
        return web.json_response({"refresh_token": self.tokens.refresh(holder, self.service)})

    async def _token_by_post(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        if form.get("service") != self.service:
            raise Refused(400, "UNAUTHORIZED", "service is another one's")
        if form.get("grant_type") == "refresh_token":
            holder = self._by_refresh_token(form.get("refresh_token", ""))
        elif form.get("grant_type") == "password":
            holder = self._by_password(form["username"], form.get("password", "")) if form.get("username") else None
            holder = holder or (None if form.get("username") else self._anybody())
        else:
            raise Refused(400, "UNAUTHORIZED", "grant_type is not supported")
        return self._access(holder, form.get("scope", ""))

    async def _token_by_get(self, request: web.Request) -> web.Response:
        holder = self._by_basic(request) if "Authorization" in request.headers else self._anybody()
        return self._access(holder, " ".join(request.query.getall("scope", [])))

    def _access(self, holder: Holder | None, scopes: str) -> web.Response:
        if holder is None:
            raise Refused(401, "UNAUTHORIZED", _SIGN_IN)
        return web.json_response({"access_token": self.tokens.access(holder, self.service, parse_scopes(scopes))})

    def _anybody(self) -> Holder | None:
        return Holder("", ANONYMOUS) if self.anonymous_pull else None

    def _by_refresh_token(self, token: str) -> Holder | None:
        claims = self.tokens.read("refresh_token", token, self.service)
        return self.holders.get(claims["sub"]) if claims else None

    def _by_password(self, name: str, password: str) -> Holder | None:
        holder = self.holders.get(name)
        return holder if holder and holder.password and holder.password == password else None

    def _by_basic(self, request: web.Request) -> Holder | None:
        try:
            login = BasicAuth.decode(request.headers["Authorization"])
        except ValueError:
            return None
        if login.login == TOKEN_USER:
            return self._by_refresh_token(login.password)
        return self._by_password(login.login, login.password)

    def _check(self, request: web.Request, needed: str) -> None:
        """Raises `Refused` with a challenge unless the request may do all that `needed` says."""
        scopes = parse_scopes(needed)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        extra = ""
        if scheme.lower() == "basic" and (holder := self._by_basic(request)) is not None:
            if all(holder.allows(scope) for scope in scopes):
                return
            extra = ',error="insufficient_scope"'
        claims = self.tokens.read("access_token", token, self.service) if scheme.lower() == "bearer" else None
        if claims is not None:
            access = claims["access"]
            have = {(one["Type"], one["Name"], action) for one in access for action in one["Actions"]}
            if have.issuperset(scopes):
                return
            extra = ',error="insufficient_scope"'
        scope = f',scope="{needed}"' if needed else ""
        challenge = f'Bearer realm="{self.url}/oauth2/token",service="{self.service}"{scope}{extra}'
        raise Refused(401, "UNAUTHORIZED", _SIGN_IN, **{"WWW-Authenticate": challenge})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        target = acr_content.parse(request)
        try:
            self._check(request, target.scopes)
        except Refused:
            async for _ in request.content.iter_any():
                pass  # ACR reads a body before it answers
            raise
        return await acr_content.answer(self, target, request)

    async def _metadata(self, request: web.Request) -> web.StreamResponse:
        target = acr_metadata.parse(request)
        self._check(request, target.scopes)
        return await acr_metadata.answer(self, target, request)

    async def _storage(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:  # Azure Storage refuses a signed address that comes with a header
            return web.Response(status=400, text="InvalidAuthenticationInfo")
        if request.query.get("sig") != signature(request.match_info["digest"]):
            return web.Response(status=403, text="AuthenticationFailed")
        return web.FileResponse(self.store.blob_file(request.match_info["digest"]))


def signature(digest: str) -> str:
    """What makes an address of the storage behind the registry a signed one."""
    return base64.urlsafe_b64encode(digest[::-1].encode()).decode().rstrip("=")


def page(request: web.Request, items: list[str]) -> tuple[list[str], dict[str, str]]:
    """The asked page of sorted names, and the `Link` header to the next one."""
    last = request.query.get("last", "")
    items = [item for item in items if item > last]
    size = int(request.query.get("n", 100))
    if len(items) <= size:
        return items, {}
    query = re.sub(r"(^|&)last=[^&]*", "", request.query_string).lstrip("&")
    link = f"{request.path}?last={items[size - 1]}{'&' if query else ''}{query}"
    return items[:size], {"Link": f'<{link}>; rel="next"'}


def refusal(refused: Refused) -> web.Response:
    body = {"errors": [{"code": refused.code, "message": str(refused), "detail": None}]}
    return web.json_response(body, status=refused.status, headers=refused.headers)
