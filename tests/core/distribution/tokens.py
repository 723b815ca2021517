"""A token server for registries that want Bearer tokens, with a log of what it was asked."""

import base64
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

USER, PASSWORD, IDENTITY = "tess", "pass-word-77ab1", "identity-token-5d0c"
SERVICE, ISSUER = "registry under test", "tests"


def make_key(folder: Path) -> None:
    """Write `token.key`, and `token.crt`, the certificate that the registry trusts."""
    import datetime

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    (folder / "token.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "token.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@dataclass
class TokenServer:
    """Signs tokens for `USER`: everything; for nobody: pull. `methods` is what it has, `lifetime` is in seconds."""

    folder: Path
    methods: frozenset[str] = frozenset({"GET", "POST"})
    lifetime: int = 300
    valid_for: int = 300
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        """One token request, by the query of a GET or the form of a POST."""
        fields: Mapping[str, object] = request.query
        scopes = " ".join(request.query.getall("scope", []))
        if request.method == "POST":
            fields = await request.post()
            scopes = str(fields.get("scope", ""))
        self.asked.append((request.method, scopes))
        if request.method not in self.methods:
            return web.Response(status=405)
        user = self._user(request, fields)
        if user is None:
            return web.json_response({"details": "incorrect username or password"}, status=401)
        token = self._token(user, scopes)
        return web.json_response({"token": token, "access_token": token, "expires_in": self.lifetime})

    def _user(self, request: web.Request, fields: Mapping[str, object]) -> str | None:
        header = request.headers.get("Authorization", "")
        if header.startswith("Basic "):
            user, _, password = base64.b64decode(header[6:]).decode().partition(":")
            return user if (user, password) == (USER, PASSWORD) else None
        if fields.get("grant_type") == "refresh_token":
            return USER if fields.get("refresh_token") == IDENTITY else None
        if fields.get("grant_type") == "password":
            return USER if (fields.get("username"), fields.get("password")) == (USER, PASSWORD) else None
        return ""

    def _token(self, user: str, scopes: str) -> str:
        access = []
        for scope in scopes.split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = [action for action in actions.split(",") if user or action == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        certificate = x509.load_pem_x509_certificate((self.folder / "token.crt").read_bytes())
        chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        claims = {"iss": ISSUER, "sub": user, "aud": SERVICE, "nbf": now - 90, "iat": now, "access": access}
        claims |= {"exp": now + self.valid_for, "jti": uuid.uuid4().hex}
        return jwt.encode(claims, (self.folder / "token.key").read_text(), "RS256", headers={"x5c": chain})
