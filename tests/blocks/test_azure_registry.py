"""The block of a Container Registry: Prefect's rules, its round trip through a workspace, its methods."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.encoders import jsonable_encoder
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr

from prefect_environments.blocks import AzureContainerRegistry, AzureCredentials, ContainerRegistry, Workspace
from prefect_environments.core.errors import DefinitionError, NotFound, RegistryAuthError, RegistryError, SecretError
from prefect_environments.core.stores import open_registry
from tests.images.parts import Secrets
from tests.support.azure.acr_parts import Acr, put_image, running_acr
from tests.support.session import Session


class TestStandard(BlockStandardTestSuite):
    """Prefect's checks of descriptions, examples and addresses."""

    @pytest.fixture
    def block(self) -> Any:
        return AzureContainerRegistry


@pytest.fixture
def acr(test_session: Session, tmp_path: Path) -> Iterator[Acr]:
    """A registry of the test's own, in which the application may do everything."""
    with running_acr(test_session, tmp_path / "acr") as running:
        running.server.grant(running.azure.app, "Owner")
        yield running


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:12]}"


def credentials(secret: str = "sp-pass-word-1") -> AzureCredentials:
    return AzureCredentials(kind="service-principal", tenant_id="t-1", client_id="c-1", client_secret=SecretStr(secret))


async def saved(**fields: Any) -> AzureContainerRegistry:
    own = AzureContainerRegistry(login_server="team.example.com", **fields)
    if own.credentials is not None and own.credentials._block_document_id is None:
        await own.credentials.asave(unique("credentials"))
    await own.asave(unique("acr"))
    return own


async def test_a_workspace_comes_back_with_the_kind_of_registry_that_it_was_saved_with(prefect_server: str) -> None:
    plain = ContainerRegistry(address="registry.example.com", username="bob", password=SecretStr("pw-1234567"))
    await plain.asave(unique("registry"))
    for own in (
        plain,
        await saved(credentials=credentials(), lock_registered=True, subscription_id="s-1", resource_group="g-1"),
        await saved(username="ci", password=SecretStr("secret:ci-password"), ca_file="ca.pem"),
    ):
        name = unique("ws")
        await Workspace(name="team", registry=own).asave(name)
        loaded: Workspace = await Workspace.aload(name)
        assert type(loaded.registry) is type(own)
        assert loaded.registry_settings == own.settings()
        assert loaded.registry._block_document_id == own._block_document_id
        async with get_client() as client:
            document = await client.read_block_document_by_name(name, "environments-workspace", include_secrets=False)
        assert document.block_document_references["registry"]["block_document"]["id"] == str(own._block_document_id)


async def test_a_new_client_secret_reaches_the_workspaces_that_use_it(prefect_server: str) -> None:
    name, who = unique("ws"), credentials("old-pass-word-1")
    own = await saved(credentials=who)
    await Workspace(name="team", registry=own).asave(name)
    who.client_secret = SecretStr("new-pass-word-2")
    await who.asave(who._block_document_name, overwrite=True)
    loaded: Workspace = await Workspace.aload(name)
    azure = loaded.registry_settings.azure
    assert azure is not None and azure.identity is not None
    assert azure.identity.client_secret == "new-pass-word-2"
    assert str(who._block_document_name) in azure.where  # errors name both blocks
    assert str(own._block_document_name) in azure.where


async def test_a_registry_with_unsaved_credentials_is_not_saved(prefect_server: str) -> None:
    own = AzureContainerRegistry(login_server="team.example.com", credentials=credentials())
    with pytest.raises(SecretError, match="save it first") as caught:
        await own.asave(unique("acr"))
    with pytest.raises(SecretError):
        await Workspace(name="team", registry=own).asave(unique("ws"))
    assert "sp-pass-word-1" not in str(caught.value)


def test_what_is_shown_of_it_holds_no_secret() -> None:
    for own in (
        AzureContainerRegistry(login_server="team.example.com", credentials=credentials()),
        AzureContainerRegistry(login_server="team.example.com", username="ci", password=SecretStr("sp-pass-word-1")),
    ):
        settings = own.settings()
        shown = json.dumps(jsonable_encoder(Workspace(name="team", registry=own)))
        assert "sp-pass-word-1" not in f"{shown}{own!r}{settings!r}{settings.azure!r}"


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"login_server": "https://team.example.com"}, "no scheme"),
        ({"login_server": "team.example.com/x"}, "no path"),
        ({"login_server": "team"}, "a whole host name"),
        ({"login_server": "oci:/images"}, "for the ContainerRegistry block"),
        ({"login_server": "bob:hunter2@team.example.com"}, "no credentials"),
        ({"login_server": "team.example.com", "username": "bob"}, "both username and password"),
        (
            {
                "login_server": "team.example.com",
                "username": "bob",
                "password": "hunter2",
                "credentials": AzureCredentials(),
            },
            "not both",
        ),
    ],
)
def test_a_wrong_registry_is_refused_with_advice_and_without_its_secret(fields: dict[str, Any], advice: str) -> None:
    with pytest.raises(DefinitionError, match=advice) as caught:
        AzureContainerRegistry.model_validate(fields)
    assert "hunter2" not in str(caught.value)


def test_its_methods_are_synchronous(acr: Acr) -> None:
    own = AzureContainerRegistry(login_server=acr.server.address, credentials=AzureCredentials(**acr.fields))
    digest = _push(acr, own)
    assert own.list_repositories() == ["team/image"]
    [tag] = own.list_tags("team/image")
    assert (tag.name, tag.digest, tag.locked) == ("v1", digest, False)
    own.lock("team/image", "v1")
    with pytest.raises(RegistryError, match="locked"):
        own.delete_image("team/image", "v1")
    own.unlock("team/image", "v1")
    own.delete_image("team/image", "v1")
    assert own.list_tags("team/image") == []
    own.delete_repository("team/image")
    with pytest.raises(NotFound):
        own.delete_repository("team/image")
    with pytest.raises(DefinitionError, match="set subscription_id, resource_group"):
        own.import_image("registry.example.com/tool:1", "tool", username="u", password="p-1234567")


async def test_they_work_inside_a_running_loop_too_and_with_a_secret_reference(acr: Acr, prefect_server: str) -> None:
    name = unique("acr-password")
    await Secret(value=SecretStr("admin-pass-word-1")).asave(name)
    acr.server.add_admin("team", "admin-pass-word-1")
    own = AzureContainerRegistry(login_server=acr.server.address, username="team", password=SecretStr(f"secret:{name}"))
    assert own.list_repositories() == []
    assert (await own.resolved_settings(Secrets({name: "x-1234567"}))).password == "x-1234567"


def test_an_error_names_the_block_and_the_role(acr: Acr) -> None:
    acr.server.grant(acr.azure.app, "AcrPull")
    own = AzureContainerRegistry(login_server=acr.server.address, credentials=AzureCredentials(**acr.fields))
    with pytest.raises(RegistryAuthError, match=r"AzureContainerRegistry.*the role AcrPush on registry") as caught:
        _push(acr, own)
    assert not [secret for secret in acr.secrets if secret in str(caught.value)]


def _push(acr: Acr, own: AzureContainerRegistry) -> str:
    import asyncio

    async def work() -> str:
        async with open_registry(own.settings()) as client:
            return (await put_image(client.repository("team/image"), "v1")).digest

    return asyncio.run(work())
