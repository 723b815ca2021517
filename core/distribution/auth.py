"""Authentication to a registry as pure rules: which header to send, which token to ask for, and from whom.

`Auth.authorize` is a generator: it yields the token requests to make and receives their answers, so the rules do
no I/O. Follows RFC 9110, section 11, and the token and OAuth2 flows that registries share.
"""

import base64
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlencode

from yarl import URL

from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.messages import Answer, Request, Scopes
from prefect_environments.core.errors import PrefectEnvironmentsError, RegistryAuthError
from prefect_environments.core.redact import remember

CLIENT_ID = "prefect-environments"
DEFAULT_LIFETIME = 60.0
"""Seconds that a token lives if its server does not say."""

_WORDS = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_PARAMETER = re.compile(rf'({_WORDS})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]*))')
_SCHEME = re.compile(rf"({_WORDS})(?=[ \t,]|$)")
_WORD = re.compile(r"[^ \t,]*")
_ESCAPE = re.compile(r"\\(.)")
_SENDABLE = re.compile(r"[\x21-\x7e]+")
_HEADER_LIMIT = 16 * 1024


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a `WWW-Authenticate` header: its scheme in lower case and its parameters."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """All challenges of all `WWW-Authenticate` headers, in order. What cannot be read is skipped; never raises."""
    found: list[Challenge] = []
    for value in values:
        text, position = value[:_HEADER_LIMIT], 0
        current: Challenge | None = None
        while position < len(text):
            if text[position] in " \t,":
                position += 1
            elif current is not None and (match := _PARAMETER.match(text, position)):
                quoted, plain = match[2], match[3]
                current.parameters.setdefault(match[1].lower(), plain if quoted is None else _ESCAPE.sub(r"\1", quoted))
                position = match.end()
            elif match := _SCHEME.match(text, position):
                current = Challenge(match[1].lower())
                found.append(current)
                position = match.end()
            else:
                position = max(position + 1, _WORD.match(text, position).end())  # type: ignore[union-attr]
    return found


def parse_scopes(text: str) -> Scopes:
    """The scopes of a challenge's `scope` parameter; what is not `resource:actions` is skipped."""
    pairs = (word.rpartition(":") for word in text.split())
    return frozenset(
        (resource, action) for resource, _, actions in pairs if resource for action in actions.split(",") if action
    )


def format_scopes(scopes: Scopes) -> list[str]:
    """One `repository:path:pull,push` a resource, sorted."""
    actions: dict[str, list[str]] = {}
    for resource, action in sorted(scopes):
        actions.setdefault(resource, []).append(action)
    return [f"{resource}:{','.join(found)}" for resource, found in actions.items()]


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    expires: float
    born: float = 0.0


class _Form:
    """A small urlencoded body."""

    def __init__(self, fields: dict[str, str]) -> None:
        self._content = urlencode(fields).encode()
        self.size = len(self._content)
        self.failure: PrefectEnvironmentsError | None = None

    async def pieces(self, on_progress: Callable[[bool], None]) -> AsyncIterator[bytes]:
        on_progress(False)
        yield self._content
        on_progress(True)


