"""Channels: order, names, addresses, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.lock.conda import channels, network

ALIAS = "https://conda.example.com/all"


def order(*listed: str, pinned: tuple[str, ...] = (), defaults: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [tier.urls for tier in channels.tiers(listed, pinned, alias=ALIAS, defaults=defaults)]


def url(path: str) -> tuple[str, ...]:
    return (f"https://conda.example.com/{path}/",)


def test_channels_keep_their_order_and_those_of_specs_come_last() -> None:
    found = order("b", "nodefaults", "a", "b", "https://conda.example.com/all/a/", pinned=("z", "a"))
    assert found == [url("all/b"), url("all/a"), url("all/z")]


def test_a_channel_is_a_name_an_address_or_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my channel"
    found = order("nvidia/label/cuda-12.4.0", "https://other.example.com:8443/x", str(folder), f"{folder.as_uri()}/")
    assert found == [
        url("all/nvidia/label/cuda-12.4.0"),
        ("https://other.example.com:8443/x/",),
        (f"{folder.as_uri()}/",),
    ]


def test_without_an_alias_names_are_below_the_one_of_rattler() -> None:
    import rattler

    assert channels.url_of("conda-forge", "") == rattler.Channel("conda-forge").base_url


def test_defaults_are_the_channels_that_the_installation_names_at_one_priority() -> None:
    assert order("a", "defaults", defaults=("main", "r")) == [url("all/a"), (*url("all/main"), *url("all/r"))]
    with pytest.raises(SpecificationError, match="CONDA_DEFAULT_CHANNELS"):
        order("a", "defaults")


def test_no_channel_is_an_error() -> None:
    with pytest.raises(SpecificationError, match="no channel"):
        order("nodefaults")


@pytest.mark.parametrize(
    "channel",
    [
        "",
        "~/channel",
        "./channel",
        "../channel",
        "local",
        "a b",
        "a//b",
        "conda-forge/linux-64",
        "https://conda.example.com/team/noarch/",
        "https://conda.example.com/team?x=1",
        "https://conda.example.com/team?",
        "https://conda.example.com/team#x",
        "https:///team",
        "file://host/team",
        "file:///",
        "s3://bucket/team",
        "https://conda.example.com:port/team",
        "/srv/chan\x07nel",
    ],
)
def test_what_is_no_channel_is_refused_by_name(channel: str) -> None:
    with pytest.raises(SpecificationError, match="conda channel"):
        order(channel)


@pytest.mark.parametrize(
    "channel",
    ["https://me:hunter2@conda.example.com/team", "https://conda.example.com/t/hunter2/team", "http://hunter2@h/x"],
)
def test_a_channel_with_a_password_or_token_is_refused_and_not_shown(channel: str) -> None:
    with pytest.raises(SpecificationError, match="credentials of its host") as refusal:
        order(channel)
    assert "hunter2" not in str(refusal.value)
    with pytest.raises(SpecificationError, match="credentials of its host") as refusal:
        channels.tiers(["a"], (), alias=channel, defaults=())
    assert "hunter2" not in str(refusal.value)


@given(st.text(max_size=30) | st.from_regex(r"(https?|file)://[a-z@:/.?#~%-]{0,20}", fullmatch=True))
def test_any_text_is_a_channel_without_secrets_or_refused(text: str) -> None:
    try:
        found = channels.url_of(text, ALIAS)
    except SpecificationError:
        return
    assert found.startswith(("https://", "http://", "file:///"))
    assert found.endswith("/")
    assert "@" not in found.split("/")[2]


def test_credentials_go_to_their_channel_and_nowhere_else() -> None:
    find = network.headers(
        ["https://a.example.com/private/", "https://a.example.com/open/", "https://b.example.com/x/", "file:///srv/c/"],
        {"https://a.example.com/private": ("me", "hunter2"), "b.example.com": ("you", "other-secret")},
    )
    mine = {"Authorization": "Basic bWU6aHVudGVyMg=="}
    assert find("a.example.com", "/private/noarch/repodata.json") == mine
    assert find("b.example.com", "/x/linux-64/repodata.json") not in (None, mine)
    for host, path in [("a.example.com", "/privateer/x"), ("c.example.com", "/private/x"), ("b.example.com", "/y/z")]:
        assert find(host, path) is None


def test_channels_that_differ_only_by_port_cannot_have_different_credentials() -> None:
    pair = ["https://a.example.com:1/x/", "https://a.example.com:2/x/"]
    with pytest.raises(SpecificationError, match="differ in scheme or port only") as refusal:
        network.headers(pair, {"a.example.com:1": ("me", "hunter2")})
    assert "hunter2" not in str(refusal.value)
    assert network.headers(pair, {"a.example.com": ("me", "hunter2")})("a.example.com", "/x/y") is not None
