"""The Container Registry stand-in is accepted by Azure's SDK, skopeo, docker and our own client, and says no as ACR
does."""

import asyncio
import hashlib
import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.containerregistry import ContainerRegistryClient
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError

from prefect_environments.core.azure.credentials import token_credential
from prefect_environments.core.distribution.connection import Limits
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.errors import RegistryAuthError
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import LAYER_TAR, Descriptor
from tests.support.azure.acr import TOKEN_USER, AzureContainerRegistryServer
from tests.support.azure.parts import Azure
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.session import need

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def acr(azure: Azure, tmp_path: Path) -> Iterator[AzureContainerRegistryServer]:
    """An empty registry over https whose owner is the application."""
    with AzureContainerRegistryServer(azure.entra, tmp_path / "acr", azure.authority.server_context()) as running:
        running.grant(azure.app, "Owner")
        running.add_admin("teamregistry", "admin-password-61")
        yield running


@pytest.fixture
def client(azure: Azure, acr: AzureContainerRegistryServer) -> Iterator[ContainerRegistryClient]:
    """Azure's own client, signed in as the application."""
    options: dict[str, Any] = {"connection_verify": str(azure.authority.ca_file), "retry_total": 1}
    with ContainerRegistryClient(acr.url, token_credential(azure.identity()), **options) as made:
        yield made


def image(client: ContainerRegistryClient, repository: str, *tags: str) -> str:
    """Push a tiny image; gives its digest."""
    content = os.urandom(1000)
    layer, size = client.upload_blob(repository, io.BytesIO(content))
    config, config_size = client.upload_blob(repository, io.BytesIO(b"{}"))
    manifest: Any = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config, "size": config_size},
        "layers": [{"mediaType": LAYER_TAR, "digest": layer, "size": size}],
    }
    return [client.set_manifest(repository, manifest, tag=tag) for tag in tags][-1]


def test_azures_client_pushes_lists_page_by_page_and_reads_back(client: ContainerRegistryClient) -> None:
    digest = image(client, "team/train", "v1", "v2", "v3")
    image(client, "team/other", "v1")
    assert [t.name for t in client.list_tag_properties("team/train", results_per_page=2)] == ["v1", "v2", "v3"]
    (manifest,) = client.list_manifest_properties("team/train")
    assert (manifest.digest, manifest.tags, manifest.size_in_bytes) == (digest, ["v1", "v2", "v3"], 1002)
    assert list(client.list_repository_names(results_per_page=1)) == ["team/other", "team/train"]
    read = client.get_manifest("team/train", "v2")
    assert read.digest == digest
    layer = read.manifest["layers"][0]["digest"]  # type: ignore[index]
    content = b"".join(client.download_blob("team/train", layer))
    assert layer == f"sha256:{hashlib.sha256(content).hexdigest()}"
    client.delete_tag("team/train", "v3")
    assert [t.name for t in client.list_tag_properties("team/train")] == ["v1", "v2"]
    client.delete_repository("team/other")
    with pytest.raises(ResourceNotFoundError):
        client.get_repository_properties("team/other")


def test_what_is_locked_is_neither_overwritten_nor_deleted(client: ContainerRegistryClient) -> None:
    digest = image(client, "team/train", "v1")
    locked = client.update_tag_properties("team/train", "v1", can_write=False, can_delete=False)
    assert (locked.can_write, locked.can_delete) == (False, False)
    for attempt in (
        lambda: image(client, "team/train", "v1"),
        lambda: client.delete_tag("team/train", "v1"),
        lambda: client.delete_manifest("team/train", digest),
        lambda: client.delete_repository("team/train"),
    ):
        with pytest.raises(HttpResponseError) as caught:
            attempt()
        assert caught.value.status_code == 405
    assert client.get_tag_properties("team/train", "v1").digest == digest
    client.update_tag_properties("team/train", "v1", can_write=True, can_delete=True)
    assert image(client, "team/train", "v1") != digest


def test_an_identity_may_what_its_role_says(
    azure: Azure, acr: AzureContainerRegistryServer, client: ContainerRegistryClient
) -> None:
    image(client, "team/train", "v1")
    acr.grant(azure.app, "AcrPull")
    assert client.get_manifest("team/train", "v1")
    with pytest.raises(ClientAuthenticationError):
        image(client, "team/train", "v2")
    del acr.holders[azure.app.oid]
    with pytest.raises(ClientAuthenticationError):
        client.get_manifest("team/train", "v1")


