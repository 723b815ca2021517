"""What the SDK's errors about a Container Registry mean, as this package's own."""

from typing import TYPE_CHECKING

from prefect_environments.core.azure.failures import connection_failure, error_body
from prefect_environments.core.distribution.failures import TRANSIENT, error_of, tidy
from prefect_environments.core.errors import NotFound, RegistryAuthError, RegistryError, RegistryUnreachable

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError


def explain(error: "AzureError", where: str, step: str, advice: str) -> RegistryError:
    """The error for a request that failed; `advice` is for a missing permission.

    Of the answer only the registry's own code and message are repeated: the SDK's text may quote a whole page.
    """
    head = f"{where}: {step}"
    if unreached := connection_failure(error):
        return RegistryUnreachable(f"{head} got no answer: {unreached}")
    status: int | None = getattr(error, "status_code", None)
    code, message = error_of(_body(error))
    if code is None and (own := error_body(error)):  # Resource Manager's form
        code, message = str(own.get("code") or ""), str(own.get("message") or "")
    said = f": {tidy(' '.join((code or '', message)))}" if code or message else ""
    text = f"{head} failed with HTTP {status}{said}"
    kind, then = RegistryError, "Check that login_server is an Azure Container Registry"
    if status in (401, 403):
        kind, then = RegistryAuthError, advice
    elif status == 404:
        kind, then = NotFound, "Check the repository's path and the tag or digest"
    elif status == 405:
        then = "It, or something in it, is locked, as registered versions may be; unlock it first if nobody needs it"
    elif status in TRANSIENT:
        kind, then = RegistryUnreachable, "It was tried again without success; try later"
    elif status is None:
        text = f"{head} failed ({type(error).__name__})"
    return kind(f"{text}. {then}", status=status, code=code)


def _body(error: "AzureError") -> bytes:
    try:
        return str(error.response.text()).encode()  # type: ignore[attr-defined]
    except Exception:  # whatever there is in place of an answer that was read
        return b""
