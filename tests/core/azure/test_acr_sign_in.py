"""Signing in to a Container Registry with every kind of credentials, and what is said where that fails."""

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.azure.registry import TOKEN_USER, AzureRegistry
from prefect_environments.core.distribution.limits import Limits
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.errors import RegistryAuthError, RegistryError, RegistryUnreachable
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.stores import open_registry, tool_login
from tests.images.parts import Secrets, tool
from tests.support.azure.acr_parts import BLOCK, Acr, put_image, running_acr
from tests.support.engine import DockerEngine
from tests.support.registry import Registry as Running
from tests.support.session import Session, need

PUSH = "AcrPush on registry"


@pytest.fixture
def acr(test_session: Session, tmp_path: Path) -> Iterator[Acr]:
    """A registry of the test's own, empty; Docker has nothing stored for it."""
    with running_acr(test_session, tmp_path / "acr") as running:
        yield running


async def pull(acr: Acr, settings: RegistrySettings, path: str = "team/image", tag: str = "1") -> str:
    async with open_registry(settings) as client:
        return (await client.repository(path).get_manifest(tag)).descriptor.digest


async def test_an_identity_pushes_and_pulls_by_one_exchange_and_a_token_a_scope(acr: Acr) -> None:
    acr.server.grant(acr.azure.app, "AcrPush")
    async with acr.client() as client:
        digests = [await put_image(client.repository(f"team/{name}"), "1") for name in ("a", "b")]
        assert await client.repository("team/a").find_manifest("1") == digests[0]
    assert acr.asked("/oauth2/exchange") == 1
    assert acr.asked("/oauth2/token") == 2


async def test_over_https_the_authority_of_the_settings_is_trusted(test_session: Session, tmp_path: Path) -> None:
    with running_acr(test_session, tmp_path / "acr", https=True) as acr:
        acr.server.grant(acr.azure.app, "AcrPush")
        async with acr.client() as client:
            found = await put_image(client.repository("team/image"), "1")
        assert await pull(acr, acr.settings()) == found.digest
        async with Registry(acr.server.address, credentials=acr.settings().azure, plain_http=False) as stranger:
            with pytest.raises(RegistryUnreachable, match="certificate is not trusted"):
                await stranger.repository("team/image").find_manifest("1")


async def test_a_missing_role_is_named_with_the_identity_the_block_and_the_registry(acr: Acr) -> None:
    acr.server.grant(acr.azure.app, "AcrPull")
    async with acr.client() as client:
        with pytest.raises(RegistryAuthError, match=f"the role {PUSH} {acr.server.address}") as caught:
            await put_image(client.repository("team/image"), "1")
    said = str(caught.value)
    assert acr.azure.app.client_id in said and BLOCK in said
    assert not [secret for secret in acr.secrets if secret in said]


async def test_an_identity_without_any_role_is_refused_at_the_exchange(acr: Acr) -> None:
    with pytest.raises(
        RegistryAuthError, match=r"did not let the service principal .*needs the role AcrPull"
    ) as caught:
        await pull(acr, acr.settings())
    assert caught.value.status == 401 and BLOCK in str(caught.value)
    assert not [secret for secret in acr.secrets if secret in str(caught.value)]


async def test_a_wrong_client_secret_is_told_by_its_cause(acr: Acr) -> None:
    identity = acr.azure.identity(client_secret="another-secret-4711")
    with pytest.raises(RegistryAuthError, match=r"got no token: the client secret is wrong.*AADSTS7000215") as caught:
        await pull(acr, acr.settings(identity))
    assert "another-secret-4711" not in str(caught.value) and BLOCK in str(caught.value)
    assert acr.asked("/oauth2") == 0


async def test_a_token_for_another_audience_is_not_taken(acr: Acr) -> None:
    acr.server.grant(acr.azure.app, "AcrPull")
    acr.azure.entra.resources.add("https://other.example.com")
    identity = acr.azure.identity()
    elsewhere = replace(identity, cloud=replace(identity.cloud, registry_audience="https://other.example.com"))
    with pytest.raises(RegistryAuthError, match="tenant and cloud"):
        await pull(acr, acr.settings(elsewhere))


async def test_a_registry_that_is_none_of_azures_gets_no_entra_token(acr: Acr, basic_registry: Running) -> None:
    azure = AzureRegistry(basic_registry.address, acr.azure.identity())
    async with open_registry(RegistrySettings(basic_registry.address, azure=azure)) as client:
        with pytest.raises(RegistryAuthError, match="HTTP 401"):
            await client.repository("team/image").find_manifest("1")
    assert [line for line in basic_registry.log_lines() if acr.azure.app.client_id in line or "/oauth2" in line] == []


async def test_throttling_is_waited_out_at_every_step(acr: Acr) -> None:
    acr.server.grant(acr.azure.app, "AcrPush")
    for pattern in ("POST /oauth2/exchange", "POST /oauth2/token", "PUT /v2/.*/manifests/1", "PUT /v2/.*/uploads/.*"):
        acr.server.throttle(1, retry_after=0, pattern=pattern)
    async with acr.client() as client:
        found = await put_image(client.repository("team/image"), "1")
    assert await pull(acr, acr.settings()) == found.digest
    assert acr.asked("/oauth2/exchange") == 3  # throttled, repeated; and once for the pull
    assert acr.count("PUT /v2/team/image/manifests/1") == 2


