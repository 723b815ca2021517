"""gzip members without a compressor (RFC 1951, RFC 1952): the same bytes on every machine, for ever.

What a compressor writes depends on its version, its build and even the processor. So nothing is compressed here:
a wheel's members are DEFLATE streams already and become gzip members as they are, and what lies between them (tar
headers, padding, small texts) is written as stored blocks, with runs of zeros as matches, by the rules below.
"""

import re
import struct
import zlib
from functools import cache

HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""A member's header: no name, no time, no flags, unknown operating system."""

_STORED, _STORED_MAX = struct.Struct("<BHH"), 0xFFFF
_SHORTEST_RUN = 24  # shorter runs cost more as a match than they do in a stored block
_RUN, _NO_ZERO = bytes(_SHORTEST_RUN), re.compile(rb"[^\0]")
_LONGEST_MATCH = 258
_RUN_MAX = 64 * 1024  # keeps the cache of encoded runs small; longer runs are cut


def trailer(crc32: int, size: int) -> bytes:
    """What ends a member: CRC-32 and length of the uncompressed bytes."""
    return struct.pack("<II", crc32, size & 0xFFFFFFFF)


def member(content: bytes) -> bytes:
    """`content` as one whole gzip member: stored blocks, and zero runs as matches."""
    parts = [HEADER]
    position = 0
    # find() and a search, as one expression for runs would try each byte of a text
    while (start := content.find(_RUN, position)) >= 0:
        after = _NO_ZERO.search(content, start + _SHORTEST_RUN)
        end = after.start() if after else len(content)
        if start > position:
            _store(content[position:start], parts)
        for length in range(end - start, 0, -_RUN_MAX):
            parts.append(_zeros(min(length, _RUN_MAX)))
        position = end
    if position < len(content):
        _store(content[position:], parts)
    parts += [b"\x01\0\0\xff\xff", trailer(zlib.crc32(content), len(content))]
    return b"".join(parts)


def _store(content: bytes, parts: list[bytes]) -> None:
    """Add stored blocks, none of them the stream's last (RFC 1951, 3.2.4)."""
    for start in range(0, len(content), _STORED_MAX):
        piece = content[start : start + _STORED_MAX]
        parts += (_STORED.pack(0, len(piece), len(piece) ^ 0xFFFF), piece)


@cache
def _zeros(count: int) -> bytes:
    """A run of zeros as a block with fixed Huffman codes, then an empty stored block to reach a byte's end.

    One literal zero, then matches of distance 1 (RFC 1951, 3.2.5 and 3.2.6).
    """
    bits = _Bits()
    bits.add(0b010, 3)  # BFINAL 0, BTYPE 01
    bits.huffman(0x30, 8)  # the literal 0
    left = count - 1
    while left >= 3:
        length = _LONGEST_MATCH if left >= _LONGEST_MATCH + 3 or left == _LONGEST_MATCH else min(left, 257)
        if 0 < left - length < 3:
            length -= 3
        bits.match(length)
        left -= length
    for _ in range(left):
        bits.huffman(0x30, 8)
    bits.huffman(0, 7)  # end of block
    bits.add(0b000, 3)  # an empty stored block: BFINAL 0, BTYPE 00, then to the byte's end
    return bits.finish() + b"\0\0\xff\xff"


class _Bits:
    """Bits packed from the least significant end (RFC 1951, 3.1.1)."""

    def __init__(self) -> None:
        self._value = 0
        self._count = 0

    def add(self, value: int, width: int) -> None:
        self._value |= value << self._count
        self._count += width

    def huffman(self, code: int, width: int) -> None:
        """A Huffman code, which is packed from its most significant bit."""
        self.add(int(f"{code:0{width}b}"[::-1], 2), width)

    def match(self, length: int) -> None:
        """A match of `length` bytes at distance 1."""
        symbol, extra, width = _length_symbol(length)
        if symbol <= 279:
            self.huffman(symbol - 256, 7)
        else:
            self.huffman(0xC0 + symbol - 280, 8)
        self.add(extra, width)
        self.huffman(0, 5)

    def finish(self) -> bytes:
        return self._value.to_bytes(-(-self._count // 8), "little")


def _length_symbol(length: int) -> tuple[int, int, int]:
    """`(symbol, extra bits, their count)` of a match length (RFC 1951, 3.2.5, table of lengths)."""
    if length == _LONGEST_MATCH:
        return 285, 0, 0
    if length < 11:
        return 254 + length, 0, 0
    offset = length - 3
    width = offset.bit_length() - 3
    return 257 + 4 * (width + 1) + ((offset >> width) & 3), offset & ((1 << width) - 1), width
