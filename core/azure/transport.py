"""The HTTP transport of Azure's clients: bounded waiting, and private certificate authorities where one is named."""

import ssl
from typing import TYPE_CHECKING, Any

from prefect_environments.core.errors import DefinitionError

if TYPE_CHECKING:
    from azure.core.pipeline.transport import RequestsTransport
    from requests import Session


_LONGEST_WAIT = 60.0
"""Seconds. The SDK waits as long as a server's `Retry-After` says, were it a day, and nothing can interrupt it."""


def client_options(ca_file: str | None, retries: int) -> dict[str, Any]:
    """Keyword arguments for any client or credential of the SDK. Raises `DefinitionError` for an unusable file."""
    timeouts = {"connection_timeout": 10, "read_timeout": 30}
    return {"retry_total": retries, **timeouts, "transport": _transport(ca_file, timeouts)}


def _transport(ca_file: str | None, timeouts: dict[str, int]) -> "RequestsTransport":
    from azure.core.pipeline.transport import RequestsTransport  # noqa: PLC0415

    class Transport(RequestsTransport):  # type: ignore[misc]  # untyped
        def sleep(self, duration: float) -> None:
            super().sleep(min(duration, _LONGEST_WAIT))

    return Transport(session=_trusting(ca_file), **timeouts) if ca_file is not None else Transport(**timeouts)


def _trusting(ca_file: str) -> "Session":
    """A session that trusts the authorities of a PEM file in addition to the usual ones."""
    from requests import Session  # noqa: PLC0415
    from requests.adapters import HTTPAdapter  # noqa: PLC0415

    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DefinitionError(f"ca_file {ca_file} cannot be used: {reason}; it is a PEM file of authorities") from None

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs, ssl_context=context)

        def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
            return super().proxy_manager_for(*args, **kwargs, ssl_context=context)

    session = Session()
    session.mount("https://", Adapter())
    return session
