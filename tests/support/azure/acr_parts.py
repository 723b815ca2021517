"""A Container Registry beside its tenant, running, with what core and blocks need to use it."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect_environments.core.azure.credentials import Identity
from prefect_environments.core.azure.registry import TOKEN_USER, AzureRegistry
from prefect_environments.core.distribution.limits import Limits
from prefect_environments.core.distribution.registry import Registry, RegistryRepository
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import IMAGE_CONFIG, IMAGE_MANIFEST, LAYER_TAR, Descriptor
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.stores import open_registry
from tests.support.azure.acr import AzureContainerRegistryServer
from tests.support.azure.parts import Azure, running_azure
from tests.support.session import Session

BLOCK = "AzureContainerRegistry, block 'team'"


@dataclass(frozen=True)
class Acr:
    """A registry, and an application that has no role there yet."""

    azure: Azure
    server: AzureContainerRegistryServer

    def settings(self, identity: Identity | None = None, **fields: Any) -> RegistrySettings:
        """The registry for the application, or another identity; `fields` are of `AzureRegistry`."""
        given = {"identity": identity or self.azure.identity(), "block": BLOCK, **fields}
        return self.open_to(azure=AzureRegistry(self.server.address, **given))

    def open_to(self, **fields: Any) -> RegistrySettings:
        """The registry for others: a user and a password, what Docker stored, nobody."""
        azure = AzureRegistry(self.server.address, block=BLOCK)
        ca_file = str(self.azure.authority.ca_file) if self.server.url.startswith("https") else None
        patient = Limits(attempts=4, backoff=0.01)
        return RegistrySettings(
            self.server.address, **{"azure": azure, "ca_file": ca_file, "limits": patient, **fields}
        )

    def client(self, settings: RegistrySettings | None = None) -> Registry:
        return open_registry(settings or self.settings())

    @property
    def secrets(self) -> list[str]:
        """All that may stand in no log and no error: the application's secret, and every token so far."""
        return [self.azure.app.secret, *self.azure.entra.issued, *self.server.tokens.issued]

    def count(self, request: str) -> int:
        """How many requests so far begin with these words."""
        return sum(1 for line in self.server.log if line.startswith(request))

    def asked(self, path: str) -> int:
        return self.count(f"POST {path}")

    def docker_config(self, folder: Path, entry: dict[str, str] | None = None, **config: Any) -> Path:
        """A folder with Docker's configuration as `az acr login` leaves it, or with another entry."""
        login = base64.b64encode(f"{TOKEN_USER}:{self.server.refresh_token(self.azure.app)}".encode()).decode()
        folder.mkdir(parents=True, exist_ok=True)
        auths = {self.server.address: {"auth": login} if entry is None else entry}
        (folder / "config.json").write_text(json.dumps({"auths": auths, **config}))
        return folder

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of an `AzureCredentials` block for the application."""
        return self.azure.fields


@contextmanager
def running_acr(session: Session, folder: Path, *, https: bool = False) -> Iterator[Acr]:
    """Start a tenant and a registry in it, and stop them at the end."""
    with running_azure(session) as azure:
        tls = azure.authority.server_context() if https else None
        with AzureContainerRegistryServer(azure.entra, folder, tls) as server:
            yield Acr(azure, server)


def with_lock(settings: RegistrySettings) -> RegistrySettings:
    """The same, where registered images are locked."""
    assert settings.azure is not None
    return replace(settings, azure=replace(settings.azure, lock_registered=True))


async def put_image(repository: RegistryRepository, tag: str, content: bytes = b"layer") -> Descriptor:
    """A small image of one layer."""
    config, layer = b'{"architecture":"amd64","os":"linux"}', Descriptor(LAYER_TAR, digests.of(content), len(content))
    described = Descriptor(IMAGE_CONFIG, digests.of(config), len(config))
    await repository.write_blob(described, config)
    await repository.write_blob(layer, content)
    return await repository.put_manifest(ImageManifest(described, (layer,)).to_bytes(), IMAGE_MANIFEST, tag=tag)