class Auth:
    """What is known about one registry's authentication: the scheme it asked for, and tokens by scope.

    `registry` is the registry's origin: credentials are only for it and for the realm that it names.
    """

    def __init__(self, registry: URL, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.credentials: Credentials | None = None
        self.challenge: Challenge | None = None
        self._registry = registry
        self._clock = clock
        self._tokens: dict[Scopes, _Token] = {}
        self._prefer_post: bool | None = None

    @property
    def user(self) -> str | None:
        """The user name for messages; `None` without credentials."""
        if self.credentials is None:
            return None
        return self.credentials.username or "(identity token)"

    def learn(self, values: Iterable[str]) -> Scopes:
        """Take in the challenges of a 401, and give the scopes that it asks for.

        Bearer is preferred to Basic; without a usable challenge nothing changes.
        """
        challenges = parse_challenges(values)
        bearer = [c for c in challenges if c.scheme == "bearer" and c.parameters.get("realm")]
        basic = [c for c in challenges if c.scheme == "basic"]
        for challenge in (bearer or basic)[:1]:
            self.challenge = challenge
            return parse_scopes(challenge.parameters.get("scope", ""))
        return frozenset()

    def now(self) -> float:
        """The time by the clock that tokens are measured with, in seconds."""
        return self._clock()

    def authorize(
        self, scopes: Scopes, refused: str | None = None, sent: float = float("-inf")
    ) -> Generator[Request, Answer, str | None]:
        """The `Authorization` header for a request that needs `scopes`; `None` if there is none to send.

        `refused` is the header that just got a 401 in a request of the time `sent`: it is never given again, nor is
        another token for these scopes from before that time. Yields the token requests to make.
        Raises `RegistryAuthError` if the token server refuses, or the realm is unsafe.
        """
        if self.challenge is None:
            return None
        if self.challenge.scheme == "basic":
            header = self._basic_header()
            return None if header == refused else header
        if refused is not None:
            self._tokens = {
                known: token
                for known, token in self._tokens.items()
                if token.header != refused and not (known >= scopes and token.born <= sent)
            }
        if (cached := self._cached(scopes)) is not None:
            return cached  # asked for wider before, or renewed by another request meanwhile
        token = yield from self._request_token(self.challenge, scopes)
        self._tokens[scopes] = token
        return token.header

    def _cached(self, scopes: Scopes) -> str | None:
        now = self._clock()
        self._tokens = {known: token for known, token in self._tokens.items() if token.expires > now}
        return next((token.header for known, token in self._tokens.items() if known >= scopes), None)

    def _basic_header(self) -> str | None:
        found = self.credentials
        if found is None or not (found.username or found.password):
            return None
        encoded = base64.b64encode(f"{found.username}:{found.password}".encode()).decode()
        remember(encoded)
        return f"Basic {encoded}"

    def _realm(self, challenge: Challenge) -> URL:
        text = challenge.parameters.get("realm", "")
        try:
            realm = URL(text)
            host, scheme = realm.host, realm.scheme
        except ValueError:
            host, scheme = None, ""
        if not host or scheme not in ("http", "https") or realm.user or realm.password:
            raise RegistryAuthError(
                f"{self._registry.authority} names a token server that cannot be used: realm {text!r:.200}; "
                "ask the registry's operator to correct its realm"
            )
        if scheme == "http" and self._registry.scheme == "https":
            raise RegistryAuthError(
                f"{self._registry.authority} is reached by https, but its token server by plain http: {text!r:.200}; "
                "no credentials are sent over clear text. Ask the registry's operator to correct its realm"
            )
        return realm

    def _request_token(self, challenge: Challenge, scopes: Scopes) -> Generator[Request, Answer, _Token]:
        """Ask by the usual method, and by the other one if the server does not have it (404, 405)."""
        realm = self._realm(challenge)
        service = challenge.parameters.get("service", "")
        can_post = self.credentials is not None
        post = can_post and (
            self._prefer_post
            if self._prefer_post is not None
            else bool(self.credentials and self.credentials.identity_token)
        )
        answer = yield self._token_request(realm, service, scopes, post)
        if answer.status in (404, 405) and can_post:
            post = not post
            answer = yield self._token_request(realm, service, scopes, post)
        if answer.status == 200:
            self._prefer_post = post
        return self._read_token(realm, scopes, answer)

    def _token_request(self, realm: URL, service: str, scopes: Scopes, post: bool) -> Request:
        wanted = format_scopes(scopes)
        headers = {"Accept": "application/json"}
        step = f"token request for {' '.join(wanted) or 'sign-in'}"
        where, expect = realm.authority, frozenset(range(200, 600)) - {408, 429, 500, 502, 503, 504}
        found = self.credentials
        if found is None or not post:
            query = [("service", service)] if service else []
            url = realm.extend_query([*query, *(("scope", scope) for scope in wanted)])
            if found is not None:
                headers["Authorization"] = self._token_basic(found)
            return Request(
                method="GET", url=url, where=where, step=step, expect=expect, headers=headers, is_token_request=True
            )
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        form = _Form({**self._grant(found), "service": service, "scope": " ".join(wanted), "client_id": CLIENT_ID})
        return Request(
            method="POST",
            url=realm,
            where=where,
            step=step,
            expect=expect,
            headers=headers,
            body=form,
            is_token_request=True,
        )

    @staticmethod
    def _grant(found: Credentials) -> dict[str, str]:
        if found.identity_token:
            return {"grant_type": "refresh_token", "refresh_token": found.identity_token}
        return {"grant_type": "password", "username": found.username, "password": found.password}

    @staticmethod
    def _token_basic(found: Credentials) -> str:
        secret = found.password or found.identity_token or ""
        encoded = base64.b64encode(f"{found.username}:{secret}".encode()).decode()
        remember(encoded)
        return f"Basic {encoded}"

    def _read_token(self, realm: URL, scopes: Scopes, answer: Answer) -> _Token:
        asked = " ".join(format_scopes(scopes)) or "sign-in"
        if answer.status != 200:
            who = f"user {self.user!r}" if self.credentials else "anonymous access (no credentials)"
            raise RegistryAuthError(
                f"{self._registry.authority}: the token server {realm.authority} answered HTTP {answer.status} "
                f"to {who} for {asked}; check user, password and the permission for it",
                status=answer.status,
            )
        try:
            data = json.loads(answer.body)
        except (ValueError, RecursionError):
            data = None
        data = data if isinstance(data, dict) else {}
        token = data.get("token") or data.get("access_token")
        if not isinstance(token, str) or not _SENDABLE.fullmatch(token):
            raise RegistryAuthError(
                f"{self._registry.authority}: the token server {realm.authority} gave no usable token for {asked}; "
                "its answer must be a JSON object with token or access_token"
            )
        remember(token)
        lifetime = data.get("expires_in")
        if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or not lifetime > 0:
            lifetime = DEFAULT_LIFETIME
        # Renewed a little early: the token must still live when a request that starts now is checked.
        now = self._clock()
        return _Token(f"Bearer {token}", now + lifetime - min(15.0, lifetime * 0.1), now)
