"""Recipes: how a layer's tar is rebuilt byte for byte.

A recipe is a sequence of independent chunks (`chunk`). Each covers a contiguous range of the plain stream,
and the ranges follow each other without gaps, so a byte range of the layer needs only the chunks it meets.

A writer is for one stream and one thread. It holds the operations of one chunk: about `CHUNK_ENCODED` bytes,
and at most `CHUNK_PLAIN` bytes of literals.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import zstandard

from pagepool.image.chunk import CHUNK_ENCODED, CHUNK_PLAIN, OP_COST, Columns, encode_chunk
from pagepool.image.ops import OBJECT, SLICE

LEVEL = 9

# How far literals shrink is measured whenever this many have come: headers shrink to a twentieth, garbage not
# at all.
_MEASURE = 64 << 10


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """One chunk as it is stored.

    Args:
        plain_start: where its range of the plain stream begins.
        plain_size: bytes of that range.
        payload: the encoded operations, for `decode_chunk`.
    """

    plain_start: int
    plain_size: int
    payload: bytes


class RecipeWriter:
    """Gather operations, and cut them into chunks.

    After any append, and after `finish`, take chunks until there is none. Encoding happens in `take_chunk`.

    Args:
        level: zstd level. 3 makes recipes 4 % larger than 9; above 9 nothing is gained.
    """

    def __init__(self, level: int = LEVEL) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
        self._measure = zstandard.ZstdCompressor(level=1)
        self._unmeasured = 0
        self._columns = Columns(0)
        self._full: deque[Columns] = deque()

    def append_literal(self, data: bytes | memoryview) -> None:
        """Append bytes, which are copied. Any number: a long run ends up in several chunks."""
        start, size = 0, len(data)
        columns = self._columns
        if columns.plain_size + size < CHUNK_PLAIN and self._unmeasured + size < _MEASURE:  # nearly always
            if size:
                columns.add_literal(data)
                self._unmeasured += size
                if columns.cost >= CHUNK_ENCODED:
                    self.finish()
            return
        while start < size:
            columns = self._columns
            end = min(size, start + CHUNK_PLAIN - columns.plain_size, start + _MEASURE - self._unmeasured)
            columns.add_literal(data[start:end])
            self._unmeasured += end - start
            if self._unmeasured == _MEASURE:
                columns.cost += len(self._measure.compress(columns.literals[-_MEASURE:]))
                self._unmeasured = 0
            self._cut()
            start = end

    def append_object(self, digest: bytes, size: int) -> None:
        """Append the whole content of an object. One of no bytes is left out.

        Args:
            digest: raw BLAKE3 digest, 32 bytes.
            size: bytes of the object.
        """
        if size:
            columns = self._columns
            columns.fold_header(size)
            columns.refer(digest)
            columns.add(OBJECT, size)
            self._cut()

    def append_file(self, literal: bytes | memoryview, digest: bytes, size: int) -> None:
        """Append a literal and an object, as `append_literal` and `append_object` do, in less time.

        Args:
            literal: ends in the header of a file of `size` bytes, with size and checksum as zero-padded octal numbers.
        """
        columns, length = self._columns, len(literal)
        room = columns.cost < CHUNK_ENCODED - 2 * OP_COST and columns.plain_size + length < CHUNK_PLAIN
        if room and self._unmeasured + length < _MEASURE:
            self._unmeasured += length
            columns.add_file(literal, digest, size)
            self._cut()
        else:
            self.append_literal(literal)
            self.append_object(digest, size)

    def append_slice(self, digest: bytes, offset: int, size: int) -> None:
        """Append part of an object; of no bytes, to mark the object of a file that is one hole.

        Args:
            digest: raw BLAKE3 digest of the object, 32 bytes.
            offset: where the part begins in the object.
            size: bytes of the part.
        """
        self._columns.refer(digest)
        self._columns.offsets.append(offset)
        self._columns.add(SLICE, size)
        self._cut()

    def finish(self) -> None:
        """Close the last chunk. A stream of no bytes has no chunks."""
        columns = self._columns
        if columns.kinds:
            self._full.append(columns)
            self._columns = Columns(columns.plain_start + columns.plain_size)
            self._unmeasured = 0

    def take_chunk(self) -> EncodedChunk | None:
        """The next finished chunk, encoded; None when there is none yet."""
        if not self._full:
            return None
        columns = self._full.popleft()
        return EncodedChunk(columns.plain_start, columns.plain_size, encode_chunk(columns, self._compressor))

    def _cut(self) -> None:
        columns = self._columns
        if columns.plain_size >= CHUNK_PLAIN or columns.cost >= CHUNK_ENCODED:
            self.finish()
