"""Frames of which head and data disagree: what one says it holds is never taken on trust."""

from __future__ import annotations

import random

import pytest
from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool.extents import Encoding, Frame, FrameHead, Role, encode_frame, recompress_frame

ONE, OTHER = (blake3(data).digest() for data in (b"one", b"other"))


@pytest.mark.parametrize("data", [b"oneothe", b"oneothers", b""])
def test_data_as_it_is_has_the_size_that_the_head_says(data: bytes) -> None:
    """Nothing decompresses it, so nothing else would notice."""
    head = FrameHead(Encoding.RAW, Role.FILES, 8, ((ONE, 3), (OTHER, 5)))
    assert Frame.decode(7, memoryview(head.encode() + b"oneother")).index == {ONE: (0, 3), OTHER: (3, 5)}
    with pytest.raises(CorruptError, match=f"frame 7: {len(data)} bytes where its head says 8"):
        Frame.decode(7, memoryview(head.encode() + data))


def test_a_head_that_ends_between_two_extents() -> None:
    """What is left of it adds up."""
    head = FrameHead(Encoding.RAW, Role.FILES, 3, ((ONE, 3), (OTHER, 0))).encode()
    with pytest.raises(CorruptError, match="contradicts itself"):
        FrameHead.decode(memoryview(head)[:-36], "7")


@pytest.mark.parametrize(
    ("data", "compress", "encoding"),
    [
        (b"again and " * 500, True, Encoding.ZSTD),
        (b"again and " * 500, False, Encoding.RAW),
        (random.Random(1).randbytes(5000), True, Encoding.RAW),
    ],
)
def test_what_zstd_makes_smaller_is_compressed(data: bytes, compress: bool, encoding: Encoding) -> None:
    """And nothing else; it comes back as it was."""
    name = blake3(data).digest()
    frame = encode_frame([(name, data)], Role.FILES, compress=compress)
    head, stored = FrameHead.decode(memoryview(frame.payload), "7")
    assert (head.encoding, head.plain_size, head.extents) == (encoding, len(data), ((name, len(data)),))
    assert (len(stored) < len(data)) == (encoding is Encoding.ZSTD)
    decoded = Frame.decode(7, memoryview(frame.payload))
    assert (decoded.plain, decoded.number, decoded.role) == (data, 7, Role.FILES)


def test_only_what_was_known_to_be_compressed_is_not_compressed_again() -> None:
    """Frames of blobs are stored as they are for that reason; those of files because a faster level did not help."""
    data = b"again and " * 500
    plain = [(blake3(data).digest(), data)]
    assert recompress_frame(7, encode_frame(plain, Role.OPAQUE, compress=False).payload) is None
    stored = encode_frame(plain, Role.FILES, compress=False).payload
    again = recompress_frame(7, stored)
    assert again is not None
    assert len(again) < len(stored)
    assert Frame.decode(7, memoryview(again)).plain == data


@pytest.mark.parametrize("names", [(ONE, ONE), (OTHER, ONE)])
def test_a_frame_of_other_bytes_than_it_names_is_not_compressed_again(names: tuple[bytes, bytes]) -> None:
    """Its record would be written anew, with a checksum that is right."""
    head = FrameHead(Encoding.RAW, Role.FILES, 8, ((names[0], 3), (names[1], 5)))
    with pytest.raises(CorruptError, match="frame 7 holds"):
        recompress_frame(7, head.encode() + b"oneother")
