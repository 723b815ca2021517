"""A job's lines: whole however they come, masked, bounded."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.jobs.log import LAST_LINES, JobLog, Lines
from prefect_environments.core.redact import MASK, remember


def lines_of(*pieces: bytes) -> list[str]:
    seen: list[str] = []
    lines = Lines(JobLog(seen.append))
    for piece in pieces:
        lines.feed(piece)
    lines.close()
    return seen


@given(st.lists(st.text("abcé€ \t", min_size=1).filter(str.strip), max_size=8), st.data())
def test_lines_are_the_same_wherever_the_stream_is_cut(texts: list[str], data: st.DataObject) -> None:
    """Within a character, too, and whether the last one has an end or not."""
    stream = "\n".join(texts).encode()
    first = data.draw(st.integers(0, len(stream)))
    second = data.draw(st.integers(first, len(stream)))
    assert lines_of(stream[:first], stream[first:second], stream[second:]) == [text.rstrip() for text in texts]


def test_a_secret_is_masked_also_where_the_stream_was_cut_inside_it() -> None:
    secret = f"planted-{uuid.uuid4().hex}"
    remember(secret)
    text = f"token {secret}!\n".encode()
    assert lines_of(text[:12], text[12:20], text[20:]) == [f"token {MASK}!"]


def test_a_progress_bar_gives_its_first_and_its_last_state() -> None:
    bar = [f"\r{percent} %".encode() for percent in range(101)]
    seen = lines_of(b"start\r\n", *bar, b"\n", b"done")
    assert seen[0] == "start" and seen[-2:] == ["100 %", "done"]
    assert len(seen) <= 4


def test_a_line_without_an_end_takes_bounded_memory_and_no_half_of_a_secret_is_shown() -> None:
    secret = f"planted-{uuid.uuid4().hex}"
    remember(secret)
    seen = lines_of(b"x" * 15990 + secret[:12].encode(), secret[12:].encode() + b"y" * 5000, b"\nnext\n")
    assert [len(line) for line in seen] == [8001, 4]
    assert not any(secret[20:30] in line for line in seen)


def test_colours_and_control_characters_are_taken_out() -> None:
    assert lines_of(b"\x1b[31mred\x1b[0m\x07\n\n  \n") == ["red"]


def test_the_last_lines_are_kept() -> None:
    log = JobLog(lambda _: None)
    for number in range(100):
        log.line(str(number))
    assert list(log.last) == [str(number) for number in range(100 - LAST_LINES, 100)]
