"""The rules of signing in to a Container Registry, without a socket."""

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from prefect_environments.core.azure.credentials import Identity
from prefect_environments.core.azure.registry import TOKEN_USER, AzureRegistry, EntraExchange
from prefect_environments.core.distribution.auth import Auth, seconds_left
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.messages import Answer, scopes_of
from prefect_environments.core.errors import RegistryError

SERVER = URL("https://team.example.com/")
AZURE = AzureRegistry("team.example.com", Identity("managed-identity", client_id="c-1"), block="block 'acr'")
EXCHANGE = EntraExchange(AZURE, "entra-token-1234", "t-1")
PULL = scopes_of("a/b", "pull")


def answer(**data: object) -> Answer:
    return Answer(200, body=json.dumps(data).encode())


def unsigned(**claims: object) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.x"


def signing_in(realm: str) -> Auth:
    made = Auth(SERVER, advice=AZURE.advice)
    made.credentials = Credentials(str(AZURE.identity), "", exchange=EXCHANGE)
    made.learn([f'Bearer realm="{realm}",service="team.example.com",scope="repository:a/b:pull"'])
    return made


def test_an_entra_token_goes_to_the_registry_itself_whatever_realm_it_names() -> None:
    steps = signing_in("https://evil.example.com/token").authorize(PULL)
    first = next(steps)
    assert (first.method, str(first.url)) == ("POST", "https://team.example.com/oauth2/exchange")
    second = steps.send(answer(refresh_token="refresh-1234"))
    assert second.url.host == "evil.example.com"  # it sees a token that only this registry takes, and no other


def test_a_refresh_token_is_used_for_all_scopes_until_it_is_refused() -> None:
    made = signing_in("https://team.example.com/oauth2/token")
    steps = made.authorize(PULL)
    next(steps)
    steps.send(answer(refresh_token=unsigned(exp=time.time() + 3600)))
    with pytest.raises(StopIteration):
        steps.send(answer(access_token="access-1"))
    steps = made.authorize(scopes_of("c", "push"))
    assert next(steps).url.path == "/oauth2/token"
    assert steps.send(Answer(401)).url.path == "/oauth2/exchange"
    assert steps.send(answer(refresh_token="refresh-2")).url.path == "/oauth2/token"
    with pytest.raises(RegistryError, match=r"HTTP 401 .*the role AcrPush on registry team .*Repository Writer"):
        steps.send(Answer(401))


def test_nothing_is_sent_to_a_registry_that_wants_a_password() -> None:
    made = signing_in("https://team.example.com/token")
    made.learn(["Basic realm=x"])
    with pytest.raises(StopIteration) as end:
        next(made.authorize(PULL))
    assert end.value.value is None


@given(
    st.integers(201, 599) | st.just(200),
    st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode),
)
def test_no_answer_to_an_exchange_escapes_the_error_tree_or_shows_the_token(status: int, body: bytes) -> None:
    with pytest.raises(RegistryError, match=r"team\.example\.com") as caught:
        EXCHANGE.read(SERVER, Answer(status, body=body))
    assert "entra-token-1234" not in f"{caught.value}{EXCHANGE!r}"


@given(st.text() | st.binary().map(lambda data: f"a.{base64.urlsafe_b64encode(data).decode()}.b"))
def test_a_token_that_is_none_of_json_web_has_no_known_end(token: str) -> None:
    assert seconds_left(token) is None


@pytest.mark.parametrize(
    ("claim", "known"),
    [
        (600, True),
        (-1, False),
        (10**9, False),
        ("soon", False),
        (float("nan"), False),
        (None, False),
    ],
)
def test_the_end_of_a_token_is_believed_if_it_makes_sense(claim: object, known: bool) -> None:
    """Numbers are seconds from now."""
    claims = {} if claim is None else {"exp": time.time() + claim if isinstance(claim, int) else claim}
    assert (seconds_left(unsigned(**claims)) is not None) is known


@pytest.mark.parametrize(
    ("actions", "role"),
    [
        (["pull"], "AcrPull"),
        (["pull", "push"], "AcrPush"),
        (["metadata_read", "metadata_write"], "AcrPush"),
        (["metadata_read", "delete"], "AcrDelete"),
        ([], "AcrPull"),
    ],
)
def test_the_least_role_that_is_enough_is_advised(actions: list[str], role: str) -> None:
    found = Credentials("the managed identity", "", exchange=EXCHANGE)
    said = AZURE.advice(scopes_of("a", *actions), found)
    assert f"the role {role} on registry team" in said and "block 'acr'" in said


def test_advice_fits_the_way_of_signing_in() -> None:
    assert "az acr login --name team" in AZURE.advice(PULL, None)
    assert "repeat `az acr login --name team`" in AZURE.advice(PULL, Credentials(TOKEN_USER, "x-1234567"))
    assert "scope map" in AZURE.advice(PULL, Credentials("ci", "x-1234567"))


def test_a_registrys_name_is_in_its_login_server() -> None:
    names = {"team.example.com": "team", "team-a1b2c3.example.com:443": "team", "10.0.0.1:5000": "10.0.0.1:5000"}
    assert {server: AzureRegistry(server).name for server in names} == names
