"""The rules of authentication, without a socket."""

import json
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from prefect_environments.core.distribution.auth import Auth, format_scopes, parse_challenges, parse_scopes
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.messages import Answer, Request, Scopes, scopes_of
from prefect_environments.core.errors import RegistryAuthError

BEARER = 'Bearer realm="https://auth.example.com/token",service="reg",scope="repository:a/b:pull"'
PULL, PUSH = scopes_of("a/b", "pull"), scopes_of("a/b", "pull", "push")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def auth(
    challenge: str = BEARER, credentials: Credentials | None = None, registry: str = "https://r.example.com"
) -> Auth:
    made = Auth(URL(registry), clock=Clock())
    made.credentials = credentials
    made.learn([challenge])
    return made


def token(value: str = "tok-1", **more: object) -> Answer:
    return Answer(200, body=json.dumps({"token": value, **more}).encode())


def drive(steps: Generator[Request, Answer, str | None], *answers: Answer) -> tuple[str | None, list[Request]]:
    """The header that comes out, and the token requests that were made."""
    asked: list[Request] = []
    left = list(answers)
    try:
        request = next(steps)
        while True:
            asked.append(request)
            request = steps.send(left.pop(0))
    except StopIteration as end:
        return end.value, asked


def test_several_challenges_in_one_header_are_told_apart() -> None:
    header = r'Negotiate abc==, BASIC realm="a \"b\", c" , bearer Realm="https://x", service=s'
    found = parse_challenges([header])
    assert [c.scheme for c in found] == ["negotiate", "basic", "bearer"]
    assert found[1].parameters == {"realm": 'a "b", c'}
    assert found[2].parameters == {"realm": "https://x", "service": "s"}


@given(st.lists(st.text() | st.text(alphabet='Bearer realm="x,\\ =', max_size=60)))
def test_no_challenge_header_can_crash_the_reader(values: list[str]) -> None:
    for challenge in parse_challenges(values):
        assert challenge.scheme == challenge.scheme.lower()
    Auth(URL("https://r.example.com")).learn(values)


def test_a_long_hostile_challenge_is_read_in_linear_work() -> None:
    assert parse_challenges(['="' * 8000, "a" * 100_000, 'Bearer a="' + "\\" * 20_000]) is not None


@given(
    st.sets(st.tuples(st.sampled_from(["repository:a/b", "repository:c", "registry:catalog"]), st.sampled_from("pqr")))
)
def test_scopes_survive_writing_and_reading(scopes: set[tuple[str, str]]) -> None:
    assert parse_scopes(" ".join(format_scopes(frozenset(scopes)))) == scopes


def test_nothing_is_sent_before_the_registry_has_asked() -> None:
    made = Auth(URL("https://r.example.com"))
    made.credentials = Credentials("ann", "secret-1")
    assert drive(made.authorize(PULL)) == (None, [])


def test_basic_credentials_are_sent_once_and_not_again_after_a_refusal() -> None:
    made = auth("Basic realm=x", Credentials("ann", "secret-1"))
    header, asked = drive(made.authorize(PULL))
    assert header is not None and header.startswith("Basic ") and not asked
    assert drive(made.authorize(PULL, header)) == (None, [])


def test_bearer_is_preferred_to_basic() -> None:
    made = Auth(URL("https://r.example.com"))
    made.learn(["Basic realm=x", BEARER])
    assert made.challenge is not None and made.challenge.scheme == "bearer"


def test_a_wider_token_serves_narrower_requests_and_not_the_other_way_round() -> None:
    made = auth()
    assert drive(made.authorize(PULL), token("tok-narrow"))[0] == "Bearer tok-narrow"
    assert drive(made.authorize(PUSH), token("tok-wide"))[0] == "Bearer tok-wide"
    header, asked = drive(made.authorize(scopes_of("a/b", "push")))
    assert (header, asked) == ("Bearer tok-wide", [])


