"""gzip without a compressor: what it writes is gzip to everybody, and the same for ever."""

import gzip as python_gzip
import hashlib
import subprocess
import zlib
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_environments.core.build import gzip
from tests.support.session import need

_MIXED = st.lists(
    st.one_of(st.binary(max_size=300), st.integers(0, 3000).map(bytes), st.binary(min_size=1, max_size=3)), max_size=12
).map(b"".join)


def test_every_run_of_zeros_up_to_3000_decodes_to_itself() -> None:
    for length in range(3001):
        for content in (bytes(length), b"a" + bytes(length) + b"b"):
            assert zlib.decompress(gzip.member(content), 31) == content, length


@pytest.mark.parametrize("limit", [64 * 1024, 65535, 2 * 65535, 128 * 1024, 258, 257 * 4])
def test_runs_and_texts_around_the_limits_of_blocks_decode_to_themselves(limit: int) -> None:
    for length in range(limit - 30, limit + 31):
        for content in (bytes(length), b"x" * length, b"y" + bytes(length), bytes(length) + b"z" * 23):
            assert python_gzip.decompress(gzip.member(content)) == content, length


@settings(deadline=None)
@given(_MIXED)
def test_any_bytes_decode_to_themselves_as_exactly_one_member(content: bytes) -> None:
    inflate = zlib.decompressobj(31)
    assert inflate.decompress(gzip.member(content)) == content
    assert inflate.eof and not inflate.unused_data


@settings(deadline=None)
@given(st.lists(_MIXED, max_size=5))
def test_members_after_each_other_are_one_gzip_stream(parts: list[bytes]) -> None:
    assert python_gzip.decompress(b"".join(map(gzip.member, parts))) == b"".join(parts)


def test_pigz_decodes_the_same() -> None:
    need("pigz")
    parts = [bytes(n) + bytes(range(256)) * (n % 7) for n in (*range(0, 1200, 7), 65535, 65536, 65537, 200_000)]
    packed = b"".join(map(gzip.member, parts))
    done = subprocess.run(["pigz", "-dc"], input=packed, capture_output=True, check=True)
    assert done.stdout == b"".join(parts)


def test_no_compressor_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a compressor was called")

    monkeypatch.setattr(zlib, "compressobj", refuse)
    monkeypatch.setattr(zlib, "compress", refuse)
    monkeypatch.setattr(python_gzip, "compress", refuse)
    content = b"head" + bytes(5000) + b"tail"
    assert zlib.decompress(gzip.member(content), 31) == content


def test_the_bytes_are_pinned() -> None:
    """Images that exist were hashed with these bytes: a change here is a new recipe version."""
    content = b"head" + bytes(5000) + bytes(range(256)) * 300 + bytes(70_000)
    packed = gzip.member(content)
    assert hashlib.sha256(packed).hexdigest() == "6f81260b259101546daa7860616f5e17a058151a81790dc4fad0dd97fd1abc24"
    assert len(packed) < len(content) - 74_000


def test_zeros_cost_little() -> None:
    assert len(gzip.member(bytes(10 * 1024 * 1024))) < 80_000
