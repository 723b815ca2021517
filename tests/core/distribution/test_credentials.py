"""Credentials, and where Docker and podman keep them."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_environments.core.distribution.credentials import Credentials, DockerConfig
from prefect_environments.core.errors import RegistryAuthError
from prefect_environments.core.redact import redact

HOST = "registry.example.com:5000"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def config(folder: Path, content: object) -> DockerConfig:
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return DockerConfig(files=(file,))


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of credential helpers on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def write_helper(folder: Path, script: str, name: str = "mine") -> None:
    file = folder / f"docker-credential-{name}"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_secrets_are_not_shown_and_are_masked_from_then_on() -> None:
    found = Credentials("ann", "pass-word-61", "identity-62")
    assert repr(found) == "Credentials(username='ann')"
    assert "pass-word-61" not in redact("x pass-word-61") and "identity-62" not in redact("y identity-62")


@pytest.mark.parametrize("key", [HOST, f"https://{HOST}", f"https://{HOST}/v1/", f"http://{HOST}/v2", f"{HOST}/team"])
async def test_a_key_may_have_a_scheme_and_a_path(tmp_path: Path, key: str) -> None:
    source = config(tmp_path, {"auths": {"other.example.com": {}, key: {"auth": encoded("ann:se:cret")}}})
    assert await source.get(HOST) == Credentials("ann", "se:cret")
    assert await source.get("other.example.com") is None
    assert await source.get("registry.example.com") is None


async def test_the_exact_key_wins(tmp_path: Path) -> None:
    auths = {f"{HOST}/team": {"auth": encoded("c:c")}, f"https://{HOST}/v1/": {"auth": encoded("b:b")}}
    source = config(tmp_path, {"auths": auths | {HOST: {"auth": encoded("a:a")}}})
    assert await source.get(HOST) == Credentials("a", "a")


async def test_docker_hubs_old_key_is_known(tmp_path: Path) -> None:
    source = config(tmp_path, {"auths": {"https://index.docker.io/v1/": {"auth": encoded("ann:pass-word-68")}}})
    assert await source.get("docker.io") == Credentials("ann", "pass-word-68")


async def test_an_identity_token_is_read(tmp_path: Path) -> None:
    source = config(tmp_path, {"auths": {HOST: {"auth": encoded("ann:"), "identitytoken": "refresh-63"}}})
    assert await source.get(HOST) == Credentials("ann", "", "refresh-63")


async def test_the_usual_places_are_asked_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert await DockerConfig().get(HOST) is None
    (tmp_path / "run/containers").mkdir(parents=True)
    (tmp_path / "run/containers/auth.json").write_text(
        json.dumps({"auths": {HOST: {"auth": encoded("p:pass-word-69")}}})
    )
    assert await DockerConfig().get(HOST) == Credentials("p", "pass-word-69")
    (tmp_path / "docker").mkdir()
    config(tmp_path / "docker", {"auths": {HOST: {"auth": encoded("d:pass-word-70")}}})
    assert await DockerConfig().get(HOST) == Credentials("d", "pass-word-70")


async def test_a_helper_is_asked_with_the_host_on_its_input(helper: Path) -> None:
    write_helper(helper, """read host; echo "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"helped-67-$host\\"}" """)
    assert await config(helper, {"credsStore": "mine"}).get(HOST) == Credentials("get", f"helped-67-{HOST}")
    assert await config(helper, {"credHelpers": {HOST: "mine"}}).get(HOST) == Credentials("get", f"helped-67-{HOST}")
    assert await config(helper, {"credHelpers": {"other.example.com": "mine"}}).get(HOST) is None
    assert await config(helper, {"credsStore": "mine"}).get("docker.io") == Credentials(
        "get", "helped-67-https://index.docker.io/v1/"
    )


async def test_a_helpers_token_user_means_an_identity_token(helper: Path) -> None:
    write_helper(helper, """echo '{"Username": "<token>", "Secret": "refresh-64"}'""")
    assert await config(helper, {"credsStore": "mine"}).get(HOST) == Credentials("", "", "refresh-64")


async def test_a_helper_that_has_none_leaves_the_question_to_the_file(helper: Path) -> None:
    write_helper(helper, "echo credentials not found in native keychain; exit 1")
    source = config(helper, {"credsStore": "mine", "auths": {HOST: {"auth": encoded("ann:pass-word-68")}}})
    assert await source.get(HOST) == Credentials("ann", "pass-word-68")
    assert await source.get("other.example.com") is None


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("echo se-cret-65; echo se-cret-65 >&2; exit 3", "exit status 3"),
        ("echo se-cret-65", "no Username"),
        ("exec sleep 60", "no answer"),
    ],
)
async def test_a_broken_helper_is_told_without_what_it_said(helper: Path, script: str, word: str) -> None:
    write_helper(helper, script)
    file = helper / "config.json"
    file.write_text('{"credsStore": "mine"}')
    with pytest.raises(RegistryAuthError, match=f"docker-credential-mine.*{word}") as caught:
        await DockerConfig(files=(file,), time_limit=1).get(HOST)
    assert "se-cret-65" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing-one", "../evil", "", 7, ["x"]])
async def test_a_helper_that_cannot_be_run_is_told(tmp_path: Path, name: object) -> None:
    source = config(tmp_path, {"credHelpers": {HOST: name}})
    if name == "":
        assert await source.get(HOST) is None
    else:
        with pytest.raises(RegistryAuthError):
            await source.get(HOST)


@pytest.mark.parametrize(
    "content",
    [
        '{"se-cret-66',
        "[]",
        "[" * 100_000,
        {"auths": 1},
        {"auths": {HOST: 1}},
        {"auths": {HOST: {"auth": "se-cret-66"}}},
        {"auths": {HOST: {"auth": encoded("nocolon")}}},
        {"auths": {HOST: {"identitytoken": 5}}},
        {"credHelpers": 1},
    ],
)
async def test_a_malformed_file_is_told_by_name_and_without_its_content(tmp_path: Path, content: object) -> None:
    with pytest.raises(RegistryAuthError, match=r"config\.json") as caught:
        await config(tmp_path, content).get(HOST)
    assert "se-cret-66" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([HOST, "auth", "x"]), inner),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["auths", "credHelpers", "credsStore"]), _JSON))
async def test_no_file_escapes_the_error_tree(tmp_path: Path, content: dict[str, object]) -> None:
    try:
        found = await config(tmp_path, content).get(HOST)
    except RegistryAuthError:
        return
    assert found is None or isinstance(found, Credentials)
