"""Small rules about failures: waiting times, the registry's words, links."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.distribution.failures import error_of, retry_after, tidy
from prefect_environments.core.distribution.listings import next_page
from prefect_environments.core.redact import remember


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), ("0", 0), ("7", 7), ("9" * 50, 60), ("-1", None), ("soon", None), ("²", None)]
)
def test_retry_after_in_seconds_is_capped(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


@pytest.mark.parametrize(("ahead", "low", "high"), [(20, 10, 20), (9999, 60, 60), (-9999, 0, 0)])
def test_retry_after_may_be_a_date(ahead: int, low: float, high: float) -> None:
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
    found = retry_after(value)
    assert found is not None and low <= found <= high


@given(st.text(), st.binary())
def test_no_header_and_no_body_crashes_their_readers(text: str, body: bytes) -> None:
    found = retry_after(text)
    assert found is None or 0 <= found <= 60
    code, message = error_of(body)
    assert code is None or message is not None
    assert len(tidy(text)) <= 300
    next_page([text, f"<{text}>; rel=next"])


def test_a_secret_is_masked_before_the_text_is_cut() -> None:
    remember("long-secret-word-71")
    assert "long-sec" not in tidy("x" * 290 + "long-secret-word-71")


@pytest.mark.parametrize(
    ("links", "found"),
    [
        (['</a?n=1>; rel="next"'], "/a?n=1"),
        (["</a>; rel=next"], "/a"),
        (['</p>; rel="prev", </n>; rel="next"'], "/n"),
        (['</p>; rel="prev"', '</n>; title="x"; REL="Next"'], "/n"),
        (['</n>; rel="last next"'], "/n"),
        (['</p>; rel="nextish"'], None),
        (["nonsense", "<", "</n>"], None),
        ([], None),
    ],
)
def test_the_next_page_is_found_among_links(links: list[str], found: str | None) -> None:
    assert next_page(links) == found
