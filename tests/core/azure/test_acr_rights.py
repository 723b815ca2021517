"""Whether a sign-in may lock and delete, found without locking or deleting anything."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.blocks import AzureContainerRegistry, AzureCredentials, Workspace
from prefect_environments.core.azure.acr_rights import check_rights, granted
from prefect_environments.core.findings import Finding
from prefect_environments.core.registry_settings import RegistrySettings
from tests.images.parts import Secrets
from tests.support.azure.acr_parts import BLOCK, Acr, running_acr, with_lock
from tests.support.session import Session

PATH = "environments/check"


@pytest.fixture
def acr(test_session: Session, tmp_path: Path) -> Iterator[Acr]:
    with running_acr(test_session, tmp_path / "acr") as running:
        yield running


async def rights(settings: RegistrySettings, *, deleting: bool = True) -> dict[str, Finding]:
    return {found.name: found for found in await check_rights(settings, Secrets(), PATH, deleting=deleting)}


@pytest.mark.parametrize(
    ("roles", "lock", "delete"),
    [(["AcrPull"], False, False), (["AcrPush"], True, False), (["AcrPush", "AcrDelete"], True, True)],
)
async def test_locking_and_deleting_are_told_by_the_registrys_token(
    acr: Acr, roles: list[str], lock: bool, delete: bool
) -> None:
    acr.server.grant(acr.azure.app, *roles)
    found = await rights(with_lock(acr.settings()))
    assert (found["lock"].ok, found["delete"].ok) == (lock, delete)
    for name, role in (("lock", "AcrPush"), ("delete", "AcrDelete")):
        if not found[name].ok:
            assert f"the role {role} on registry" in found[name].advice and BLOCK in found[name].advice
            assert str(acr.azure.identity()) in found[name].advice and found[name].required
    assert {line.split()[0] for line in acr.server.log} <= {"GET", "POST"}
    assert acr.count("POST /v2") == acr.count("GET /acr") == 0, "only tokens are asked for"


async def test_only_what_is_wanted_is_asked(acr: Acr) -> None:
    acr.server.grant(acr.azure.app, "Owner")
    assert await rights(acr.settings(), deleting=False) == {}
    assert set(await rights(with_lock(acr.settings()), deleting=False)) == {"lock"}
    assert await rights(RegistrySettings("registry.example.com")) == {}


async def test_a_token_with_a_scope_map_says_it_too_and_a_refused_one_fails(acr: Acr) -> None:
    acr.server.add_token("ci", "token-pass-word-2", **{PATH: "pull,push,delete"})
    settings = acr.open_to(username="ci", password="token-pass-word-2")
    assert (await rights(settings))["delete"].ok
    assert not (await rights(with_lock(settings)))["lock"].ok
    wrong = (await rights(acr.open_to(username="ci", password="wrong-pass-word-3")))["delete"]
    assert not wrong.ok and wrong.required and "wrong-pass-word-3" not in str(wrong)
    acr.server.go_down()
    away = (await rights(settings))["delete"]
    assert (away.state, away.advice) == ("missing", "See registry")


def header(claims: Any) -> str:
    return f"Bearer x.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.y"


@pytest.mark.parametrize(
    ("claims", "allowed"),
    [
        ({"access": [{"type": "repository", "name": PATH, "actions": ["delete"]}]}, {"delete"}),
        ({"access": [{"Type": "repository", "Name": PATH, "Actions": ["delete", "pull"]}]}, {"delete", "pull"}),
        ({"access": [{"type": "repository", "name": "other", "actions": ["delete"]}]}, set()),
        ({"access": [{"type": "registry", "name": PATH, "actions": ["*"]}]}, set()),
        ({"access": [{"type": "repository", "name": PATH, "actions": None}]}, set()),
        ({"access": None}, set()),
        ({}, None),
        ([], None),
        ({"access": 5}, None),
        ({"access": ["x"]}, None),
        ({"access": [{"type": "repository", "name": PATH, "actions": 5}]}, None),
    ],
)
def test_what_a_token_does_not_say_is_not_guessed(claims: Any, allowed: set[str] | None) -> None:
    assert granted(header(claims), PATH) == allowed


@pytest.mark.parametrize("text", ["", "Bearer opaque", "Bearer a.!.c", "Basic eC55Lno=", "Bearer a.bm9qc29u.c"])
def test_a_header_that_is_no_such_token_says_nothing(text: str) -> None:
    assert granted(text, PATH) is None


def test_the_check_of_a_workspace_has_both(acr: Acr, prefect_server: str) -> None:
    acr.server.grant(acr.azure.app, "AcrPush")
    registry = AzureContainerRegistry(login_server=acr.server.address, lock_registered=True)
    workspace = Workspace(name="team", registry=registry, credentials=AzureCredentials(**acr.fields))
    found = {one.name: one for one in workspace.check(deleting=True)}
    assert found["push"].ok and found["lock"].ok and not found["delete"].ok
    assert "AcrDelete" in found["delete"].advice