@pytest.mark.parametrize(("more", "alive"), [({}, 50), ({"expires_in": 300}, 280), ({"expires_in": "x"}, 50)])
def test_a_token_is_kept_until_a_little_before_its_end(more: dict[str, object], alive: float) -> None:
    clock = Clock()
    made = Auth(URL("https://r.example.com"), clock=clock)
    made.learn([BEARER])
    drive(made.authorize(PULL), token("tok-first", **more))
    clock.now += alive
    assert drive(made.authorize(PULL)) == ("Bearer tok-first", [])
    clock.now += 21
    assert drive(made.authorize(PULL), token("tok-second"))[0] == "Bearer tok-second"


def test_a_refused_token_is_thrown_away() -> None:
    made = auth()
    drive(made.authorize(PULL), token("tok-first"))
    assert drive(made.authorize(PULL, "Bearer tok-first"), token("tok-second"))[0] == "Bearer tok-second"
    assert drive(made.authorize(PULL)) == ("Bearer tok-second", [])


def test_a_password_goes_by_get_with_service_and_scope() -> None:
    _, [request] = drive(auth(credentials=Credentials("ann", "secret-1")).authorize(PUSH), token())
    assert request.method == "GET"
    assert request.url.query.getall("scope") == ["repository:a/b:pull,push"]
    assert request.url.query["service"] == "reg"
    assert request.headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("credentials", "methods"),
    [(Credentials("ann", "secret-1"), ["GET", "POST"]), (Credentials("", "", "refresh-1"), ["POST", "GET"])],
)
@pytest.mark.parametrize("status", [404, 405])
def test_the_other_method_is_tried_where_a_token_server_lacks_one(
    credentials: Credentials, methods: list[str], status: int
) -> None:
    made = auth(credentials=credentials)
    header, asked = drive(made.authorize(PULL), Answer(status), token())
    assert header == "Bearer tok-1"
    assert [request.method for request in asked] == methods
    _, again = drive(made.authorize(PUSH), token())
    assert [request.method for request in again] == methods[1:]


@pytest.mark.parametrize(
    "realm", ["http://auth.example.com/token", "ftp://auth.example.com", "//x", "https://u:p@x/", "http://["]
)
def test_a_realm_that_is_clear_text_or_senseless_gets_no_credentials(realm: str) -> None:
    made = auth(f'Bearer realm="{realm}"', Credentials("ann", "secret-1"))
    with pytest.raises(RegistryAuthError, match="realm"):
        next(made.authorize(PULL))


def test_a_plain_realm_is_allowed_to_a_plain_registry() -> None:
    made = auth('Bearer realm="http://127.0.0.1:1/t"', registry="http://127.0.0.1:2")
    assert drive(made.authorize(PULL), token())[0] == "Bearer tok-1"


@given(
    st.integers(200, 599), st.binary() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_answer_of_a_token_server_escapes_the_error_tree(status: int, body: bytes) -> None:
    with pytest.raises(RegistryAuthError):
        drive(auth().authorize(PULL), Answer(status, body=body), Answer(status, body=body))


@pytest.mark.parametrize("value", ["a b", "a\r\nX: y", "", "é"])
def test_a_token_that_is_no_header_text_is_refused(value: str) -> None:
    with pytest.raises(RegistryAuthError, match="usable token"):
        drive(auth().authorize(PULL), token(value))


def test_a_refusal_names_the_user_and_the_scope_and_no_secret() -> None:
    made = auth(credentials=Credentials("ann", "secret-word-3"))
    with pytest.raises(RegistryAuthError) as caught:
        drive(made.authorize(PUSH), Answer(401, body=b"secret-word-3"))
    assert "'ann'" in str(caught.value) and "repository:a/b:pull,push" in str(caught.value)
    assert "secret-word-3" not in str(caught.value)


def test_scopes_of_names_one_pair_an_action() -> None:
    expected: Scopes = frozenset({("repository:a/b", "pull"), ("repository:a/b", "push")})
    assert expected == PUSH
