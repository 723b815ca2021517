"""From addresses and references to the stores behind them: a registry, or an image-layout folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_environments.core.distribution.credentials import Credentials, CredentialSource, DockerConfig
from prefect_environments.core.distribution.reference import Reference
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.repository import Repository, Store
from prefect_environments.core.registry_settings import LAYOUT_PREFIX, RegistrySettings
from prefect_environments.core.secrets import SecretStore

if TYPE_CHECKING:
    from prefect_environments.core.distribution.registry import Registry


@dataclass(frozen=True, slots=True)
class ImageLocation:
    """An image reference, taken apart: the store's address, the repository's path, a tag or digest."""

    address: str
    path: str
    identifier: str
    name: str
    """What a lock calls it: without digest, and without the folder of a layout, which is this machine's own."""

    @classmethod
    def parse(cls, text: str) -> "ImageLocation":
        """Read `registry.example.com/a/b:tag@sha256:…`, `python:3.12-slim` or `oci:<folder>:<name>`.

        Raises `DefinitionError`.
        """
        if not text.startswith(LAYOUT_PREFIX):
            found = Reference.parse(text)
            tag = found.tag or ("" if found.digest else "latest")
            return cls(found.host, found.path, found.identifier, f"{found.repository}{':' if tag else ''}{tag}")
        folder, _, name = text.removeprefix(LAYOUT_PREFIX).partition(":")
        if not folder or not name:
            raise DefinitionError(f"{text!r} must name a folder and an image in it: oci:<folder>:<name>")
        place = Path(folder).expanduser().absolute()
        repository, at, digest = name.partition("@")
        if at:
            return cls(f"{LAYOUT_PREFIX}{place}", repository, digest, repository)
        return cls(f"{LAYOUT_PREFIX}{place}", "", name, name)


async def open_store(settings: RegistrySettings, secrets: SecretStore) -> Store:
    """The store of an address, secret references resolved; close it after use."""
    if settings.folder is not None:
        return Layout(settings.folder)
    return open_registry(await settings.resolved(secrets))


def open_registry(settings: RegistrySettings) -> "Registry":
    """The registry of resolved settings: its user, else its identity on Azure, else what Docker's tools stored."""
    # an image-layout folder needs no HTTP client, which takes longer to load than a warm build takes
    from prefect_environments.core.distribution.registry import Registry  # noqa: PLC0415

    credentials: Credentials | CredentialSource = DockerConfig()
    if settings.username is not None and settings.password is not None:
        credentials = Credentials(str(settings.username), str(settings.password))
    elif settings.azure is not None and settings.azure.identity is not None:
        credentials = settings.azure
    return Registry(
        settings.address,
        credentials=credentials,
        plain_http=_plain_http(settings),
        ca_file=Path(settings.ca_file) if settings.ca_file else None,
        limits=settings.limits,
        advice=settings.azure.advice if settings.azure else None,
    )


async def tool_login(settings: RegistrySettings, secrets: SecretStore) -> tuple[str, str] | None:
    """User and password for other tools, such as a Docker engine; `None` where they know no less than we do.

    For an identity on Azure it is a token that lives for hours. Raises `SecretError` and the registry's errors.
    """
    if settings.folder is not None:
        return None
    resolved = await settings.resolved(secrets)
    if resolved.username is not None and resolved.password is not None:
        return str(resolved.username), str(resolved.password)
    if resolved.azure is None or resolved.azure.identity is None:
        return None
    from prefect_environments.core.azure.registry import TOKEN_USER  # noqa: PLC0415

    async with open_registry(resolved) as registry:
        token = await registry.identity_token()
    return (TOKEN_USER, token) if token else None


def _plain_http(settings: RegistrySettings) -> bool | None:
    """`None` leaves it to the address: this machine's own has no TLS, unless there are authorities for it."""
    if settings.plain_http:
        return True
    return False if settings.ca_file else None


def reference_of(repository: Repository, digest: str) -> str:
    """`repository@sha256:…`, which always means the same image."""
    return f"{repository.name}@{digest}"
