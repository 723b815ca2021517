"""Authentication to a registry as pure rules: which header to send, which token to ask for, and from whom.

`Auth.authorize` is a generator: it yields the token requests to make and receives their answers, so the rules do
no I/O. Follows RFC 9110, section 11, and the token and OAuth2 flows that registries share.
"""

import base64
import json
import re
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field

from yarl import URL

from prefect_environments.core.distribution.credentials import Advice, Credentials
from prefect_environments.core.distribution.messages import TOKEN_STATUSES, Answer, Request, Scopes, form_request
from prefect_environments.core.errors import RegistryAuthError
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
_LONGEST = 24 * 3600.0  # a token that says more is believed no more than one that says nothing


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
    value: str
    expires: float
    born: float = 0.0

    @property
    def header(self) -> str:
        return f"Bearer {self.value}"


class Auth:
    """What is known about one registry's authentication: the scheme it asked for, and tokens by scope.

    `registry` is the registry's origin: credentials are only for it and for the realm that it names.
    """

    def __init__(
        self, registry: URL, *, clock: Callable[[], float] = time.monotonic, advice: Advice | None = None
    ) -> None:
        self.credentials: Credentials | None = None
        self.challenge: Challenge | None = None
        self._registry = registry
        self._clock = clock
        self._advice = advice
        self._tokens: dict[Scopes, _Token] = {}
        self._identity: _Token | None = None
        self._prefer_post: bool | None = None

    @property
    def user(self) -> str | None:
        """The user name for messages; `None` without credentials."""
        if self.credentials is None:
            return None
        return self.credentials.username or "(identity token)"

    @property
    def _is_exchanged(self) -> bool:
        return self.credentials is not None and self.credentials.exchange is not None

    def advice(self, scopes: Scopes) -> str | None:
        """What to do where these scopes are refused, if this registry has its own words for it."""
        return self._advice(scopes, self.credentials) if self._advice else None

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

    def is_since(self, header: str, moment: float) -> bool:
        """Whether the token of a header was given at `moment` or later."""
        return any(token.header == header and token.born >= moment for token in self._tokens.values())

    def _cached(self, scopes: Scopes) -> str | None:
        now = self._clock()
        self._tokens = {known: token for known, token in self._tokens.items() if token.expires > now}
        return next((token.header for known, token in self._tokens.items() if known >= scopes), None)

    def _basic_header(self) -> str | None:
        found = self.credentials
        if found is None or self._is_exchanged or not (found.username or found.password):
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

    def identity_token(self) -> Generator[Request, Answer, str | None]:
        """The identity token, if the credentials are one or are exchanged for one; one that lives is used again.

        Yields and raises as `authorize` does.
        """
        found = self.credentials
        if found is None or found.exchange is None or self.challenge is None:
            return found.identity_token if found else None
        if self._identity is None or self._identity.expires <= self._clock():
            answer = yield found.exchange.request(self._registry, self.challenge.parameters.get("service", ""))
            token, seconds = found.exchange.read(self._registry, answer)
            remember(token)
            self._identity = self._dated(token, seconds)
        return self._identity.value

    def _request_token(self, challenge: Challenge, scopes: Scopes) -> Generator[Request, Answer, _Token]:
        realm = self._realm(challenge)
        identity = yield from self.identity_token()
        answer = yield from self._token_answer(realm, challenge, scopes, identity)
        if answer.status == 401 and self._is_exchanged:  # its identity token was revoked before its time
            if self._identity is not None and self._identity.value == identity:
                self._identity = None  # else another request has seen it before, and has a new one
            identity = yield from self.identity_token()
            answer = yield from self._token_answer(realm, challenge, scopes, identity)
        return self._read_token(realm, scopes, answer)

    def _token_answer(
        self, realm: URL, challenge: Challenge, scopes: Scopes, identity: str | None
    ) -> Generator[Request, Answer, Answer]:
        """Ask by the usual method, and by the other one if the server does not have it (404, 405)."""
        service = challenge.parameters.get("service", "")
        can_post = self.credentials is not None
        post = can_post and (bool(identity) if self._prefer_post is None else self._prefer_post)
        answer = yield self._token_request(realm, service, scopes, identity, post)
        if answer.status in (404, 405) and can_post and not self._is_exchanged:
            post = not post
            answer = yield self._token_request(realm, service, scopes, identity, post)
        if answer.status == 200:
            self._prefer_post = post
        return answer

    def _token_request(self, realm: URL, service: str, scopes: Scopes, identity: str | None, post: bool) -> Request:
        wanted = format_scopes(scopes)
        step = f"token request for {' '.join(wanted) or 'sign-in'}"
        found = self.credentials
        if found is None or not post:
            headers = {"Accept": "application/json"}
            query = [("service", service)] if service else []
            url = realm.extend_query([*query, *(("scope", scope) for scope in wanted)])
            if found is not None:
                headers["Authorization"] = self._token_basic(found)
            return Request(
                method="GET",
                url=url,
                where=realm.authority,
                step=step,
                expect=TOKEN_STATUSES,
                headers=headers,
                is_token_request=True,
            )
        grant = {"grant_type": "password", "username": found.username, "password": found.password}
        if identity:
            grant = {"grant_type": "refresh_token", "refresh_token": identity}
        fields = {**grant, "service": service, "scope": " ".join(wanted), "client_id": CLIENT_ID}
        return form_request(realm, step, fields)

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
            advice = self.advice(scopes)
            then = f". {advice}" if advice else "; check user, password and the permission for it"
            raise RegistryAuthError(
                f"{self._registry.authority}: the token server {realm.authority} answered HTTP {answer.status} "
                f"to {who} for {asked}{then}",
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
            lifetime = None
        return self._dated(token, lifetime)

    def _dated(self, token: str, lifetime: float | None) -> _Token:
        # Renewed a little early: the token must still live when a request that starts now is checked.
        now, lifetime = self._clock(), lifetime or seconds_left(token) or DEFAULT_LIFETIME
        return _Token(token, now + lifetime - min(15.0, lifetime * 0.1), now)


def seconds_left(token: str) -> float | None:
    """What a JSON Web Token says that it lives, by this machine's clock; `None` where it says nothing usable.

    For caching only: its signature is the registry's business.
    """
    try:
        claims = token.split(".")[1]
        expires = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
        left = float(expires) - time.time()
    except (ValueError, RecursionError, LookupError, TypeError, OverflowError):
        return None
    return left if 0 < left < _LONGEST else None
