"""Addresses that are kept hold no secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.lock import urls


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://u:p@example.com:8443/a%2Bb.whl#sha256=1", "https://example.com:8443/a%2Bb.whl"),
        ("https://example.com/get?file=a.whl", "https://example.com/get?file=a.whl"),
        ("https://example.com/a.whl?sv=1&sig=abc", "https://example.com/a.whl"),
        ("https://example.com/a.whl?X-Amz-Date=1", "https://example.com/a.whl"),
        ("https://example.com/a.whl?access_token=1", "https://example.com/a.whl"),
        ("https://example.com/a.whl?tokenwithoutvalue", "https://example.com/a.whl"),
        ("file:///srv/a.whl", "file:///srv/a.whl"),
        ("ssh://git@example.com/r.git", "ssh://example.com/r.git"),
    ],
)
def test_user_info_fragments_and_secret_queries_are_dropped(url: str, expected: str) -> None:
    assert urls.clean(url) == expected


@given(st.from_regex(r"[a-zA-Z0-9:@%!._~-]{1,30}", fullmatch=True))
def test_user_info_never_survives(info: str) -> None:
    assert urls.clean(f"https://{info}@example.com/x") == "https://example.com/x"
    assert urls.without_user_info(f"demo @ https://{info}@example.com/x") == "demo @ https://example.com/x"


@given(st.text(max_size=40))
def test_any_text_is_cleaned_or_refused_by_our_error(text: str) -> None:
    try:
        once = urls.clean(text)
    except PrefectEnvironmentsError:
        return
    assert urls.clean(once) == once


def test_the_longest_prefix_wins_then_the_port_then_the_host() -> None:
    known = {
        "example.com": ("host", ""),
        "example.com:81": ("port", ""),
        "https://example.com/a": ("prefix", ""),
        "https://example.com/a/b/": ("longer", ""),
    }
    expected = {
        "https://example.com/a/b/simple": "longer",
        "https://example.com/a/": "prefix",
        "https://example.com/abc": "host",
        "https://example.com:81/": "port",
    }
    for url, user in expected.items():
        assert urls.credentials_for(url, known) == (user, "")
    assert urls.credentials_for("https://other.example.com/", known) is None


def test_user_info_is_decoded() -> None:
    assert urls.user_info("https://us%40er:p%3Aw@example.com/") == ("us@er", "p:w")
    assert urls.user_info("https://example.com/@x") is None
