"""Extents, and the frames they are stored and sent in."""

from pagepool.extents.frame import (
    EXTENT_SIZE,
    FRAME_SIZE,
    THOROUGH_METHOD,
    EncodedFrame,
    Encoding,
    Frame,
    FrameHead,
    Role,
    check_extent,
    encode_frame,
    recompress_frame,
)

__all__ = [
    "EXTENT_SIZE",
    "FRAME_SIZE",
    "THOROUGH_METHOD",
    "EncodedFrame",
    "Encoding",
    "Frame",
    "FrameHead",
    "Role",
    "check_extent",
    "encode_frame",
    "recompress_frame",
]
