"""Servers that are none of Azure's, ask for too much patience or answer at the wrong moment; identities that lack
their files."""

from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from azure.containerregistry import ContainerRegistryClient
from azure.core.pipeline.transport import RequestsTransport

from prefect_environments.core.azure import acr as contents
from prefect_environments.core.azure.acr_import import import_image
from prefect_environments.core.azure.clouds import PUBLIC
from prefect_environments.core.azure.credentials import Identity
from prefect_environments.core.azure.failures import sign_in_failure
from prefect_environments.core.azure.keyvault import KeyVault, VaultSettings
from prefect_environments.core.azure.registry import AzureRegistry
from prefect_environments.core.azure.store import KeyVaultSecretStore
from prefect_environments.core.build.acr_tasks.client import Run, TasksClient
from prefect_environments.core.build.acr_tasks.settings import TasksSettings
from prefect_environments.core.errors import (
    BuildError,
    DefinitionError,
    PrefectEnvironmentsError,
    RegistryAuthError,
    RegistryError,
    SecretError,
)
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretReference
from tests.support.azure.acr_parts import Acr, put_image, running_acr
from tests.support.azure.server import StandIn
from tests.support.azure.tasks import SUBSCRIPTION
from tests.support.session import Session


class Stranger(StandIn):
    """A web server: it says the same to everybody, but for `/v2/`, which looks like a registry's."""

    text, kind = "<html>sign in</html>", "text/html"

    def routes(self) -> Iterable[web.RouteDef]:
        async def answer(request: web.Request) -> web.Response:
            if request.path == "/v2/":
                return web.json_response({})
            return web.Response(text=self.text, content_type=self.kind)

        return [web.route("*", "/{path:.*}", answer)]


@pytest.fixture
def acr(test_session: Session, tmp_path: Path) -> Iterator[Acr]:
    with running_acr(test_session, tmp_path / "acr") as running:
        running.server.grant(running.azure.app, "Owner")
        yield running


@pytest.mark.parametrize("text", ["<html>", "[]", "null", '"x"', '{"repositories": 5, "manifests": 5, "tag": 5}', ""])
async def test_no_answer_to_the_sdk_escapes_the_error_tree(text: str) -> None:
    with Stranger() as stranger:
        stranger.text, stranger.kind = text, "text/html" if text.startswith("<") else "application/json"
        settings = RegistrySettings(stranger.address, azure=AzureRegistry(stranger.address))
        calls: list[Coroutine[Any, Any, Any]] = [
            contents.list_repositories(settings),
            contents.list_tags(settings, "team/image"),
            contents.set_lock(settings, "team/image", "1", locked=True),
        ]
        for call in calls:
            with pytest.raises(RegistryError, match=r"Check that login_server is"):
                await call


@pytest.mark.parametrize("text", ["<html>", "[]", "null", '"x"', '{"properties": 5}', '{"properties": {}}', ""])
async def test_no_answer_to_a_build_is_taken_for_resource_managers_or_for_a_refused_sign_in(
    acr: Acr, text: str
) -> None:
    with Stranger(acr.azure.authority.server_context()) as stranger:
        stranger.text, stranger.kind = text, "text/html" if text.startswith("<") else "application/json"
        acr.azure.entra.resources.add(stranger.url)
        identity = acr.azure.identity()
        here = replace(identity, cloud=replace(identity.cloud, resource_manager=stranger.url))
        async with TasksClient(TasksSettings(SUBSCRIPTION, "group", "teamregistry", here)) as client:
            run = Run("ca1", "Running")
            for call in (client.schedule({}), client.run(run)):
                with pytest.raises(RegistryError, match=r"none of Azure Resource Manager's answers") as caught:
                    await call
                assert not isinstance(caught.value, RegistryAuthError)
            for signed in (client.source_upload(), client.log_url(run)):
                with pytest.raises((RegistryError, BuildError), match=r"none of Azure|gave no address"):
                    await signed


@pytest.mark.parametrize("text", ["<html>", "[]", "null", '"x"'])
def test_what_answers_in_place_of_a_vault_is_no_secret(acr: Acr, text: str) -> None:
    """Such as the page of a proxy that wants a sign-in."""
    with Stranger(acr.azure.authority.server_context()) as stranger:
        stranger.text, stranger.kind = text, "text/html" if text.startswith("<") else "application/json"
        settings = VaultSettings(stranger.url, acr.azure.identity(), block="Keyvault block 'team'")
        with pytest.raises(SecretError, match=r"127\.0\.0\.1:\d+ \(Keyvault block 'team'\)"):
            KeyVault(settings).get("pull")


