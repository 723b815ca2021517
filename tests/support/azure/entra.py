"""A stand-in for Microsoft Entra ID: tenants, applications, and tokens for what proves to be one of them."""

import ssl
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.azure.server import StandIn

FEDERATED_AUDIENCE = "api://AzureADTokenExchange"
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass
class App:
    """An application (or managed identity) of the tenant; `expired` says that its secret is too old."""

    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    oid: str = field(default_factory=lambda: str(uuid.uuid4()))
    secret: str = field(default_factory=lambda: f"app-secret-{uuid.uuid4().hex}")
    certificate: x509.Certificate | None = None
    federated_subject: str = ""
    enabled: bool = True
    expired: bool = False


class Refused(Exception):
    """Entra's answer to a request that it does not grant."""

    def __init__(self, status: int, error: str, code: int, text: str) -> None:
        super().__init__(text)
        self.status, self.error, self.code = status, error, code


class Entra(StandIn):
    """One tenant. `lifetime` is what tokens live from now on, in seconds, and `announced` what it says that they live,
    if that is another number; `resources` are the audiences it knows."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(tls)
        self.tenant = str(uuid.uuid4())
        self.lifetime = 3600
        self.announced: int | None = None
        self.resources: set[str] = set()
        self.apps: dict[str, App] = {}
        self.issued: list[str] = []
        self._key = uuid.uuid4().hex
        self._revoked: set[str] = set()

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.get("/common/discovery/instance", self._instance),
            web.get("/{tenant}/v2.0/.well-known/openid-configuration", self._configuration),
            web.post("/{tenant}/oauth2/v2.0/token", self._answer_token),
        ]

    def register(self, app: App | None = None) -> App:
        """Make an application known; gives it."""
        app = app or App()
        self.apps[app.client_id] = app
        return app

    def service_account_token(self, app: App) -> str:
        """What a Kubernetes cluster that the tenant trusts writes into a pod for its service account."""
        claims = {"iss": "https://cluster.example.com", "sub": app.federated_subject, "aud": FEDERATED_AUDIENCE}
        return jwt.encode({**claims, "exp": int(time.time()) + 3600}, _cluster(), "RS256")

    def issue(self, app: App, audience: str) -> str:
        """A token of `app` for `audience`, as the token endpoint gives it."""
        now = int(time.time())
        claims = {
            "aud": audience,
            "iss": f"https://sts.example.com/{self.tenant}/",
            "tid": self.tenant,
            "appid": app.client_id,
            "oid": app.oid,
            "iat": now,
            "nbf": now - 5,
            "exp": now + self.lifetime,
            "jti": uuid.uuid4().hex,
        }
        token = jwt.encode(claims, self._key, "HS256")
        self.issued.append(token)
        return token

    def claims(self, token: str, audience: str) -> Mapping[str, Any] | None:
        """What a token for `audience` says; nothing if it is none of ours, expired or revoked."""
        try:
            claims: dict[str, Any] = jwt.decode(token, self._key, ["HS256"], audience=audience)
        except jwt.InvalidTokenError:
            return None
        return None if claims["appid"] in self._revoked else claims

    def revoke(self, app: App) -> None:
        """End all tokens of an application, and give it no more."""
        self._revoked.add(app.client_id)
        app.enabled = False

    async def _instance(self, request: web.Request) -> web.Response:
        endpoint = f"{self.url}/{self.tenant}/v2.0/.well-known/openid-configuration"
        return web.json_response({"tenant_discovery_endpoint": endpoint, "metadata": []})

    async def _configuration(self, request: web.Request) -> web.Response:
        if request.match_info["tenant"] != self.tenant:
            return _refusal(Refused(400, "invalid_tenant", 90002, "Tenant not found. Check the tenant ID"))
        base = f"{self.url}/{self.tenant}"
        return web.json_response(
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
            }
        )

    async def _answer_token(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        try:
            app = self._proven(request, form)
            audience = self._audience(form)
        except Refused as refused:
            return _refusal(refused)
        token = self.issue(app, audience)
        return web.json_response(
            {"token_type": "Bearer", "expires_in": self.announced or self.lifetime, "access_token": token}
        )

    def _audience(self, form: Mapping[str, str]) -> str:
        audience = form.get("scope", "").split(" ")[0].removesuffix("/.default")
        if audience not in self.resources:
            text = f"The resource principal named {audience} was not found in the tenant"
            raise Refused(400, "invalid_resource", 500011, text)
        return audience

    def _proven(self, request: web.Request, form: Mapping[str, str]) -> App:
        if request.match_info["tenant"] != self.tenant:
            raise Refused(400, "invalid_request", 90002, "Tenant not found. Check the tenant ID")
        if form.get("grant_type") != "client_credentials":
            raise Refused(400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type")
        app = self.apps.get(form.get("client_id", ""))
        if app is None:
            raise Refused(400, "unauthorized_client", 700016, "Application was not found in the directory")
        if not app.enabled:
            raise Refused(401, "unauthorized_client", 7000112, f"Application '{app.client_id}' is disabled")
        if "client_assertion" in form:
            self._check_assertion(app, form)
        elif form.get("client_secret") != app.secret:
            raise Refused(401, "invalid_client", 7000215, "Invalid client secret provided")
        elif app.expired:
            raise Refused(401, "invalid_client", 7000222, "The provided client secret keys are expired")
        return app

    def _check_assertion(self, app: App, form: Mapping[str, str]) -> None:
        if form.get("client_assertion_type") != _ASSERTION:
            raise Refused(400, "invalid_request", 900144, "client_assertion_type is missing")
        assertion = form["client_assertion"]
        try:
            header = jwt.get_unverified_header(assertion)
            if "x5t" in header or "x5t#S256" in header:
                self._check_certificate(app, assertion, header)
            else:
                claims = jwt.decode(assertion, _cluster().public_key(), ["RS256"], audience=FEDERATED_AUDIENCE)
                if not app.federated_subject or claims["sub"] != app.federated_subject:
                    raise Refused(401, "invalid_client", 700213, "No matching federated identity record found")
        except jwt.InvalidTokenError:
            raise Refused(401, "invalid_client", 700027, "Client assertion failed signature validation") from None

    def _check_certificate(self, app: App, assertion: str, header: Mapping[str, Any]) -> None:
        if app.certificate is None:
            raise Refused(401, "invalid_client", 700027, "The certificate is not registered on application")
        algorithm = hashes.SHA256() if "x5t#S256" in header else hashes.SHA1()
        thumbprint = jwt.utils.base64url_encode(app.certificate.fingerprint(algorithm)).decode().rstrip("=")
        if thumbprint != str(header.get("x5t#S256") or header.get("x5t")).rstrip("="):
            raise Refused(401, "invalid_client", 700027, "The certificate is not registered on application")
        endpoint = f"{self.url}/{self.tenant}/oauth2/v2.0/token"
        key: Any = app.certificate.public_key()
        claims = jwt.decode(assertion, key, ["RS256", "PS256"], audience=endpoint)
        if claims["sub"] != app.client_id:
            raise Refused(401, "invalid_client", 700021, "The assertion's subject is another application")


@cache
def _cluster() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _refusal(refused: Refused) -> web.Response:
    body = {
        "error": refused.error,
        "error_description": f"AADSTS{refused.code}: {refused} Trace ID: {uuid.uuid4()}",
        "error_codes": [refused.code],
        "correlation_id": str(uuid.uuid4()),
    }
    return web.json_response(body, status=refused.status)
