"""Frames of which head and data disagree: what one says it holds is never taken on trust."""

from __future__ import annotations

import pytest
from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool.extents import Encoding, Frame, FrameHead, Role

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
