"""Gzip streams in pieces of any size: members, zeros between them, and an end wherever it comes."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.errors import LayerInvalidError
from pagepool_service.inflate import Compression, InflateLimits, detect, inflate
from tests.store.helpers import noise, text

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = text(70_000, 1) + noise(5_000, 2) + bytes(3 << 20) + b"the end"


def named(data: bytes) -> bytes:
    """A member with a long name in its header."""
    out = io.BytesIO()
    with gzip.GzipFile("n" * 3000, "wb", fileobj=out) as file:
        file.write(data)
    return out.getvalue()


def inflated(blob: bytes, size: int) -> bytes:
    def pieces() -> Iterator[bytes]:
        for start in range(0, len(blob), size):
            yield blob[start : start + size]

    compression, chunks = inflate(pieces(), InflateLimits(ratio_from=1 << 30))
    assert compression is Compression.GZIP
    return b"".join(chunks)


@given(
    st.lists(st.sampled_from([b"", b"a", PLAIN[:3000], PLAIN[60_000:90_000]]), min_size=1, max_size=4),
    st.lists(st.integers(0, 5000), min_size=4, max_size=4),
    st.integers(2, 6000),
    st.booleans(),
)
def test_members_and_zeros_in_any_pieces(parts: list[bytes], zeros: list[int], size: int, with_name: bool) -> None:
    pack = named if with_name else gzip.compress
    blob = b"".join(pack(part) + bytes(count) for part, count in zip(parts, zeros, strict=False))
    assert inflated(blob, size) == b"".join(parts)


def test_long_streams_come_in_bounded_chunks() -> None:
    _, chunks = inflate(iter([gzip.compress(PLAIN)]), InflateLimits(ratio_from=1 << 30))
    sizes = [len(chunk) for chunk in chunks]
    assert sum(sizes) == len(PLAIN)
    assert max(sizes) <= 2 << 20


@pytest.mark.parametrize("size", [7, 1 << 17])
@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (b"garbage", "after its last member come bytes that are not zeros, and no member"),
        (bytes(9000) + b"x", "after its last member come bytes that are not zeros, and no member"),
        (b"\x1f", "cut short"),
        (b"\x1f\x8b\x08", "cut short"),
        (gzip.compress(b"more", mtime=0)[:-1], "cut short"),
        (b"\x1f\x00" + b"x" * 40, "wrapper"),
        (gzip.compress(b"more", mtime=0)[:-8] + bytes(8), "checksum"),
    ],
)
def test_what_follows_a_member_is_named(behind: bytes, reason: str, size: int) -> None:
    with pytest.raises(LayerInvalidError, match=reason):
        inflated(gzip.compress(PLAIN) + behind, size)


@pytest.mark.parametrize("size", [2, 3, 1 << 17])
@pytest.mark.parametrize("bit", [5, 6, 7])
@pytest.mark.parametrize("before", [b"", gzip.compress(b"a first member") + bytes(5)], ids=["first", "second"])
def test_reserved_flags_are_refused(before: bytes, bit: int, size: int) -> None:
    """As RFC 1952 has it, and gzip(1), zlib and unpigz do; only Go's decoder looks past them."""
    member = bytearray(gzip.compress(b"plain"))
    member[3] |= 1 << bit
    with pytest.raises(LayerInvalidError, match=f"flags {1 << bit:#04x}, of which some are reserved"):
        inflated(before + bytes(member), size)


@pytest.mark.parametrize(
    ("head", "compression"),
    [
        (b"\x4f\x2a\x4d\x18", Compression.NONE),
        (b"\x50\x2a\x4d\x18", Compression.ZSTD),
        (b"\x5f\x2a\x4d\x18", Compression.ZSTD),
        (b"\x60\x2a\x4d\x18", Compression.NONE),
        (b"\x5f\x2a\x4d", Compression.NONE),
        (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
        (b"", Compression.NONE),
    ],
)
def test_a_stream_is_known_by_its_head(head: bytes, compression: Compression) -> None:
    """Sixteen kinds of frames that are skipped begin zstd streams, too (RFC 8878, 3.1.2); other letters are a tar's."""
    assert detect(head) is compression


def test_a_layer_may_have_all_of_the_limit() -> None:
    blob = gzip.compress(PLAIN)
    _, chunks = inflate(iter([blob]), InflateLimits(plain_size=len(PLAIN)))
    assert b"".join(chunks) == PLAIN
    _, chunks = inflate(iter([blob]), InflateLimits(plain_size=len(PLAIN) - 1))
    with pytest.raises(LayerInvalidError, match="decompression bomb"):
        list(chunks)


@pytest.mark.parametrize("size", [5000, 1 << 17])
def test_very_many_members_and_some_that_are_long(size: int) -> None:
    parts = [b""] * 20_000 + [noise(9_000, number) for number in range(40)] + [PLAIN, b"a"]
    assert inflated(b"".join(gzip.compress(part, 1) for part in parts), size) == b"".join(parts)
