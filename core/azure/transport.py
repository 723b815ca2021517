"""The HTTP transport of Azure's clients, which trusts a private certificate authority where one is named."""

import ssl
from typing import TYPE_CHECKING, Any

from prefect_environments.core.errors import DefinitionError

if TYPE_CHECKING:
    from azure.core.pipeline.transport import RequestsTransport


def client_options(ca_file: str | None, retries: int) -> dict[str, Any]:
    """Keyword arguments for any client or credential of the SDK. Raises `DefinitionError` for an unusable file."""
    options: dict[str, Any] = {"retry_total": retries, "connection_timeout": 10, "read_timeout": 30}
    if ca_file is not None:
        options["transport"] = _trusting(ca_file, options)
    return options


def _trusting(ca_file: str, options: dict[str, Any]) -> "RequestsTransport":
    """A transport that trusts the authorities of a PEM file in addition to the usual ones."""
    from azure.core.pipeline.transport import RequestsTransport  # noqa: PLC0415
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
    timeouts = {name: options[name] for name in ("connection_timeout", "read_timeout")}
    return RequestsTransport(session=session, **timeouts)
