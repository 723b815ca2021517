"""Pushes to a Container Registry that take longer than a token lives, and ones whose credentials are revoked."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.azure.credentials import forget_credentials
from prefect_environments.core.distribution.limits import Limits
from prefect_environments.core.errors import RegistryAuthError
from prefect_environments.core.lock.model import LockedBase
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import RedactingFilter
from tests.faults.parts import NAME, Plan, lock_of, make_wheels, plan_on, push, team, write_base
from tests.images.parts import Team
from tests.support.azure.acr_parts import Acr, running_acr
from tests.support.leaks import find_secret
from tests.support.session import Session


@pytest.fixture
def acr(test_session: Session, tmp_path: Path) -> Iterator[Acr]:
    """A registry of the test's own, to which the application may push."""
    with running_acr(test_session, tmp_path / "acr") as running:
        running.server.grant(running.azure.app, "AcrPush")
        yield running


@pytest.fixture
async def plan(acr: Acr, tmp_path: Path) -> AsyncIterator[Plan]:
    """Three wheels on a base that is in the registry."""
    async with acr.client() as client:
        base: LockedBase = await write_base(client.repository("base"))
    acr.server.log.clear()
    yield plan_on(f"{acr.server.address}/base:1", lock_of(make_wheels(tmp_path / "wheels"), base))


def workspace(acr: Acr, tmp_path: Path, settings: RegistrySettings | None = None) -> Team:
    return team(settings or acr.settings(), tmp_path / "versions")


def at_uploads(acr: Acr, change: Callable[[int], None]) -> None:
    """Call `change` with a number, from 1, whenever an upload session was opened and its bytes are not sent yet."""
    begin, opened = acr.server.store.begin, [0]

    def hooked(name: str) -> str:
        identifier = begin(name)
        opened[0] += 1
        change(opened[0])
        return identifier

    acr.server.store.begin = hooked  # type: ignore[method-assign]


async def test_a_push_outlives_its_access_and_refresh_tokens(acr: Acr, plan: Plan, tmp_path: Path) -> None:
    acr.server.tokens.access_lifetime = acr.server.tokens.refresh_lifetime = 3
    at_uploads(acr, lambda number: time.sleep(0.7))
    settings = replace(acr.settings(), limits=Limits(attempts=3, backoff=0.01, transfers=1))
    record = await push(plan, workspace(acr, tmp_path, settings), tmp_path / "cache")
    assert record.version == 1
    pushing = acr.asked("/oauth2/token")
    assert acr.asked("/oauth2/exchange") > 1 and pushing > 3
    async with acr.client() as client:
        await validate(client.repository(f"environments/{NAME}"), record.digest, tmp_path / "check")


async def test_an_upload_whose_token_ends_between_its_opening_and_its_bytes_ends_well(
    acr: Acr, plan: Plan, tmp_path: Path
) -> None:
    revoked = []

    def revoke(number: int) -> None:
        if number == 2:
            revoked.append(number)
            acr.server.tokens.revoke_all()  # access and refresh tokens: all must be had again, from Entra's on

    at_uploads(acr, revoke)
    record = await push(plan, workspace(acr, tmp_path), tmp_path / "cache")
    assert (record.version, revoked) == (1, [2])
    assert acr.asked("/oauth2/exchange") > 1
    async with acr.client() as client:
        await validate(client.repository(f"environments/{NAME}"), record.digest, tmp_path / "check")


async def test_an_entra_token_that_ends_before_the_push_is_had_again(acr: Acr, plan: Plan, tmp_path: Path) -> None:
    acr.azure.entra.lifetime = 61  # a token is taken for ended a minute before
    forget_credentials()  # those that the base was pushed with have a longer one

    def wait_and_revoke(number: int) -> None:
        if number == 2:
            time.sleep(1.2)
            acr.server.tokens.revoke_all()

    at_uploads(acr, wait_and_revoke)
    before = len(acr.azure.entra.issued)
    record = await push(plan, workspace(acr, tmp_path), tmp_path / "cache")
    assert record.version == 1 and len(acr.azure.entra.issued) > before + 1


async def test_credentials_that_are_revoked_in_mid_push_end_it_with_who_and_without_a_version(
    acr: Acr, plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.addFilter(RedactingFilter())

    def revoke(number: int) -> None:
        if number == 2:
            acr.azure.entra.revoke(acr.azure.app)
            acr.server.tokens.revoke_all()

    at_uploads(acr, revoke)
    place = workspace(acr, tmp_path)
    with pytest.raises(RegistryAuthError, match=rf"did not let .*{acr.azure.app.client_id}.* in .*role AcrP") as caught:
        await push(plan, place, tmp_path / "cache")
    assert await place.versions.versions(NAME) == []
    assert not [secret for secret in acr.secrets if secret in f"{caught.value!r}{caplog.text}"]
    for secret in acr.secrets:
        assert find_secret(secret, tmp_path / "cache") == []


async def test_a_role_that_is_taken_away_in_mid_push_is_named(acr: Acr, plan: Plan, tmp_path: Path) -> None:
    def demote(number: int) -> None:
        if number == 2:
            acr.server.grant(acr.azure.app, "AcrPull")
            acr.server.tokens.revoke_all()

    at_uploads(acr, demote)
    place = workspace(acr, tmp_path)
    with pytest.raises(RegistryAuthError, match=f"the role AcrPush on registry {acr.server.address}"):
        await push(plan, place, tmp_path / "cache")
    assert await place.versions.versions(NAME) == []


async def test_throttling_in_mid_push_is_waited_out(acr: Acr, plan: Plan, tmp_path: Path) -> None:
    for pattern in ("POST /oauth2/.*", "POST /v2/.*/uploads/", "PUT /v2/.*/uploads/.*", "PUT /v2/.*/manifests/.*"):
        acr.server.throttle(1, retry_after=0, pattern=pattern)
    record = await push(plan, workspace(acr, tmp_path), tmp_path / "cache")
    assert record.version == 1 and not [fault for fault in acr.server.faults if fault.times]
