"""Who is let in, and what is never shown to others: tokens, redirects, certificates, in the middle of whole builds."""

import asyncio
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.errors import RegistryAuthError, RegistryError, RegistryUnreachable
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.registry_settings import RegistrySettings
from tests.core.distribution.conftest import TokenRegistry, token_registry
from tests.core.distribution.test_tls import certificate, tls
from tests.core.distribution.tokens import PASSWORD, USER
from tests.faults import proxy as p
from tests.faults.conftest import Ground
from tests.faults.parts import NAME, PATIENT, Plan, push, team
from tests.faults.proxy import Proxy, Rule, proxy_to
from tests.images.parts import Team

__all__ = ["certificate", "tls", "token_registry"]  # fixtures


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_download_that_is_sent_on_shows_no_credentials_to_the_other_host(code: int, ground: Ground) -> None:
    async with proxy_to(ground.registry.address, authorization=ground.authorization) as storage:
        rules = [Rule(r"^POST .*mount=", p.unmounted, None)]
        rules += [Rule(r"^(GET|HEAD) .*/blobs/", p.redirect(storage.address, code), None)]
        async with proxy_to(ground.registry.address, *rules) as front:
            plan, workspace = ground.at(front.address)
            record = await push(plan, workspace, ground.folder / "cache")
        assert record.digest == plan.digest
        assert storage.seen and all("authorization" not in headers for headers in storage.seen)
        assert all("authorization" in headers for headers in front.seen[1:])


async def test_an_upload_that_is_sent_on_shows_no_credentials_to_the_other_host(ground: Ground) -> None:
    async def elsewhere(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        passed = await proxy.forward(request)
        return p.reply(passed, Location=passed.headers["Location"].replace(proxy.address, storage.address))

    async with proxy_to(ground.registry.address, authorization=ground.authorization) as storage:
        async with proxy_to(ground.registry.address, Rule(r"^POST .*/uploads/$", elsewhere, None)) as front:
            plan, workspace = ground.at(front.address)
            record = await push(plan, workspace, ground.folder / "cache")
        assert record.digest == plan.digest
        assert storage.seen and all("authorization" not in headers for headers in storage.seen)


async def test_a_manifest_that_is_sent_on_shows_no_credentials_to_the_other_host(ground: Ground) -> None:
    """Manifests are not followed to other hosts at all."""
    async with proxy_to(ground.registry.address, authorization=ground.authorization) as thief:
        async with proxy_to(ground.registry.address, Rule(r"/manifests/", p.redirect(thief.address), None)) as front:
            plan, workspace = ground.at(front.address)
            with pytest.raises(RegistryError, match=r"manifest .*307"):
                await push(plan, workspace, ground.folder / "cache")
        assert thief.seen == []


def by_token(registry: TokenRegistry, folder: Path, address: str = "", password: str = PASSWORD) -> Team:
    settings = RegistrySettings(address or registry.address, USER, password, plain_http=True, limits=PATIENT)
    return team(settings, folder / "versions")


async def test_a_token_that_ends_in_the_middle_of_a_push_is_renewed(
    token_registry: TokenRegistry, plan: Plan, tmp_path: Path
) -> None:
    """The registry allows a minute of clock skew: these tokens end after two seconds, which their server hides."""
    token_registry.tokens.valid_for = -58

    async def slow(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3)
        return p.reply(await proxy.forward(request))

    async with proxy_to(token_registry.address, Rule(r"^POST .*/demo/blobs/uploads/$", slow, 1, 1)) as proxy:
        record = await push(plan, by_token(token_registry, tmp_path, proxy.address), tmp_path / "cache")
    assert (record.digest, record.version) == (plan.digest, 1)
    wanted = [scopes for _, scopes in token_registry.tokens.asked]
    assert wanted.count("repository:environments/demo:pull,push") > 1
    async with Registry(token_registry.address, credentials=Credentials(USER, PASSWORD)) as client:
        token_registry.tokens.valid_for = 300
        await validate(client.repository(f"environments/{NAME}"), plan.digest, tmp_path / "check")


async def test_a_refused_renewal_ends_the_push_with_who_was_refused_what(
    token_registry: TokenRegistry, plan: Plan, tmp_path: Path
) -> None:
    workspace = by_token(token_registry, tmp_path, password="another-word-61")
    with pytest.raises(RegistryAuthError, match=rf"token server .*{USER}.*repository:.*check user, password") as caught:
        await push(plan, workspace, tmp_path / "cache")
    assert "another-word-61" not in str(caught.value) and token_registry.address in str(caught.value)
    assert await workspace.versions.versions(NAME) == []


async def test_a_token_of_a_smaller_scope_than_asked_for_is_an_error_and_no_loop(
    token_registry: TokenRegistry, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = token_registry.tokens._token
    monkeypatch.setattr(token_registry.tokens, "_token", lambda user, scopes: real(user, scopes.replace(",push", "")))
    workspace = by_token(token_registry, tmp_path)
    with pytest.raises(RegistryAuthError, match=r"User 'tess' was signed in.*repository:environments/demo:pull,push"):
        await push(plan, workspace, tmp_path / "cache")
    assert len(token_registry.tokens.asked) < 40
    assert await workspace.versions.versions(NAME) == []


async def test_a_whole_build_over_tls_needs_the_right_authority_and_the_right_name(
    ground: Ground, certificate: Path, tls: ssl.SSLContext
) -> None:
    async with proxy_to(ground.registry.address, tls=tls) as front:
        port = front.address.rpartition(":")[2]
        user, password = ground.registry.username, ground.registry.password

        async def ping(address: str, ca_file: Path | None) -> None:
            made = Registry(address, plain_http=False, ca_file=ca_file, limits=PATIENT,
                            credentials=Credentials(user, password))  # fmt: skip
            async with made as registry:
                await registry.ping()

        await ping(front.address, certificate)
        with pytest.raises(RegistryUnreachable, match=r"certificate is not trusted.*ca_file or SSL_CERT_FILE"):
            await ping(front.address, None)
        with pytest.raises(RegistryUnreachable, match=rf"localhost:{port}.*(Hostname|host ?name) mismatch"):
            await ping(f"localhost:{port}", certificate)
