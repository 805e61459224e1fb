"""Decompression of layers: whole, damaged, and made to explode."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import pytest
import zstandard

from pagepool.errors import LayerInvalidError
from pagepool.layout.inflate import inflate

PLAIN = bytes(range(256)) * 3000


@pytest.mark.parametrize(
    "packed",
    [
        PLAIN,
        b"",
        b"\x1f",
        gzip.compress(PLAIN),
        gzip.compress(PLAIN[:1000]) + gzip.compress(PLAIN[1000:]),
        gzip.compress(PLAIN) + bytes(700),
        zstandard.compress(PLAIN),
        zstandard.compress(PLAIN[:1000]) + zstandard.compress(PLAIN[1000:]),
        zstandard.ZstdCompressor(write_content_size=False).compress(PLAIN),
        b"\x5f\x2a\x4d\x18\x04\x00\x00\x00skip" + zstandard.compress(PLAIN),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
def test_inflate(packed: bytes, step: int) -> None:
    chunks = (packed[at : at + step] for at in range(0, len(packed), step))
    plain = b"".join(inflate(chunks, "x"))
    assert plain == (packed if len(packed) < 2 else PLAIN)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_inflate_damaged(compress: Callable[[bytes], bytes]) -> None:
    packed = compress(PLAIN)
    for bad in (packed[:-1], packed[:20], packed[:10] + b"????" + packed[14:]):
        with pytest.raises(LayerInvalidError, match="x"):
            b"".join(inflate(iter((bad,)), "x"))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_inflate_gives_bounded_pieces(compress: Callable[[bytes], bytes]) -> None:
    pieces = [len(piece) for piece in inflate(iter((compress(bytes(300 << 20)),)), "x")]
    assert sum(pieces) == 300 << 20
    assert max(pieces) <= 64 << 20