async def test_a_host_outside_of_the_identitys_cloud_is_given_no_token(acr: Acr) -> None:
    """A token for registries opens all of a cloud: a mistyped login server must not see it."""
    identity = acr.azure.identity()
    elsewhere = replace(identity, cloud=replace(identity.cloud, registry_suffix="azurecr.example"))
    with pytest.raises(RegistryAuthError, match=r"end with \.azurecr\.example.*registry_suffix"):
        async with acr.client(acr.settings(elsewhere)) as client:
            await client.ping()
    assert acr.azure.entra.issued == [] and acr.asked("/oauth2") == 0
    own = replace(identity, cloud=replace(PUBLIC, registry_suffix="azurecr.io"))
    for server in ("team.azurecr.io.example.com", "azurecr.io", "teamazurecr.io"):
        with pytest.raises(RegistryAuthError, match="no token of"):
            await AzureRegistry(server, own).get(server)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("authority_host", "login.example.com", "authority_host is an https URL"),
        ("registry_audience", "containerregistry", "registry_audience is an https URL"),
        ("resource_manager", "http://management.example.com", "resource_manager is an https URL"),
        ("resource_manager", "https://u:hunter2@x.example.com", "resource_manager is an https URL"),
        ("key_vault_suffix", "https://vault.example.com", "key_vault_suffix is the end of a host name"),
        ("registry_suffix", "", "registry_suffix is the end of a host name"),
    ],
)
def test_an_endpoint_that_is_none_is_refused_before_any_network(field: str, value: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=says) as caught:
        replace(PUBLIC, **{field: value})
    assert "hunter2" not in str(caught.value)


def test_a_suffix_may_have_the_dot_that_az_cloud_show_tells() -> None:
    cloud = replace(PUBLIC, key_vault_suffix=".vault.azure.cn", registry_suffix=".azurecr.cn")
    assert VaultSettings("team", Identity(cloud=cloud)).host == "team.vault.azure.cn"
    assert cloud.registry_suffix == "azurecr.cn"


async def test_a_workload_identity_without_its_token_file_says_so_at_each_service(acr: Acr, tmp_path: Path) -> None:
    gone = str(tmp_path / "token")
    identity = acr.azure.identity(kind="workload-identity", client_secret=None, token_file=gone)
    managed = replace(identity, cloud=replace(identity.cloud, resource_manager="https://management.example.com"))
    calls: list[Coroutine[Any, Any, Any]] = [
        contents.list_repositories(acr.settings(identity)),
        import_image(acr.settings(managed, subscription_id="s", resource_group="g"), "lib.example.com/tool:1", "tool"),
        KeyVaultSecretStore([acr.azure.settings(identity)]).get(
            SecretReference("secret-uri", "x", acr.azure.vault.host)
        ),
    ]
    for call in calls:
        with pytest.raises(PrefectEnvironmentsError, match=f"the workload identity .*cannot sign in: .*{gone}"):
            await call


def test_an_error_of_the_system_without_a_file_says_what_it_is() -> None:
    said = sign_in_failure(OSError("the connection broke off"), Identity(kind="managed-identity"))
    assert said.endswith("check that this machine has that identity. It was said: the connection broke off")


def test_nobody_waits_longer_than_a_minute_for_a_vault_that_says_so(acr: Acr, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK would sleep for a day in a thread that nothing interrupts."""
    waited: list[float] = []
    monkeypatch.setattr(RequestsTransport, "sleep", lambda _, seconds: waited.append(seconds))
    acr.azure.vault.put("pull", "value-of-pull")
    acr.azure.vault.throttle(1, retry_after=86400)
    assert KeyVault(acr.azure.settings()).get("pull") == "value-of-pull"
    assert waited == [60]


async def test_a_token_that_is_revoked_in_the_middle_of_a_listing_is_renewed(
    acr: Acr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_PAGE", 1)
    paths = [f"team/image-{number}" for number in range(3)]
    async with acr.client() as client:
        for path in paths:
            await put_image(client.repository(path), "1")
    real, revoked = ContainerRegistryClient.list_repository_names, list[int]()

    def listed(client: ContainerRegistryClient, **options: Any) -> Iterator[str]:
        for number, path in enumerate(real(client, **options)):
            if number == 1 and not revoked:
                acr.server.tokens.revoke_all()
                revoked.append(number)
            yield path

    monkeypatch.setattr(ContainerRegistryClient, "list_repository_names", listed)
    assert await contents.list_repositories(acr.settings()) == paths
    assert len(revoked) == 1


def test_a_value_that_was_read_while_a_new_one_was_written_is_not_kept(
    acr: Acr, monkeypatch: pytest.MonkeyPatch
) -> None:
    acr.azure.vault.put("pull", "old-value-1")
    acr.azure.vault.grant(acr.azure.app, "Key Vault Secrets Officer")
    vault = KeyVault(acr.azure.settings())
    real, written = vault._value, list[str]()

    def read_late(*found: Any) -> Any:
        if not written:
            vault.set("pull", "new-value-2")
            written.append("new-value-2")
        return real(*found)

    monkeypatch.setattr(vault, "_value", read_late)
    assert vault.get("pull") == "old-value-1"
    assert vault.get("pull") == "new-value-2"


def test_the_default_port_makes_no_other_vault() -> None:
    with_port = "@Microsoft.KeyVault(SecretUri=https://team.vault.azure.net:443/secrets/x)"
    without = with_port.replace(":443", "")
    for own in ("team", "https://team.vault.azure.net:443", "https://TEAM.vault.azure.net"):
        for text in (with_port, without):
            found = KeyVaultSecretStore([VaultSettings(own)]).find(SecretReference.parse(text))
            assert found.host == "team.vault.azure.net"
