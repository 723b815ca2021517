"""Azure Resource Manager's side of ACR Tasks, through Azure's own SDK, which is loaded when it is needed.

The SDK is synchronous, as everywhere with Azure here: calls are made in threads.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

from prefect_environments.core.azure.credentials import token_credential
from prefect_environments.core.azure.failures import (
    asked_host,
    connection_failure,
    error_body,
    is_sign_in,
    sign_in_failure,
)
from prefect_environments.core.azure.transport import client_options
from prefect_environments.core.build.acr_tasks.settings import TasksSettings
from prefect_environments.core.concurrency import settled
from prefect_environments.core.errors import (
    BuildError,
    EngineUnavailable,
    NotFound,
    RegistryAuthError,
    RegistryError,
    RegistryUnreachable,
)
from prefect_environments.core.redact import remember

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError
    from azure.mgmt.containerregistrytasks import ContainerRegistryTasksMgmtClient

_T = TypeVar("_T")
_ROLE = "Container Registry Tasks Contributor"
_CLEANUP = 30.0  # seconds for a run that was scheduled while nobody waited any more to be cancelled
_ENDED = frozenset({"Succeeded", "Failed", "Canceled", "Error", "Timeout"})


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands (Azure REST API, "Runs - Get")."""

    id: str
    status: str
    """Queued, Started, Running, Succeeded, Failed, Canceled, Error or Timeout."""
    error: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of the images that it pushed, by `repository:tag`."""

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDED

    @classmethod
    def of(cls, found: Any) -> "Run":
        """Read the SDK's model. Raises `LookupError` for one that names no run."""
        known = found.properties
        images = {
            f"{image.repository}:{image.tag}": image.digest for image in known.output_images or [] if image.digest
        }
        status, name = getattr(known.status, "value", known.status), known.run_id or found.name
        if not status or not name:
            raise LookupError("a run without its id or status")
        return cls(str(name), str(status), str(known.run_error_message or ""), images)


class TasksClient:
    """The calls that a build needs. Their errors are `RegistryAuthError` (who lacks what), `NotFound`,
    `RegistryUnreachable`, `RegistryError` for what is no answer of Azure's, and `BuildError` for a refused request;
    `EngineUnavailable` if the SDK is not installed."""

    def __init__(self, settings: TasksSettings) -> None:
        self._settings = settings
        self._sdk = _open(settings)
        self._where = (settings.resource_group, settings.registry)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *unused: object) -> None:
        await asyncio.to_thread(self._sdk.close)

    async def source_upload(self) -> tuple[str, str]:
        """A signed address to send a packed context to, and the place of it for a run."""
        ask = self._sdk.registries.get_build_source_upload_url
        url, place = await self._call(
            "listBuildSourceUploadUrl", ask, read=lambda found: (found.upload_url, str(found.relative_path))
        )
        return _signed(url), place

    async def schedule(self, request: Mapping[str, Any]) -> Run:
        """Start a run. One that is cancelled meanwhile is cancelled there, too."""
        asked = self._call("scheduleRun", self._sdk.registries.schedule_run, dict(request), read=Run.of)
        return await settled(asked, _CLEANUP, self.cancel)

    async def run(self, run: Run) -> Run:
        """The run as it stands now."""
        return await self._call("runs/read", self._sdk.runs.get, run.id, read=Run.of)

    async def log_url(self, run: Run) -> str:
        """A signed address of the run's log."""
        ask = self._sdk.runs.get_log_sas_url
        return _signed(await self._call("runs/listLogSasUrl", ask, run.id, read=lambda found: found.log_link))

    async def cancel(self, run: Run) -> None:
        """Stop a run; one that has ended stays as it is."""
        await self._call("runs/cancel", self._sdk.runs.cancel, run.id, read=lambda _: None)

    async def _call(self, action: str, method: Callable[..., Any], *args: object, read: Callable[[Any], _T]) -> _T:
        from azure.core.exceptions import AzureError, DeserializationError  # noqa: PLC0415

        try:
            return read(await asyncio.to_thread(method, *self._where, *args))
        except AzureError as error:
            raise _explained(error, action, self._settings) from None
        except (json.JSONDecodeError, DeserializationError, AttributeError, TypeError, LookupError) as error:
            # the SDK takes any answer for Azure's
            raise RegistryError(
                f"{self._settings}: {action} was answered with what is none of Azure Resource Manager's answers "
                f"({type(error).__name__}). Check resource_manager of the AzureCredentials block, and the proxies"
            ) from None
        except (OSError, ValueError) as error:  # of what signs in: a token file that is not there, a wrong authority
            said = sign_in_failure(error, self._settings.identity)
            raise RegistryAuthError(f"{self._settings}: {action}: {said}", status=401) from None


