"""What only a Container Registry has: listings, locks, deletion, by the real SDK client; imports by Azure itself."""

import asyncio
import sys
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.containerregistry import ContainerRegistryClient
from azure.core.exceptions import ClientAuthenticationError

from prefect_environments.core.azure import acr as contents
from prefect_environments.core.azure.acr_import import import_image
from prefect_environments.core.azure.credentials import Identity, forget_credentials, token_credential
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.errors import (
    DefinitionError,
    NotFound,
    RegistryAuthError,
    RegistryError,
    RegistryUnreachable,
)
from prefect_environments.core.registry_settings import RegistrySettings
from tests.images.parts import Secrets
from tests.support.azure.acr import AzureContainerRegistryServer
from tests.support.azure.acr_arm import Manager
from tests.support.azure.acr_parts import BLOCK, Acr, put_image, running_acr, with_lock
from tests.support.session import Session

PATH = "team/image"


@pytest.fixture
def acr(test_session: Session, tmp_path: Path) -> Iterator[Acr]:
    """A registry of the test's own, in which the application may do everything."""
    with running_acr(test_session, tmp_path / "acr") as running:
        running.server.grant(running.azure.app, "Owner")
        yield running


async def push(acr: Acr, tag: str, content: bytes = b"layer", path: str = PATH) -> str:
    async with acr.client() as client:
        return (await put_image(client.repository(path), tag, content)).digest


async def test_repositories_and_tags_are_listed_page_by_page_with_times_and_sizes(
    acr: Acr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_PAGE", 2)
    paths = [f"team/image-{number}" for number in range(5)]
    for path in paths:
        await push(acr, "1", path=path)
    assert await contents.list_repositories(acr.settings()) == paths
    digests = [await push(acr, f"v{number}", bytes(1000 * number)) for number in range(5)]
    tags = await contents.list_tags(acr.settings(), PATH)
    assert [tag.name for tag in tags] == ["v4", "v3", "v2", "v1", "v0"]
    assert [tag.digest for tag in tags] == digests[::-1]
    sizes = [tag.size or 0 for tag in tags]
    assert sizes[0] - sizes[1] == 1000
    now = datetime.now(UTC)
    assert all(now - timedelta(minutes=5) < tag.created <= tag.updated <= now for tag in tags)
    assert not any(tag.locked for tag in tags)


async def test_azures_own_client_finds_what_we_pushed_by_its_own_way_of_signing_in(acr: Acr) -> None:
    digest = await push(acr, "v1")
    with ContainerRegistryClient(acr.server.url, token_credential(acr.azure.identity())) as client:
        found = client.get_manifest(PATH, "v1", enforce_https=False)
    assert found.digest == digest


async def test_a_locked_tag_is_not_overwritten_nor_deleted_until_it_is_unlocked(acr: Acr) -> None:
    first = await push(acr, "v1")
    await contents.set_lock(acr.settings(), PATH, "v1", locked=True)
    with pytest.raises(RegistryError, match=r"team/image: upload of manifest v1 .*405.*locked .*unlock"):
        await push(acr, "v1", b"another")
    with pytest.raises(RegistryError, match=rf"{BLOCK}.*deleting team/image v1 .*405.*locked.*unlock it first"):
        await contents.delete(acr.settings(), PATH, "v1")
    [tag] = [tag for tag in await contents.list_tags(acr.settings(), PATH) if tag.name == "v1"]
    assert tag.locked and tag.digest == first
    await contents.set_lock(acr.settings(), PATH, "v1", locked=False)
    assert await push(acr, "v1", b"another") != first
    await contents.delete(acr.settings(), PATH, "v1")
    assert await contents.list_tags(acr.settings(), PATH) == []


async def test_a_locked_manifest_is_not_deleted_by_any_way(acr: Acr) -> None:
    digest = await push(acr, "v1")
    await contents.set_lock(acr.settings(), PATH, digest, locked=True)
    assert (await contents.list_tags(acr.settings(), PATH))[0].locked
    for refused in (
        contents.delete(acr.settings(), PATH, digest),
        contents.delete_repository(acr.settings(), PATH),
    ):
        with pytest.raises(RegistryError, match="locked"):
            await refused
    async with acr.client() as client:
        with pytest.raises(RegistryError, match="locked"):
            await client.repository(PATH).delete_manifest(digest)
    await contents.set_lock(acr.settings(), PATH, digest, locked=False)
    await contents.delete(acr.settings(), PATH, digest)
    await contents.delete_repository(acr.settings(), PATH)
    assert await contents.list_repositories(acr.settings()) == []


async def test_registering_locks_only_where_it_is_wanted_and_only_images_of_this_registry(acr: Acr) -> None:
    digest = await push(acr, "v1")
    reference = f"{acr.server.address}/{PATH}@{digest}"
    await contents.lock_registered(acr.settings(), Secrets(), reference)
    wanted = with_lock(acr.settings())
    await contents.lock_registered(wanted, Secrets(), f"other.example.com/{PATH}@{digest}")
    assert acr.count("PATCH /acr") == 0
    await contents.lock_registered(wanted, Secrets(), reference)
    assert (await contents.list_tags(acr.settings(), PATH))[0].locked


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: contents.list_tags(s, "team/none"), "listing of tags of team/none .*404"),
        (lambda s: contents.set_lock(s, PATH, "none", locked=True), "locking of team/image none .*404"),
        (lambda s: contents.delete(s, PATH, "none"), "deleting team/image none .*404"),
        (lambda s: contents.delete(s, PATH, "sha256:" + "0" * 64), "deleting team/image sha256:.*404"),
        (lambda s: contents.delete_repository(s, "team/none"), "deleting repository team/none .*404"),
    ],
)
async def test_what_is_not_there_is_told_and_never_taken_for_done(acr: Acr, call: Any, says: str) -> None:
    await push(acr, "v1")
    with pytest.raises(NotFound, match=says):
        await call(acr.settings())


