"""The encoding of one recipe chunk; docs/format/recipe.md has it byte by byte.

Pure functions. The operations lie by column, and each column by byte plane, because like compresses with
like; digests do not compress, and stay out of the zstd frame, where they would spoil its tables. Some
literals go through one more step (`Columns.fold_header`). Chunks have no checksum of their own: the store's
records have.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from functools import partial

import zstandard

from pagepool.errors import CorruptError
from pagepool.image.header import BLOCK, sum_block
from pagepool.image.ops import LITERAL, OBJECT, SLICE, Op

VERSION = 1

# A chunk ends when it covers this much of the plain stream, or costs about this much encoded.
CHUNK_PLAIN = 4 << 20
CHUNK_ENCODED = 64 << 10
OP_COST = 4

# What a reader accepts: the most that a writer can produce.
_MAX_OPS = CHUNK_ENCODED // OP_COST + 1
_MAX_LITERALS = CHUNK_PLAIN
_MAX_SIZE = (1 << 63) - 1

_DIGEST = 32
# version, column widths (2 bits each: sizes, references, offsets), operations, digests, literal bytes
_HEAD = struct.Struct("<BBIII")
_CODES = ("B", "H", "I", "Q")

# In the encoding only: a literal that ends in a header block whose size and checksum are derived.
_FOLDED = 3
_OBJECT_BYTE = bytes((OBJECT,))
_SIZE_START, _SIZE_END = 124, 136
_SUM_START, _SUM_END = 148, 156
_SPACES = b" " * 8  # what a checksum field counts as
_NO_SIZE, _NO_SUM = bytes(12), bytes(8)
_MAX_OCTAL = 8**11 - 1


class Columns:
    """The operations of one chunk that is being written, by column.

    Attributes:
        plain_start: where its range of the plain stream begins.
        plain_size: bytes of that range so far.
        cost: an estimate of the encoded size, of which the owner adds what the literals cost.
        kinds: one byte an operation.
        sizes: bytes of the plain stream, one an operation.
        references: one an operation that is no literal: 0 for the next new digest, else how many digests
            back.
        offsets: one a slice.
        digests: each digest once, in the order of their first reference, with its place in that order.
        literals: the bytes of all literals.
    """

    def __init__(self, plain_start: int) -> None:
        self.plain_start = plain_start
        self.plain_size = 0
        self.cost = 0
        self.kinds = bytearray()
        self.sizes: list[int] = []
        self.references: list[int] = []
        self.offsets: list[int] = []
        self.digests: dict[bytes, int] = {}
        self.literals = bytearray()

    def add(self, kind: int, size: int) -> None:
        """Add an operation."""
        self.kinds.append(kind)
        self.sizes.append(size)
        self.plain_size += size
        self.cost += OP_COST

    def add_literal(self, data: bytes | memoryview) -> None:
        """Add bytes, to the last operation if that is a literal."""
        self.literals += data
        size = len(data)
        if self.kinds and self.kinds[-1] == LITERAL:
            self.sizes[-1] += size
            self.plain_size += size
        else:
            self.add(LITERAL, size)

    def refer(self, digest: bytes) -> None:
        """Add the reference of the operation that is added next."""
        count = len(self.digests)
        index = self.digests.setdefault(digest, count)
        if index == count:
            self.references.append(0)
            self.cost += _DIGEST
        else:
            self.references.append(count - index)

    def add_file(self, literal: bytes | memoryview, digest: bytes, size: int) -> None:
        """Add a literal and an object after it: `add_literal`, `fold_header`, `refer` and `add` in one.

        Args:
            literal: ends in the header of the object, whose size and checksum are as `fold_header` wants them.
        """
        literals, kinds, sizes = self.literals, self.kinds, self.sizes
        literals += literal
        start = len(literals) - BLOCK
        literals[start + _SIZE_START : start + _SIZE_END] = _NO_SIZE
        literals[start + _SUM_START : start + _SUM_END] = _NO_SUM
        length = len(literal)
        if kinds and kinds[-1] == LITERAL:
            sizes[-1] += length
            kinds[-1] = _FOLDED
            self.cost += OP_COST
        else:
            sizes.append(length)
            kinds.append(_FOLDED)
            self.cost += 2 * OP_COST
        self.refer(digest)
        sizes.append(size)
        kinds.append(OBJECT)
        self.plain_size += length + size

    def fold_header(self, size: int) -> None:
        """Blank what the last block of the literals says twice, if it is the header of `size` bytes of data.

        The size and the checksum change from member to member and follow from the rest: without them a recipe
        is a ninth smaller. An `OBJECT` of `size` must be added next.
        """
        if self.kinds and self.kinds[-1] == LITERAL and self.sizes[-1] >= BLOCK and size <= _MAX_OCTAL:
            literals = self.literals
            block = literals[-BLOCK:]
            if block[_SIZE_START:_SIZE_END] != b"%011o\0" % size:
                return
            stored = block[_SUM_START:_SUM_END]
            block[_SUM_START:_SUM_END] = _SPACES
            if stored == b"%06o\0 " % sum_block(block):
                start = len(literals) - BLOCK
                literals[start + _SIZE_START : start + _SIZE_END] = _NO_SIZE
                literals[start + _SUM_START : start + _SUM_END] = _NO_SUM
                self.kinds[-1] = _FOLDED


def encode_chunk(columns: Columns, compressor: zstandard.ZstdCompressor) -> bytes:
    """Encode a chunk of at least one operation.

    Args:
        columns: the operations.
        compressor: one that writes the content size into the frame.
    """
    parts = [bytes(columns.kinds)]
    widths = 0
    for place, column in enumerate((columns.sizes, columns.references, columns.offsets)):
        code, encoded = _pack(column)
        widths |= code << (2 * place)
        parts.append(encoded)
    parts.append(bytes(columns.literals))
    head = _HEAD.pack(VERSION, widths, len(columns.kinds), len(columns.digests), len(columns.literals))
    return b"".join((head, *columns.digests, compressor.compress(b"".join(parts))))


def _pack(column: Sequence[int]) -> tuple[int, bytes]:
    """Encode a column: the code of its width, and all lowest bytes, then all second bytes …"""
    top = max(column, default=0)
    code = (top > 0xFF) + (top > 0xFFFF) + (top > 0xFFFFFFFF)
    raw = struct.pack(f"<{len(column)}{_CODES[code]}", *column)
    return code, b"".join(raw[place :: 1 << code] for place in range(1 << code))


def _unpack(planes: bytes, count: int, code: int) -> tuple[int, ...]:
    raw = bytearray(len(planes))
    for place in range(1 << code):
        raw[place :: 1 << code] = planes[place * count : (place + 1) * count]
    return struct.unpack(f"<{count}{_CODES[code]}", raw)


def decode_chunk(payload: bytes | memoryview, name: str = "") -> Sequence[Op]:
    """Decode one chunk.

    Args:
        payload: what `encode_chunk` made.
        name: how to name the chunk in an error.

    Returns:
        its operations.

    Raises:
        CorruptError: it is not a chunk that a writer can have written.
    """
    try:
        return _decode(memoryview(payload))
    except (ValueError, struct.error, zstandard.ZstdError) as error:
        raise CorruptError("recipe chunk", name, str(error)) from error


def _decode(payload: memoryview) -> list[Op]:
    version, widths, ops, digests, literal_size = _HEAD.unpack_from(payload)
    if version != VERSION or widths >> 6:
        raise ValueError(f"version {version} with widths {widths}")
    if not 0 < ops <= _MAX_OPS or digests > ops or literal_size > _MAX_LITERALS:
        raise ValueError("counts out of range")
    table = payload[_HEAD.size : _HEAD.size + digests * _DIGEST].tobytes()
    frame = payload[_HEAD.size + len(table) :]
    # Checked before a byte is allocated for it.
    if not 0 < zstandard.frame_content_size(frame) <= ops * (1 + 3 * 8) + literal_size:
        raise ValueError("a frame of a size that does not agree")
    body = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    kinds = body[:ops]
    slices = kinds.count(SLICE)
    counts = (ops, kinds.count(OBJECT) + slices, slices)
    codes = (widths & 3, widths >> 2 & 3, widths >> 4 & 3)
    spans = (count << code for count, code in zip(counts, codes, strict=True))
    starts = list(itertools.accumulate(spans, initial=ops))
    if len(body) != starts[-1] + literal_size or max(kinds) > _FOLDED:
        raise ValueError("columns that do not agree")
    sizes, backs, offsets = (
        _unpack(body[start:end], count, code)
        for start, end, count, code in zip(starts, starts[1:], counts, codes, strict=False)
    )
    literals = bytearray(memoryview(body)[starts[-1] :])
    _unfold_headers(kinds, sizes, literals)
    named = _resolve([table[at : at + _DIGEST] for at in range(0, len(table), _DIGEST)], backs)
    return _build(kinds, sizes, named, offsets, bytes(literals))


def _unfold_headers(kinds: bytes, sizes: tuple[int, ...], literals: bytearray) -> None:
    """Put back what `Columns.fold_header` left out."""
    position = 0
    for index, kind in enumerate(kinds):
        if kind == LITERAL:
            position += sizes[index]
        elif kind == _FOLDED:
            position += sizes[index]
            if sizes[index] < BLOCK or position > len(literals) or kinds[index + 1 : index + 2] != _OBJECT_BYTE:
                raise ValueError("a header without its object")
            size = sizes[index + 1]
            if size > _MAX_OCTAL:
                raise ValueError("a header with an object too large")
            start = position - BLOCK
            # As nearly every writer spells them.
            literals[start + _SIZE_START : start + _SIZE_END] = b"%011o\0" % size
            literals[start + _SUM_START : start + _SUM_END] = _SPACES
            literals[start + _SUM_START : start + _SUM_END] = b"%06o\0 " % sum_block(literals[start:position])


def _resolve(digests: list[bytes], backs: tuple[int, ...]) -> list[bytes]:
    """The digest of each reference."""
    named = []
    seen = 0
    for back in backs:
        if back == 0:
            seen += 1
        if back > seen or seen > len(digests):
            raise ValueError("a reference to no digest")
        named.append(digests[seen - (back or 1)])
    if seen != len(digests):
        raise ValueError("digests that nothing refers to")
    return named


def _build(
    kinds: bytes, sizes: Iterable[int], named: Iterable[bytes], offsets: Iterable[int], literals: bytes
) -> list[Op]:
    ops: list[Op] = []
    digests, starts = iter(named), iter(offsets)
    make = partial(tuple.__new__, Op)  # half the time of Op(...)
    position = 0
    for kind, size in zip(kinds, sizes, strict=True):
        if kind == OBJECT and 0 < size <= _MAX_SIZE:
            ops.append(make((OBJECT, next(digests), 0, size)))
        elif kind == SLICE:
            offset = next(starts)
            if offset + size > _MAX_SIZE:
                raise ValueError("an object too large")
            ops.append(make((SLICE, next(digests), offset, size)))
        elif kind == OBJECT or not size:
            raise ValueError("an object too large" if size else "an empty operation")
        else:
            ops.append(make((LITERAL, literals[position : position + size], 0, size)))
            position += size
    if position != len(literals):
        raise ValueError("literals that do not add up")
    return ops
