"""Frames: a run of consecutive extents, compressed together. The unit of storage and of transfer.

Layout (docs/format/frame.md): a head that lists the extents, then their bytes one after the other, as one
zstd frame or as they are where zstd does not help. Pure functions of bytes; thread-safe; zstd and BLAKE3
release the GIL.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import zstandard

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXTENT_SIZE = 128 << 10
ZERO_EXTENT = bytes.fromhex("33badd2c738dbf1cbeebf3279bf6da04ee43995276f786ef8dd30fb708f16e95")
"""Digest of a whole extent of zeros, of which holes are made."""
# Plain bytes after which a frame is closed. Measured on a Debian root file system (170 MB, zstd level 3): 128
# KiB frames take 61.2 MB, 256 KiB 58.1 MB, 512 KiB 55.6 MB, and a miss must inflate one whole frame.
FRAME_SIZE = 256 << 10
# About zstd's level 1: 395 MB/s, where level 3 reaches 320 for 5 % less. The store compresses once more later.
_PARAMETERS = zstandard.ZstdCompressionParameters(
    window_log=19, chain_log=13, hash_log=14, search_log=1, min_match=6, strategy=zstandard.STRATEGY_FAST
)
# When nobody waits: 0.846 of the bytes, at 11 MB/s. Matches of 3 bytes would save 2.4 % more, and slow decompression
# from 1177 to 1058 MB/s (1371 for the above); all figures are in docs/design.md.
_THOROUGH = zstandard.ZstdCompressionParameters(
    window_log=19, chain_log=18, hash_log=18, search_log=4, min_match=4, target_length=32,
    strategy=zstandard.STRATEGY_BTULTRA,
)  # fmt: skip
THOROUGH_METHOD = 1  # its number: another one for other parameters
_LEAST_GAIN = 0.98  # of a frame's record: less is not worth writing it anew
_MOST_KEPT_RAW = 0.97  # a frame that zstd does not make smaller than this stays as it is

_FRAME_HEAD = struct.Struct(">BBHII")
_FRAME_EXTENT = struct.Struct(">32sI")
_UNKNOWN_SIZE = -1  # zstandard's
_contexts = threading.local()


class Encoding(IntEnum):
    """How a frame's data is stored."""

    RAW = 0
    ZSTD = 1


class Role(IntEnum):
    """Why a frame is kept: the files of layers, or blobs as they came."""

    FILES = 0
    OPAQUE = 1


@dataclass(frozen=True, slots=True)
class FrameHead:
    """The head of a frame record: how the rest is encoded, and which extents are in it, in order."""

    encoding: Encoding
    role: Role
    plain_size: int
    extents: tuple[tuple[bytes, int], ...]

    def encode(self) -> bytes:
        """The head's bytes; the stored data follows."""
        head = _FRAME_HEAD.pack(self.encoding, self.role, 0, self.plain_size, len(self.extents))
        return head + b"".join(_FRAME_EXTENT.pack(digest, size) for digest, size in self.extents)

    @classmethod
    def decode(cls, payload: memoryview, name: str) -> tuple[FrameHead, memoryview]:
        """Split a frame payload into its head and its stored data (a view)."""
        try:
            encoding, role, _, plain_size, count = _FRAME_HEAD.unpack_from(payload)
            end = _FRAME_HEAD.size + count * _FRAME_EXTENT.size
            extents = tuple(_FRAME_EXTENT.iter_unpack(payload[_FRAME_HEAD.size : end]))
            head = cls(Encoding(encoding), Role(role), plain_size, extents)
        except (struct.error, ValueError) as error:
            raise CorruptError("frame", name, f"its head cannot be read: {error}") from error
        if len(extents) != count or sum(size for _, size in extents) != plain_size:
            raise CorruptError("frame", name, "its head contradicts itself")
        return head, payload[end:]


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame ready to be stored: the head's extents, and the payload of its record."""

    role: Role
    plain_size: int
    extents: tuple[tuple[bytes, int], ...]
    payload: bytes


