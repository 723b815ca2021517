"""From addresses and references to the stores behind them: a registry, or an image-layout folder."""

from dataclasses import dataclass
from pathlib import Path

from prefect_environments.core.distribution.credentials import Credentials, CredentialSource, DockerConfig
from prefect_environments.core.distribution.reference import Reference
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.repository import Repository, Store
from prefect_environments.core.registry_settings import LAYOUT_PREFIX, RegistrySettings
from prefect_environments.core.secrets import SecretStore


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
    # an image-layout folder needs no HTTP client, which takes longer to load than a warm build takes
    from prefect_environments.core.distribution.registry import Registry  # noqa: PLC0415

    resolved = await settings.resolved(secrets)
    credentials: Credentials | CredentialSource = DockerConfig()
    if resolved.username is not None and resolved.password is not None:
        credentials = Credentials(str(resolved.username), str(resolved.password))
    return Registry(
        resolved.address,
        credentials=credentials,
        plain_http=_plain_http(resolved),
        ca_file=Path(resolved.ca_file) if resolved.ca_file else None,
        limits=resolved.limits,
    )


def _plain_http(settings: RegistrySettings) -> bool | None:
    """`None` leaves it to the address: this machine's own has no TLS, unless there are authorities for it."""
    if settings.plain_http:
        return True
    return False if settings.ca_file else None


def reference_of(repository: Repository, digest: str) -> str:
    """`repository@sha256:…`, which always means the same image."""
    return f"{repository.name}@{digest}"
