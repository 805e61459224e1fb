"""Plain bytes out of a compressed layer, as a stream.

What a layer is compressed with is read off its first bytes, as every runtime does, not off its media type.
Gzip may have several members, zstd several frames. Memory is bounded whatever the content claims, except for
the window that a zstd frame asks for, which is limited.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import zstandard

from pagepool.errors import LayerInvalidError

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes((first,)) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
_PIECE = 1 << 20
_MAX_WINDOW = 1 << 30
# One call returns all that its input decompresses to, and 4 bytes can stand for a block of 128 KiB.
_ZSTD_STEP = 2 << 10


def inflate(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Decompress, or pass on what is not compressed.

    Args:
        chunks: the content.
        name: its digest, for messages.

    Raises:
        LayerInvalidError: damaged, or it ends early.
    """
    source = iter(chunks)
    head = b""
    while len(head) < 4 and (chunk := next(source, b"")):
        head += chunk
    rest = _chain(head, source)
    if head.startswith(_GZIP):
        return _gzip(rest, name)
    if head.startswith((_ZSTD, *_ZSTD_SKIPPABLE)):
        return _zstd(rest, name)
    return rest


def _chain(head: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from source


def _gzip(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    member = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        data = chunk
        while data:
            if member.eof:
                if not data.strip(b"\0"):
                    break  # padding, which gzip ignores
                member = zlib.decompressobj(wbits=31)
            try:
                plain = member.decompress(data, _PIECE)
            except zlib.error as error:
                raise LayerInvalidError(name, f"damaged gzip: {error}") from None
            if plain:
                yield plain
            data = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise LayerInvalidError(name, "gzip data ends early")


def _zstd(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    frame = _new_frame()
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            if frame.eof:
                frame = _new_frame()
            piece = view[:_ZSTD_STEP]
            try:
                plain = frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise LayerInvalidError(name, f"damaged zstd: {error}") from None
            if plain:
                yield plain
            view = view[len(piece) - (len(frame.unused_data) if frame.eof else 0) :]
    if not frame.eof:
        raise LayerInvalidError(name, "zstd data ends early")


def _new_frame() -> zstandard.ZstdDecompressionObj:
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj(read_across_frames=False)
