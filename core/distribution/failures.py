"""Where foreign failures become errors of the tree: HTTP statuses, and what aiohttp and the system raise."""

import json
import re
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import aiohttp
from yarl import URL

from prefect_environments.core.distribution.auth import format_scopes
from prefect_environments.core.distribution.messages import Answer, Request
from prefect_environments.core.errors import NotFound, RegistryAuthError, RegistryError, RegistryUnreachable
from prefect_environments.core.redact import redact

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

RETRY_AFTER_LIMIT = 60.0
"""Longest wait that a registry can ask for, in seconds."""

_MESSAGE_LIMIT = 300
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a1-\uffff]+")


class Again(Exception):
    """A step failed in a way that may pass; never leaves this package. `error` is what to raise in the end."""

    def __init__(self, error: RegistryError, retry_after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after


def error_of(body: bytes) -> tuple[str | None, str]:
    """The registry's own code and message (distribution-spec, "Error Codes"); `None` and "" if it sent no such."""
    try:
        errors = json.loads(body)["errors"]
        first = errors[0]
        code, message = first.get("code"), first.get("message")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None, ""
    return (code if isinstance(code, str) and code else None), (message if isinstance(message, str) else "")


def tidy(text: str) -> str:
    """Somebody else's text for a message: secrets masked before it is cut, one line, at most 300 characters,
    without its full stop."""
    return _UNPRINTABLE.sub(" ", redact(text)).strip()[:_MESSAGE_LIMIT].rstrip(".")


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for (RFC 9110, section 10.2.3), at most 60; `None` if unreadable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), RETRY_AFTER_LIMIT)
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_LIMIT)


_RIGHTS = "Check the credentials and the user's rights"
_ADVICE = {
    404: "Check the registry's address, the repository's path and the tag or digest",
    405: "The registry does not allow this operation: it is switched off, or the repository, tag or manifest is "
    "locked (on Azure Container Registry, AzureContainerRegistry.unlock opens it)",
    413: "The registry, or a proxy before it, limits the size of uploads; ask its operator for a higher limit",
    429: "The registry limits the rate of requests; sign in or try again later",
}


def refused(request: Request, answer: Answer, user: str | None, advice: str | None = None) -> RegistryError:
    """The error for a status that the caller did not expect; `advice` is for where a permission is missing."""
    status = answer.status
    code, message = error_of(answer.body)
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    said = f": {tidy(' '.join((code or '', message)))}" if code or message else ""
    kind = tidy(answer.headers.get("Content-Type", ""))
    if not said and answer.body and "json" not in kind:
        said = f" (the answer is {kind or 'of no type'}, not a registry's; something else may answer at this address)"
    then = _advice(request, status, user, advice)
    text = f"{request.where}: {request.step} failed with HTTP {status}{phrase}{said}. {then}"
    error: type[RegistryError] = RegistryError
    if status in (401, 403):
        error = RegistryAuthError
    elif status == 404:
        error = NotFound
    elif status in TRANSIENT:
        error = RegistryUnreachable
    return error(text, status=status, code=code)


def _advice(request: Request, status: int, user: str | None, advice: str | None) -> str:
    if status in (401, 403):
        who = f"User {user!r} was signed in" if user else "No credentials were used"
        needs = " ".join(format_scopes(request.scopes)) or "sign-in"
        return f"{who}; the permission that it needs: {needs}. {advice or _RIGHTS}"
    if status in _ADVICE:
        return _ADVICE[status]
    if status >= 500:
        return "The registry itself failed; try again later, or look into its log"
    if status == 400 and request.url.scheme == "http":
        return "If the registry serves https only, set plain_http=False"
    return "The request follows the distribution specification; look into the registry's log"


def unreachable(request: Request, url: URL, error: BaseException) -> RegistryUnreachable:
    """The error for a request that got no answer, or half of one."""
    cause = tidy(str(getattr(error, "os_error", error))) or type(error).__name__
    head = f"{request.where}: {request.step} got no answer from {url.authority}: "
    if isinstance(error, TimeoutError):
        return RegistryUnreachable(f"{head}timed out. Check the network, proxies, and that the registry is up")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return RegistryUnreachable(
            f"{head}its TLS certificate is not trusted ({cause}). For a private authority set ca_file or SSL_CERT_FILE"
        )
    if isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return RegistryUnreachable(
            f"{head}TLS failed ({cause}). If the registry speaks plain http, set plain_http=True"
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return RegistryUnreachable(f"{head}the host name is not known ({cause}). Check the registry's address")
    return RegistryUnreachable(f"{head}{cause}. Check the address, the network, proxies, and that the registry is up")


def is_final(error: BaseException) -> bool:
    """Whether trying again cannot help: TLS does not come to trust a certificate by itself."""
    return isinstance(error, aiohttp.ClientSSLError | ssl.SSLError | aiohttp.InvalidURL | ValueError)