@pytest.mark.parametrize(
    ("roles", "call", "role"),
    [
        ([], contents.list_repositories, "AcrPull"),
        (["AcrPull"], lambda s: contents.set_lock(s, PATH, "v1", locked=True), "AcrPush"),
        (["AcrPush"], lambda s: contents.delete(s, PATH, "v1"), "AcrDelete"),
    ],
)
async def test_a_missing_role_is_named(acr: Acr, roles: list[str], call: Any, role: str) -> None:
    await push(acr, "v1")
    acr.server.holders.clear()
    if roles:
        acr.server.grant(acr.azure.app, *roles)
    with pytest.raises(
        RegistryAuthError, match=rf"{acr.azure.app.client_id}.* the role {role}.* on registry"
    ) as caught:
        await call(acr.settings())
    assert BLOCK in str(caught.value)
    assert not [secret for secret in acr.secrets if secret in str(caught.value)]


async def test_a_user_with_a_password_and_an_anonymous_one_may_use_it_too(acr: Acr) -> None:
    await push(acr, "v1")
    acr.server.add_admin("team", "admin-pass-word-1")
    admin = acr.open_to(username="team", password="admin-pass-word-1")
    await contents.set_lock(admin, PATH, "v1", locked=True)
    acr.server.anonymous_pull = True
    assert [tag.locked for tag in await contents.list_tags(acr.open_to(), PATH)] == [True]
    with pytest.raises(RegistryAuthError, match="Set credentials"):
        await contents.set_lock(acr.open_to(), PATH, "v1", locked=False)


async def test_throttling_is_waited_out_and_a_registry_that_is_down_is_told(acr: Acr) -> None:
    await push(acr, "v1")
    acr.server.throttle(2, retry_after=0, pattern="GET /acr/.*")
    assert len(await contents.list_tags(acr.settings(), PATH)) == 1
    acr.server.go_down()
    with pytest.raises(RegistryUnreachable, match="Check the address"):
        await contents.list_tags(acr.settings(), PATH)


async def test_a_registry_that_is_none_of_azures_is_refused_before_any_request(acr: Acr) -> None:
    with pytest.raises(DefinitionError, match="is for an Azure Container Registry"):
        await contents.list_repositories(RegistrySettings("registry.example.com"))


# ---- import


@pytest.fixture
def manager(acr: Acr, tmp_path: Path) -> Iterator[Manager]:
    """Resource Manager, which imports from another registry that has `lib/tool:1`."""
    with (
        AzureContainerRegistryServer(acr.azure.entra, tmp_path / "source") as source,
        Manager(acr.azure.entra, acr.azure.authority.server_context(), source, acr.server) as running,
    ):
        source.grant(acr.azure.app, "AcrPush")
        running.allow(acr.azure.app)
        yield running


def managed(acr: Acr, manager: Manager) -> RegistrySettings:
    identity = acr.azure.identity()
    here = replace(identity, cloud=replace(identity.cloud, resource_manager=manager.url))
    return acr.settings(here, subscription_id="sub-1", resource_group="group-1")


async def fill(acr: Acr, manager: Manager) -> str:
    settings = acr.settings()
    assert settings.azure is not None
    azure = replace(settings.azure, login_server=manager.source.address)
    async with acr.client(replace(settings, address=manager.source.address, azure=azure)) as client:
        return (await put_image(client.repository("lib/tool"), "1")).digest


