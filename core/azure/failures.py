"""What Azure's errors mean and what to do about them, in words that hold no token and no secret."""

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefect_environments.core.redact import redact

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError

    from prefect_environments.core.azure.credentials import Identity

_SIGN_IN_CODE = re.compile(r"AADSTS(\d+)")
_OTHER_TENANT = re.compile(r"not configured to acquire tokens for tenant ([0-9A-Za-z.-]*[0-9A-Za-z])")
_CALLER = re.compile(r"\b(appid|oid)=([0-9A-Fa-f-]{36})")
_NO_ANSWER = ("Max retries exceeded", "HTTPSConnection", "CERTIFICATE_VERIFY_FAILED")  # requests', which identity hides
_LONGEST = 300

_SIGN_IN_ADVICE = {
    "7000215": "the client secret is wrong: use the secret's value, not its id",
    "7000222": "the client secret has expired: make a new one for the application",
    "700016": "the tenant has no application with this client id",
    "90002": "there is no such tenant in this cloud: check tenant_id and cloud",
    "7000112": "the application is disabled",
    "700027": "the certificate is not registered with the application, or is another one",
    "70021": "the application has no federated credential for this issuer, subject and audience",
    "700213": "the application has no federated credential for this issuer, subject and audience",
    "500011": "the tenant does not know the service that the token is for: check the cloud's endpoints",
}
"""By the number of Entra ID's error ("AADSTS error codes")."""


def sign_in_failure(error: Exception, identity: "Identity") -> str:
    """Why Entra ID, or the machine's identity endpoint, gave `identity` no token.

    Beside an `AzureError`, `get_token` raises `OSError` for a file of a workload identity that cannot be read, and
    `ValueError` for an authority that is none.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{identity} cannot sign in: {error.strerror}: {error.filename}"
    message = first_line(error)
    code = _SIGN_IN_CODE.search(message)
    known = _SIGN_IN_ADVICE.get(code[1]) if code else None
    if known and code:
        return f"{identity} got no token: {known} (AADSTS{code[1]})"
    if other := _OTHER_TENANT.search(message):
        return f"{identity} got no token: what was asked belongs to tenant {other[1]}; set tenant_id to that"
    if any(word in message for word in _NO_ANSWER) and identity.kind != "managed-identity":
        return f"{identity} got no token from {identity.cloud.authority_host}: {_unreachable(message)}"
    kinds = {
        "default-chain": "none of its members works here: set a managed identity, a service principal or `az login`",
        "managed-identity": "check that this machine has that identity",
        "workload-identity": "check its service account and its token file",
        "service-principal": "check tenant_id, client_id and its secret or certificate",
    }
    return f"{identity} got no token: {kinds[identity.kind]}. It was said: {message}"


def is_sign_in(error: "AzureError", host: str) -> bool:
    """Whether the error came while asking for a token, rather than from `host`."""
    from azure.core.exceptions import ClientAuthenticationError  # noqa: PLC0415

    asked = asked_host(error)
    return isinstance(error, ClientAuthenticationError) and asked != host


def asked_host(error: "AzureError") -> str | None:
    """`host[:port]` of the request that failed, as far as that is known."""
    request = getattr(getattr(error, "response", None), "request", None)
    request = request or getattr(getattr(error, "inner_exception", None), "request", None)
    url = getattr(request, "url", None)
    return urlsplit(url).netloc.lower() if isinstance(url, str) else None


def connection_failure(error: "AzureError") -> str | None:
    """Why there was no answer at all; `None` if there was one."""
    from azure.core.exceptions import ServiceRequestError, ServiceResponseError  # noqa: PLC0415

    if not isinstance(error, ServiceRequestError | ServiceResponseError):
        return None
    return _unreachable(f"{error} timed out" if isinstance(error, ServiceResponseError) else str(error))


def _unreachable(text: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not trusted: set ca_file, or REQUESTS_CA_BUNDLE, to the authority that signed it"
    if "NameResolution" in text or "resolve" in text:
        return "its name is unknown here: check the name, the cloud and this network's DNS"
    if "timed out" in text:
        return "it did not answer in time, or broke off: try again, and check firewalls and private endpoints"
    return "it could not be reached: check the address, this network, proxies and private endpoints"


def error_body(error: "AzureError") -> dict[str, Any]:
    """The `error` object of the service's answer (code, message, innererror); empty if it has none."""
    try:
        found = getattr(error, "response", None).json()["error"]  # type: ignore[union-attr]
    except Exception:  # whatever an answer that is no such JSON raises
        return {}
    return found if isinstance(found, dict) else {}


def caller(message: str) -> str:
    """The ids by which a service names the caller it refused, such as ` (appid …, oid …)`; empty if it names none."""
    found = dict(_CALLER.findall(message))
    return f" ({', '.join(f'{key} {value}' for key, value in found.items())})" if found else ""


def first_line(error: Exception) -> str:
    """What an error says, on one line and not too long."""
    text = redact(" ".join(str(getattr(error, "message", "") or error).split()))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