def _open(settings: TasksSettings) -> "ContainerRegistryTasksMgmtClient":
    try:
        from azure.mgmt.containerregistrytasks import ContainerRegistryTasksMgmtClient  # noqa: PLC0415
    except ImportError:
        raise EngineUnavailable(
            "builder='acr-tasks' needs Azure's SDK for ACR Tasks, which is not installed: "
            "pip install 'prefect-environments[azure-tasks]'"
        ) from None
    identity = settings.identity
    endpoint = identity.cloud.resource_manager
    return ContainerRegistryTasksMgmtClient(
        token_credential(identity),
        settings.subscription_id,
        endpoint,
        credential_scopes=[f"{endpoint}/.default"],
        **client_options(identity.ca_file, identity.retries),
    )


def _signed(url: str | None) -> str:
    """A signed address, which opens what it names to whoever reads it: never shown."""
    if not url:
        raise BuildError("ACR Tasks gave no address for the build's context or log; try again, and see Azure's status")
    query = urlsplit(url).query
    for secret in (url, query, *parse_qs(query).get("sig", ()), *re.findall(r"sig=([^&]+)", query)):
        remember(secret)
    return url


def _explained(error: "AzureError", action: str, settings: TasksSettings) -> RegistryError | BuildError:
    """What Azure Resource Manager's refusal means and what to do about it."""
    host = urlsplit(settings.identity.cloud.resource_manager).netloc.lower()
    where, who = f"{settings}: {action}", settings.identity
    if is_sign_in(error, host):
        return RegistryAuthError(f"{where}: {sign_in_failure(error, who)}", status=401)
    if reason := connection_failure(error):
        return RegistryUnreachable(f"{where} at {asked_host(error) or host}: {reason}")
    status, body = getattr(error, "status_code", None), error_body(error)
    code, said = str(body.get("code", "")), " ".join(str(body.get("message", "")).split())[:500]
    registry = (
        f"{settings.registry} (resource group {settings.resource_group}, subscription {settings.subscription_id})"
    )
    kinds: dict[int | None, tuple[type[RegistryError], str]] = {
        401: (RegistryAuthError, f"the token of {who} was refused: revoked, or the subscription is another tenant's"),
        403: (RegistryAuthError, f"{who} lacks the role {_ROLE!r}, or Contributor, on {registry}. It was said: {said}"),
        404: (NotFound, f"there is no {registry}, or {who} may not see it; correct the registry's settings. {said}"),
        429: (
            RegistryUnreachable,
            f"throttled, also after {who.retries} retries: try again later, or build less at once",
        ),
    }
    if status is not None and status >= 500:
        text = f"answered HTTP status {status}, also after {who.retries} retries; see Azure's status. {said}"
        return RegistryUnreachable(f"{where}: {text}", status=status, code=code)
    if status in kinds:
        kind, text = kinds[status]
        return kind(f"{where}: {text}", status=status, code=code)
    return BuildError(f"{where} was refused with HTTP status {status} ({code or type(error).__name__}): {said}")