async def test_an_image_is_imported_by_azure_itself(acr: Acr, manager: Manager) -> None:
    digest, source = await fill(acr, manager), manager.source.address
    before = acr.count("PUT /v2")
    login = Credentials("reader", "reader-pass-word")
    await import_image(managed(acr, manager), f"{source}/lib/tool:1", "mirror/tool:2", login=login)
    await import_image(managed(acr, manager), f"{source}/lib/tool@{digest}", "mirror/tool")
    assert acr.count("PUT /v2") == before
    assert [(tag.name, tag.digest) for tag in await contents.list_tags(acr.settings(), "mirror/tool")] == [
        ("2", digest)
    ]
    first, second = manager.bodies
    assert first["source"] == {
        "sourceImage": "lib/tool:1",
        "registryUri": source,
        "credentials": {"username": "reader", "password": "reader-pass-word"},
    }
    assert second["source"] == {"sourceImage": f"lib/tool@{digest}", "registryUri": source}
    assert (second["untaggedTargetRepositories"], second["mode"]) == (["mirror/tool"], "NoForce")
    assert manager.places[0].split("/")[:2] == ["sub-1", "group-1"]


async def test_another_container_registry_is_named_by_its_resource_id(acr: Acr, manager: Manager) -> None:
    await fill(acr, manager)
    settings = managed(acr, manager)
    await import_image(
        settings, f"{manager.source.address}/lib/tool:1", "tool", source_registry_id="/subscriptions/x", overwrite=True
    )
    assert manager.bodies[0]["source"] == {"sourceImage": "lib/tool:1", "resourceId": "/subscriptions/x"}
    assert (manager.bodies[0]["targetTags"], manager.bodies[0]["mode"]) == (["tool:1"], "Force")


async def test_what_an_import_lacks_is_named_and_nothing_secret(acr: Acr, manager: Manager) -> None:
    await fill(acr, manager)
    source = f"{manager.source.address}/lib/tool:1"
    failing: list[tuple[Coroutine[Any, Any, None], type[Exception], str]] = [
        (import_image(acr.settings(), source, "tool"), DefinitionError, "set subscription_id, resource_group for it"),
        (import_image(acr.open_to(), source, "tool"), DefinitionError, "set credentials, subscription_id"),
        (import_image(managed(acr, manager), f"{source}0", "tool"), NotFound, "HTTP 404"),
    ]
    for call, error, says in failing:
        with pytest.raises(error, match=says):
            await call
    manager.allowed.clear()
    with pytest.raises(RegistryAuthError, match=r"AuthorizationFailed.*Data Importer and Data Reader") as caught:
        await import_image(managed(acr, manager), source, "tool", login=Credentials("u", "source-pass-word"))
    assert not [secret for secret in [*acr.secrets, "source-pass-word"] if secret in str(caught.value)]
    acr.azure.entra.resources.discard(manager.url)
    forget_credentials()
    with pytest.raises(RegistryAuthError, match="got no token"):
        await import_image(managed(acr, manager), source, "tool")


async def test_an_import_that_does_not_end_is_told_and_a_cancelled_one_holds_no_thread(
    acr: Acr, manager: Manager
) -> None:
    """A thread that waits on would keep the process from ending."""
    await fill(acr, manager)
    manager.running = 1000
    settings, source = managed(acr, manager), f"{manager.source.address}/lib/tool:1"
    with pytest.raises(RegistryUnreachable, match=r"did not end within 0\.5 s; it may go on"):
        await import_image(settings, source, "mirror/a", time_limit=0.5)
    work = asyncio.create_task(import_image(settings, source, "mirror/b"))
    while len(manager.bodies) < 2:  # noqa: ASYNC110 - the server runs in a thread
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    waiting = [thread.name for thread in threading.enumerate() if not thread.daemon and "LROPoller" in thread.name]
    assert waiting == []
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 20)


async def test_without_the_extra_its_name_is_told(acr: Acr, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.mgmt.containerregistry", None)
    with pytest.raises(DefinitionError, match=r"pip install 'prefect-environments\[azure-tasks\]'"):
        await import_image(managed(acr, manager), "lib.example.com/tool:1", "tool")


def test_an_identity_that_azures_client_cannot_use_fails_there_as_here(acr: Acr) -> None:
    wrong: Identity = acr.azure.identity(client_secret="another-secret-4711")
    with (
        ContainerRegistryClient(acr.server.url, token_credential(wrong), retry_total=0) as client,
        pytest.raises(ClientAuthenticationError),
    ):
        client.get_repository_properties(PATH, enforce_https=False)
