"""Requests and answers as values, so that the rules of authentication and of failures need no sockets."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.oci.repository import Traffic

DAMAGED = "try again; if it stays so, its storage or something on the way changes bytes: push the image again"
"""What to do about bytes that a registry gives and that are not what their digest says."""

CHECK_ADDRESS = "check that a registry answers at this address, and not a proxy's or a sign-in page"
"""What to do about answers that are none of a registry's."""

Scopes = frozenset[tuple[str, str]]
"""What a token must allow: pairs of a resource such as `repository:team/image`, and an action such as `pull`."""

ANSWER_LIMIT = 1024 * 1024
"""Largest body of an ordinary answer that is read, in bytes."""


def scopes_of(path: str, *actions: str) -> Scopes:
    """The scopes for `actions` (pull, push, delete) on one repository path."""
    return frozenset((f"repository:{path}", action) for action in actions)


class Body(Protocol):
    """A request body that can be sent more than once, from its start each time."""

    size: int
    failure: PrefectEnvironmentsError | None
    """Why the content itself could not be read, if so; retrying would not help."""

    def pieces(self, on_progress: Callable[[bool], None]) -> AsyncIterator[bytes]:
        """The bytes. `on_progress(False)` is called before each piece, `on_progress(True)` after the last."""


class Form:
    """A small urlencoded body."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._content = urlencode(fields).encode()
        self.size = len(self._content)
        self.failure: PrefectEnvironmentsError | None = None

    async def pieces(self, on_progress: Callable[[bool], None]) -> AsyncIterator[bytes]:
        on_progress(False)
        yield self._content
        on_progress(True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request, with the words that an error about it needs."""

    method: str
    url: URL
    where: str
    """`host/path` of the repository, or the host."""
    step: str
    """What the request is for, as in "manifest check of tag x"."""
    expect: frozenset[int] = frozenset({200})
    """Statuses that the caller handles; all others raise."""
    scopes: Scopes = frozenset()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    limit: int = ANSWER_LIMIT
    traffic: tuple[Traffic, ...] = ()
    is_token_request: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response that was read whole."""

    status: int
    headers: CIMultiDictProxy[str] = field(default_factory=lambda: CIMultiDictProxy(CIMultiDict[str]()))
    body: bytes = b""


TOKEN_STATUSES = frozenset(range(200, 600)) - {408, 429, 500, 502, 503, 504}
"""What a token request has an answer for; after the others it is made again."""


def form_request(url: URL, step: str, fields: Mapping[str, str]) -> Request:
    """A token request that posts a form."""
    return Request(
        method="POST",
        url=url,
        where=url.authority,
        step=step,
        expect=TOKEN_STATUSES,
        headers={"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"},
        body=Form(fields),
        is_token_request=True,
    )