def test_anybody_pulls_where_that_is_on(azure: Azure, acr: AzureContainerRegistryServer, client: Any) -> None:
    image(client, "team/train", "v1")
    with ContainerRegistryClient(acr.url, None, connection_verify=str(azure.authority.ca_file)) as anybody:
        with pytest.raises(ClientAuthenticationError):
            anybody.get_manifest("team/train", "v1")
        acr.anonymous_pull = True
        assert anybody.get_manifest("team/train", "v1")
        with pytest.raises(ClientAuthenticationError):
            anybody.delete_repository("team/train")


def ours(azure: Azure, acr: AzureContainerRegistryServer, login: Credentials) -> Registry:
    limits = Limits(backoff=0.01)
    return Registry(acr.address, plain_http=False, ca_file=azure.authority.ca_file, credentials=login, limits=limits)


async def push(registry: Registry, path: str, pieces: int = 1, pause: float = 0) -> None:
    for _ in range(pieces):
        content = os.urandom(1000)
        await registry.repository(path).write_blob(Descriptor(LAYER_TAR, digests.of(content), len(content)), content)
        await asyncio.sleep(pause)


async def test_our_client_outlives_its_tokens_in_mid_push_until_they_are_revoked(
    azure: Azure, acr: AzureContainerRegistryServer
) -> None:
    acr.tokens.access_lifetime = 1
    async with ours(azure, acr, Credentials(TOKEN_USER, acr.refresh_token(azure.app))) as registry:
        await push(registry, "team/train", pieces=3, pause=1.05)
        assert sum(line.startswith("GET /oauth2/token") for line in acr.log) >= 3
        acr.tokens.revoke_all()
        with pytest.raises(RegistryAuthError):
            await push(registry, "team/train")


async def test_a_scoped_token_is_held_to_its_repository(azure: Azure, acr: AzureContainerRegistryServer) -> None:
    acr.add_token("ci", "token-password-1", **{"team/train": "pull,push"})
    async with ours(azure, acr, Credentials("ci", "token-password-1")) as registry:
        await push(registry, "team/train")
        with pytest.raises(RegistryAuthError):
            await push(registry, "team/other")


async def test_a_reader_is_sent_to_the_storage_without_its_token(
    azure: Azure, acr: AzureContainerRegistryServer
) -> None:
    acr.redirect_blobs = True
    content = os.urandom(1000)
    blob = Descriptor(LAYER_TAR, digests.of(content), len(content))
    async with ours(azure, acr, Credentials("teamregistry", "admin-password-61")) as registry:
        repository = registry.repository("team/train")
        await repository.write_blob(blob, content)
        assert b"".join([piece async for piece in repository.read_blob(blob)]) == content
    assert any(line.startswith("GET /storage/") for line in acr.log)


def test_skopeo_copies_there_and_back(
    acr: AzureContainerRegistryServer, base_layout: BaseLayout, tmp_path: Path
) -> None:
    need("skopeo")
    there = f"docker://{acr.address}/team/base:1"
    login = "teamregistry:admin-password-61"
    for words in (
        ("--dest-tls-verify=false", "--dest-creds", login, base_layout.reference, there),
        ("--src-tls-verify=false", "--src-creds", login, there, f"oci:{tmp_path / 'copy'}:base"),
    ):
        done = subprocess.run(["skopeo", "copy", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert BaseLayout(tmp_path / "copy").digest == base_layout.digest


def test_docker_signs_in_with_a_refresh_token_pulls_and_pushes(
    azure: Azure, acr: AzureContainerRegistryServer, base_layout: BaseLayout, docker_engine: DockerEngine
) -> None:
    base_layout.push(f"{acr.address}/team/base:1", username="teamregistry", password="admin-password-61")
    docker_engine.docker("login", "-u", TOKEN_USER, "-p", acr.refresh_token(azure.app), acr.address)
    docker_engine.pull(f"{acr.address}/team/base:1")
    docker_engine.docker("tag", f"{acr.address}/team/base:1", f"{acr.address}/team/again:2")
    docker_engine.docker("push", "--quiet", f"{acr.address}/team/again:2")
    assert "2" in acr.store.repositories["team/again"].tags