async def test_retry_after_is_obeyed_and_endless_throttling_is_told(acr: Acr) -> None:
    acr.server.grant(acr.azure.app, "AcrPull")
    acr.server.throttle(100, retry_after=1, pattern="POST /oauth2/token")
    loop = asyncio.get_running_loop()
    settings = replace(acr.settings(), limits=Limits(attempts=2, backoff=0.01))
    started = loop.time()
    with pytest.raises(RegistryUnreachable, match="limits the rate"):
        await pull(acr, settings)
    assert loop.time() - started >= 1


async def test_anybody_pulls_where_the_registry_allows_it_and_nobody_pushes(acr: Acr) -> None:
    acr.server.grant(acr.azure.app, "AcrPush")
    async with acr.client() as client:
        found = await put_image(client.repository("team/image"), "1")
    with pytest.raises(RegistryAuthError, match=r"az acr login --name .*anonymous pull") as caught:
        await pull(acr, acr.open_to())
    assert BLOCK in str(caught.value)
    acr.server.anonymous_pull = True
    assert await pull(acr, acr.open_to()) == found.digest
    with pytest.raises(RegistryAuthError, match="Set credentials"):
        async with open_registry(acr.open_to()) as client:
            await put_image(client.repository("team/image"), "2")


async def test_the_admin_user_and_a_token_with_a_scope_map_sign_in_with_a_password(acr: Acr) -> None:
    acr.server.add_admin("team", "admin-pass-word-1")
    acr.server.add_token("ci", "token-pass-word-2", **{"team/image": "pull"})
    async with open_registry(acr.open_to(username="team", password="admin-pass-word-1")) as client:
        found = await put_image(client.repository("team/image"), "1")
        await put_image(client.repository("team/other"), "1")
    ci = acr.open_to(username="ci", password="token-pass-word-2")
    assert await pull(acr, ci) == found.digest
    with pytest.raises(RegistryAuthError, match="scope map must allow"):
        await pull(acr, ci, "team/other")
    with pytest.raises(RegistryAuthError, match="admin user must be switched on") as caught:
        await pull(acr, acr.open_to(username="team", password="wrong-pass-word-3"))
    assert "wrong-pass-word-3" not in str(caught.value)


async def test_what_az_acr_login_left_opens_the_registry(
    acr: Acr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acr.server.grant(acr.azure.app, "AcrPush")
    monkeypatch.setenv("DOCKER_CONFIG", str(acr.docker_config(tmp_path / "by-password")))
    async with open_registry(acr.open_to()) as client:
        found = await put_image(client.repository("team/image"), "1")
    entry = {"auth": "MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwOg=="}  # the user with an empty password
    entry["identitytoken"] = acr.server.refresh_token(acr.azure.app)
    monkeypatch.setenv("DOCKER_CONFIG", str(acr.docker_config(tmp_path / "by-token", entry)))
    assert await pull(acr, acr.open_to()) == found.digest
    acr.server.tokens.revoke_all()
    with pytest.raises(RegistryAuthError, match=r"ends after some hours: repeat `az acr login"):
        await pull(acr, acr.open_to())


@pytest.mark.parametrize("user", [TOKEN_USER, "<token>"])
async def test_a_docker_credential_helper_is_asked(
    acr: Acr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    acr.server.grant(acr.azure.app, "AcrPush")
    answer = json.dumps({"Username": user, "Secret": acr.server.refresh_token(acr.azure.app)})
    helper = tmp_path / "bin" / "docker-credential-acr-tests"
    helper.parent.mkdir()
    helper.write_text(f"#!/bin/sh\nread server\ntest $server = {acr.server.address} && echo '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    config = acr.docker_config(tmp_path / "docker", {}, credHelpers={acr.server.address: "acr-tests"})
    monkeypatch.setenv("DOCKER_CONFIG", str(config))
    async with open_registry(acr.open_to()) as client:
        await put_image(client.repository("team/image"), "1")


async def test_other_tools_get_a_login_that_skopeo_and_docker_can_use(
    acr: Acr, docker_engine: DockerEngine, base_layout_without_python: object, tmp_path: Path
) -> None:
    need("skopeo")
    acr.server.grant(acr.azure.app, "AcrPush")
    login = await tool_login(acr.settings(), Secrets())
    assert login is not None and login[0] == TOKEN_USER
    source = base_layout_without_python.reference  # type: ignore[attr-defined]
    target = f"{acr.server.address}/team/image:1"
    creds = ":".join(login)
    tool("skopeo", "copy", "-q", "--dest-tls-verify=false", "--dest-creds", creds, source, f"docker://{target}")
    config = acr.docker_config(tmp_path / "docker")
    docker_engine.docker("--config", config, "pull", "--quiet", target)
    copied = f"oci:{tmp_path / 'copied'}:image"
    tool("skopeo", "copy", "-q", "--src-tls-verify=false", "--src-creds", creds, f"docker://{target}", copied)


async def test_other_tools_get_the_password_of_a_user_and_nothing_where_there_is_none(acr: Acr) -> None:
    settings = acr.open_to(username="secret:user", password="secret:password")
    assert await tool_login(settings, Secrets({"user": "ci", "password": "pw-88123"})) == ("ci", "pw-88123")
    assert await tool_login(acr.open_to(), Secrets()) is None


async def test_no_secret_and_no_token_is_logged_at_any_level(acr: Acr, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    acr.server.grant(acr.azure.app, "AcrPush")
    async with acr.client() as client:
        await put_image(client.repository("team/image"), "1")
    acr.azure.entra.revoke(acr.azure.app)
    acr.server.tokens.revoke_all()
    with pytest.raises(RegistryError):
        await pull(acr, acr.settings())
    assert len(acr.secrets) == 4  # of the application, Entra's, a refresh and an access token
    assert not [secret for secret in acr.secrets if secret in caplog.text]
