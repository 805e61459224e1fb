"""Extents, and the frames they are stored and sent in."""

from pagepool.extents.frame import (
    EXTENT_SIZE,
    FRAME_SIZE,
    THOROUGH_METHOD,
    ZERO_EXTENT,
    EncodedFrame,
    Encoding,
    Frame,
    FrameHead,
    Role,
    check_extent,
    encode_frame,
    recompress_frame,
)
from pagepool.extents.ranges import format_ranges, parse_ranges

__all__ = [
    "EXTENT_SIZE",
    "FRAME_SIZE",
    "THOROUGH_METHOD",
    "ZERO_EXTENT",
    "EncodedFrame",
    "Encoding",
    "Frame",
    "FrameHead",
    "Role",
    "check_extent",
    "encode_frame",
    "format_ranges",
    "parse_ranges",
    "recompress_frame",
]
