"""No credential is stored, and none is shown: not in a message, nor in what a traceback would print under it."""

import traceback
from pathlib import Path

import pytest

from prefect_environments.core.errors import RequirementsError
from prefect_environments.core.formats.requirements import parse, read
from prefect_environments.core.redact import remember

SECRET = "s3cr3t-Value"


def refused(line: str) -> str:
    """Everything that a traceback of the refusal shows, besides source lines."""
    with pytest.raises(RequirementsError) as caught:
        parse([line])
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    shown = "".join(traceback.format_exception_only(caught.value))
    assert SECRET not in shown
    assert "Value" not in shown
    return shown


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host.example/simple",
        f"https://{SECRET}@host.example/simple",
        f"https://:{SECRET}@host.example/simple",
        f"http://user:{SECRET}@host.example:8080/simple",
        f"https://user:p@{SECRET}@host.example/simple",
        f"https://user:p/{SECRET}@host.example/simple",
        f"https://user:p#{SECRET}@host.example/simple",
        f"https://user:p?{SECRET}@host.example/simple",
        f"https://host.example/p.zip?sv=1&sig={SECRET}",
        f"https://host.example/p.zip?access_token={SECRET}",
        f"https://host.example/p.zip?X-Amz-Signature={SECRET}",
        f"https://user:{SECRET}",
        f"https://user:{SECRET}@[host.example/simple",
        f"ftp://user:{SECRET}@host.example/p.zip",
        f"file://user:{SECRET}@host.example/p.zip",
        f"user:{SECRET}@host.example/simple",
        f"https:user:{SECRET}@host.example/simple",
    ],
)
@pytest.mark.parametrize(
    "line", ["-i {}", "--extra-index-url={}", "-f {}", "{}", "name @ {}", "-e {}", "-r {}", "name --x={}"]
)
def test_a_url_with_a_credential_is_refused_and_never_shown(line: str, url: str) -> None:
    assert "**********" in refused(line.format(url))


@pytest.mark.parametrize(
    "url",
    [
        f"git+https://{SECRET}@host.example/repo@v1#egg=name",
        f"git+https://oauth2:{SECRET}@host.example/repo@v1#egg=name",
        f"git+ssh://git:{SECRET}@host.example/repo#egg=name",
    ],
)
def test_a_repository_url_with_a_credential_is_refused_with_advice(url: str) -> None:
    assert "credentials block" in refused(url)


def test_an_ssh_login_name_is_no_credential() -> None:
    assert parse(["x @ git+ssh://git@host.example/r"]).packages == ("x @ git+ssh://git@host.example/r",)


@pytest.mark.parametrize(
    "line",
    [
        "-i https://${USER_NAME}:${PW}@host.example/simple",
        "-i https://${ANYTHING}@host.example/simple",
        "git+ssh://${LOGIN}@host.example/r",
        "-i https://host.example/${FEED_TOKEN}/simple",
        "-i https://host.example/simple?x=${API_KEY}",
    ],
)
def test_a_variable_that_stands_for_a_credential_is_refused_whatever_its_value(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = refused(line)
    for name in ("USER_NAME", "PW", "ANYTHING", "LOGIN", "FEED_TOKEN", "API_KEY"):
        monkeypatch.setenv(name, SECRET)
    assert refused(line) == before
    assert "credentials block" in before


@pytest.mark.parametrize("line", ["-i ${FEED}", "name @ ${FEED}", "name==${FEED}", "name --${FEED}", "name; ${FEED}"])
def test_a_variable_whose_value_turns_out_to_hold_a_credential_is_never_shown(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEED", f"https://user:{SECRET}@host.example/simple")
    assert "${FEED}" in refused(line)


def test_a_variable_whose_value_was_read_as_a_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIN", SECRET)
    assert parse(["-i https://host.example/${PLAIN}"]).index_url == f"https://host.example/{SECRET}"
    monkeypatch.setenv("PLAIN", other := "An0ther-Value")
    remember(other)
    assert "PLAIN looks like a credential" in refused("-i https://host.example/${PLAIN}")


def test_ordinary_variables_are_expanded_as_pip_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_VERSION", "2.7.1")
    monkeypatch.setenv("FEED_HOST", "feed.example")
    monkeypatch.setenv("lower", "x")
    (tmp_path / "r.txt").write_text("torch==${TORCH_VERSION} # ${UNSET_IN_COMMENT}\n-i https://${FEED_HOST}/simple\n")
    found = read(tmp_path / "r.txt")
    assert (found.packages, found.index_url) == (("torch==2.7.1",), "https://feed.example/simple")
    for line in ("torch==$TORCH_VERSION", "torch==${lower}", "torch==${UNSET_VARIABLE}"):
        refused(line)


@pytest.mark.parametrize("value", ["", "1\n--pre", "1\x07", "${TORCH_VERSION}", "1 \u2028 x", "1" * 200_000])
def test_a_variable_that_cannot_stand_in_one_line_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTED", value)
    refused("torch==${NESTED}")


@pytest.mark.parametrize("text", [f"password={SECRET}", f"API_KEY: '{SECRET}'", f"export MY_TOKEN={SECRET} other"])
def test_a_file_of_secrets_that_is_no_requirements_file_is_not_shown(text: str) -> None:
    assert "**********" in refused(text)


def test_package_names_that_sound_secret_are_shown() -> None:
    with pytest.raises(RequirementsError, match="azure-keyvault-secrets==latest"):
        parse(["azure-keyvault-secrets==latest"])
