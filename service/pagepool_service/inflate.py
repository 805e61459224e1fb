"""From the bytes of a layer blob to the bytes of its tar: gzip (any number of members), zstd (any number of
frames), plain.

Streaming, in bounded memory, whatever the input claims: output is asked for two megabytes at a time, zstd
windows are limited, and a stream that grows beyond a ratio or an absolute size is given up. isal inflates
gzip and checks its CRC; both libraries release the GIL.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import IO, TYPE_CHECKING, cast

import zstandard
from isal import igzip_lib

from pagepool.errors import LayerInvalidError
from pagepool_service.zstdframes import FrameWalker

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_SIZE = 2 << 20
_IsalError = cast("type[Exception]", igzip_lib.IsalError)
_TAKEN = 1 << 20  # compressed bytes at a time: few of them make small chunks, and each chunk costs the splitter
_FIRST_WINDOW = 4 << 10  # of a member after others: it may end soon, and what follows it is copied each time
_ZEROS = re.compile(rb"\0*")
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_RESERVED = 0xE0
_FLAGS_END = 4
_ZSTD_WINDOW = 128 << 20  # what zstd's own command line accepts without being told to


class Compression(Enum):
    """How a layer blob is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class InflateLimits:
    """When a compressed stream is taken for a decompression bomb.

    Args:
        plain_size: most plain bytes of a layer.
        ratio: most plain bytes per compressed byte...
        ratio_from: ...once there are this many plain bytes (a small archive of zeros is no bomb).
    """

    plain_size: int = 256 << 30
    ratio: int = 200
    ratio_from: int = 256 << 20


def detect(head: bytes) -> Compression:
    """How the blob that begins with `head` is compressed.

    Raises:
        LayerInvalidError: in a way that layers may not be (bzip2, xz).
    """
    if head[:2] == _GZIP_MAGIC:
        return Compression.GZIP
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[:1] and 0x50 <= head[0] <= 0x5F):
        return Compression.ZSTD
    for magic, name in ((b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x04\x22\x4d\x18", "lz4")):
        if head.startswith(magic):
            raise LayerInvalidError(name, f"compressed with {name}; layers are plain tar, gzip or zstd")
    return Compression.NONE


class BlobFile(io.RawIOBase):
    """A readable file over the pieces of a blob, counting what was read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.consumed = 0
        self.walker: FrameWalker | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def take(self) -> bytes:
        """The next pieces, about `_TAKEN` bytes; empty at the end. Not to be mixed with reads."""
        pieces: list[bytes] = []
        size = 0
        while size < _TAKEN and (piece := next(self._pieces, b"")):
            pieces.append(piece)
            size += len(piece)
        self.consumed += size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill as much of `buffer` as the next piece has."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
            if self.walker:
                self.walker.feed(self._rest)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        self.consumed += size
        return size


def inflate(pieces: Iterator[bytes], limits: InflateLimits) -> tuple[Compression, Iterator[bytes]]:
    """Begin to decompress a blob.

    Args:
        pieces: the blob's bytes, in order.

    Returns:
        How it is compressed, and its plain bytes in chunks of at most 2 MiB. Going on with them raises
        LayerInvalidError where the stream is damaged, cut short, or a bomb.
    """
    first = next(pieces, b"")
    compression = detect(first)
    file = BlobFile(_chain(first, pieces))
    if compression is Compression.NONE:
        chunks = _read_chunks(file)
    elif compression is Compression.GZIP:
        chunks = _gunzip(file)
    else:
        file.walker = FrameWalker()
        context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        chunks = _read_chunks(
            context.stream_reader(cast("IO[bytes]", file), read_size=CHUNK_SIZE, read_across_frames=True)
        )
    return compression, _guarded(chunks, file, compression, limits)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _read_chunks(file: io.RawIOBase | zstandard.ZstdDecompressionReader) -> Iterator[bytes]:
    read = getattr(file, "read1", file.read)
    while chunk := read(CHUNK_SIZE):
        yield chunk


def _gunzip(file: BlobFile) -> Iterator[bytes]:
    """The plain bytes of a gzip stream: members, and zeros between and after them.

    The decompressor gets the pieces of the blob; a file object would copy each plain byte twice more.
    """
    taken, position = file.take(), 0
    window = _TAKEN
    while taken:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)  # checks the CRC and the size
        head = b""
        while not member.eof:
            given = b""
            if member.needs_input:
                if position == len(taken):
                    taken, position = file.take(), 0
                    if not taken:
                        raise EOFError("it is cut short")
                given = taken[position : position + window]
                position += len(given)
                window = min(2 * window, _TAKEN)
                if len(head) < _FLAGS_END:
                    head += given[: _FLAGS_END - len(head)]
                    _check_flags(head)
            if chunk := member.decompress(given, CHUNK_SIZE):
                yield chunk
        position -= len(member.unused_data)
        window = _FIRST_WINDOW
        while (position := _past_zeros(taken, position)) == len(taken) and taken:
            taken, position = file.take(), 0
        if taken and taken[position] != _GZIP_MAGIC[0]:
            raise ValueError("after its last member come bytes that are not zeros, and no member")


def _check_flags(head: bytes) -> None:
    """Refuse reserved flags, as RFC 1952 (2.3.1.2) has it; isal does not. What they would mean, nobody knows."""
    if len(head) == _FLAGS_END and head.startswith(_GZIP_MAGIC) and head[3] & _GZIP_RESERVED:
        raise ValueError(f"the header of a member has the flags {head[3]:#04x}, of which some are reserved")


def _past_zeros(data: bytes, position: int) -> int:
    match = _ZEROS.match(data, position)
    return position if match is None else match.end()


def _guarded(
    chunks: Iterator[bytes], file: BlobFile, compression: Compression, limits: InflateLimits
) -> Iterator[bytes]:
    """Turn the libraries' errors into ours, and stop at the limits."""
    name = f"{compression.value} stream"
    total = 0
    while True:
        try:
            chunk = next(chunks, None)
        except (OSError, EOFError, zlib.error, _IsalError, zstandard.ZstdError, ValueError) as error:
            raise LayerInvalidError(name, f"the {name} is damaged: {error} (after {total} plain bytes)") from error
        if chunk is None:
            if file.walker and not file.walker.at_frame_end:
                raise LayerInvalidError(name, f"the {name} is cut short (after {total} plain bytes)")
            return
        total += len(chunk)
        if total > limits.plain_size:
            raise LayerInvalidError(name, f"a decompression bomb: more than {limits.plain_size} plain bytes")
        if total > limits.ratio_from and total > limits.ratio * max(file.consumed, 1):
            ratio = total // max(file.consumed, 1)
            raise LayerInvalidError(name, f"a decompression bomb: {ratio} times its size after {total} bytes")
        yield chunk