def encode_frame(
    extents: Sequence[tuple[bytes, bytes | memoryview]], role: Role, *, compress: bool = True
) -> EncodedFrame:
    """Compress extents into a frame. Pure and thread-safe; releases the GIL in zstd.

    Args:
        extents: (BLAKE3, bytes) of each, in order.
        role: why they are kept.
        compress: try to; False where the bytes are known to be compressed already.
    """
    plain = b"".join(data for _, data in extents)
    sizes = tuple((digest, len(data)) for digest, data in extents)
    stored, encoding = plain, Encoding.RAW
    if compress:
        packed = _compressor().compress(plain)
        if len(packed) < len(plain) * _MOST_KEPT_RAW:
            stored, encoding = packed, Encoding.ZSTD
    head = FrameHead(encoding, role, len(plain), sizes)
    return EncodedFrame(role, len(plain), sizes, head.encode() + stored)


def recompress_frame(number: int, payload: bytes) -> bytes | None:
    """The same frame in fewer bytes: its data compressed as thoroughly as is worth it. Takes 90 ms for a MB.

    Args:
        number: of the frame, for errors.
        payload: of its record; its checksum was compared.

    Returns:
        the new payload: the same extents in the same places, seen to decompress to the same bytes. None where nothing
        is gained, or it is of a blob whose bytes are known to be compressed.

    Raises:
        CorruptError: the frame is not what its head says, or what came out of zstd does not decompress to what went in.
    """
    view = memoryview(payload)
    head, stored = FrameHead.decode(view, str(number))
    if head.encoding is Encoding.RAW and head.role is Role.OPAQUE:
        return None
    plain = Frame.decode(number, view)
    for digest, (offset, size) in plain.index.items():
        check_extent(digest, plain.view[offset : offset + size], f"frame {number}")
    packed = zstandard.ZstdCompressor(compression_params=_THOROUGH).compress(plain.plain)
    if len(packed) >= len(stored) * _LEAST_GAIN:
        return None
    fresh = FrameHead(Encoding.ZSTD, head.role, head.plain_size, head.extents).encode() + packed
    if Frame.decode(number, memoryview(fresh)).plain != plain.plain:
        raise CorruptError("frame", str(number), "compressed again, it decompresses to other bytes")
    return fresh


_INDEX_ENTRY = 300  # bytes of memory that an extent takes in the index of a decoded frame, about


class Frame:
    """A frame that was read: its plain bytes, and where in them each extent lies."""

    __slots__ = ("index", "number", "plain", "role", "view")

    def __init__(self, number: int, head: FrameHead, plain: bytes) -> None:
        self.number = number
        self.role = head.role
        self.plain = plain
        self.view = memoryview(plain)
        self.index: dict[bytes, tuple[int, int]] = {}
        offset = 0
        for digest, size in head.extents:
            self.index[digest] = (offset, size)
            offset += size

    @property
    def memory(self) -> int:
        """Bytes of memory it takes, about."""
        return len(self.plain) + _INDEX_ENTRY * len(self.index)

    @classmethod
    def decode(cls, number: int, payload: memoryview) -> Frame:
        """Decompress a frame's record.

        Raises:
            CorruptError: it cannot be decompressed to the size it says.
        """
        head, stored = FrameHead.decode(payload, str(number))
        if head.encoding is Encoding.RAW:
            plain = bytes(stored)
        else:
            try:
                # What the data itself says comes before the limit that is given: it could ask for any amount of memory.
                if zstandard.frame_content_size(stored) not in (head.plain_size, _UNKNOWN_SIZE):
                    raise CorruptError("frame", str(number), "its data has another size than its head says")
                plain = _decompressor().decompress(stored, max_output_size=head.plain_size)
            except zstandard.ZstdError as error:
                raise CorruptError("frame", str(number), f"zstd: {error}") from error
        if len(plain) != head.plain_size:
            raise CorruptError("frame", str(number), f"{len(plain)} bytes where its head says {head.plain_size}")
        return cls(number, head, plain)


def check_extent(digest: bytes, data: bytes | memoryview, where: str) -> None:
    """Raise CorruptError unless `data` is the extent of that name."""
    got = blake3_raw(data)
    if got != digest:
        raise CorruptError("extent", digest.hex(), f"{where} holds {got.hex()} ({len(data)} bytes)")


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's compressor: contexts are costly to make, and belong to one thread at a time."""
    kept: zstandard.ZstdCompressor | None = getattr(_contexts, "compressor", None)
    if kept is None:
        kept = _contexts.compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
    return kept


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's decompressor."""
    kept: zstandard.ZstdDecompressor | None = getattr(_contexts, "decompressor", None)
    if kept is None:
        kept = _contexts.decompressor = zstandard.ZstdDecompressor()
    return kept
