"""What a write, a truncation or a punched hole does to the blocks of a file: which blocks, with which bytes.

Blocks that are written whole need nothing; of those that are written in part the rest comes from where it is. If that
is the image it may have to be fetched, which must not happen with the overlay's lock held: `NeedsBase` says which
block, and the caller comes again with it. The image never changes, so it stays right.

Beyond the end of a file its last private block is zeros, always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

from pagepool.overlay.blockmap import HOLE
from pagepool.overlay.records import Piece
from pagepool.vfs.interface import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pagepool.overlay.arena import Arena
    from pagepool.overlay.node import Node
    from pagepool.overlay.slots import Run

_BITS: Final = PAGE_SIZE.bit_length() - 1
_MASK: Final = PAGE_SIZE - 1


class NeedsBase(Exception):  # noqa: N818 (a request, not an error)
    """A block of the image's has to be fetched first."""

    def __init__(self, block: int) -> None:
        super().__init__(block)
        self.block = block


class Change(NamedTuple):
    """New blocks of a file, written to the arena.

    Args:
        runs: the slots.
        pieces: which blocks lie in them.
        crcs: their checksums, in order.
    """

    runs: list[Run]
    pieces: list[Piece]
    crcs: list[int]


NO_BLOCKS: Final = Change([], [], [])
Fetched = dict[int, memoryview]
"""Blocks of the image's by number; the last of a file may be short."""


def write_blocks(arena: Arena, node: Node, offset: int, data: memoryview, fetched: Fetched) -> Change:
    """Write the blocks that a write makes.

    Args:
        data: at least one byte. What is not read-only may change while it is written; then any of it is written.

    Raises:
        NeedsBase: see the module; nothing was written.
        OSError: ENOSPC or another; no slot is taken.
    """
    first, head, end = offset >> _BITS, offset & _MASK, offset + len(data)
    count = (end - 1 >> _BITS) - first + 1
    tail = end & _MASK
    buffer: memoryview | bytearray = data
    if head or tail:
        buffer = bytearray(count << _BITS)
        if head and first << _BITS < node.size:
            old = old_block(arena, node, first, fetched)[:head]
            buffer[: len(old)] = old
        if tail and end < node.size:
            old = old_block(arena, node, end >> _BITS, fetched)[tail:]
            at = (count - 1 << _BITS) + tail
            buffer[at : at + len(old)] = old
        buffer[head : head + len(data)] = data
    runs = arena.write(buffer, count)
    if buffer is data and not data.readonly:
        return Change(runs, _pieces(first, runs), _checksums(arena, runs))
    if count == 1:
        return Change(runs, [Piece(first, runs[0][0], 1)], [crc32(buffer)])
    view = memoryview(buffer)
    crcs = [crc32(view[at : at + PAGE_SIZE]) for at in range(0, count << _BITS, PAGE_SIZE)]
    return Change(runs, _pieces(first, runs), crcs)


def cut_block(arena: Arena, node: Node, size: int) -> Change:
    """Write the block in which a truncation cuts a file, if it is private: with zeros beyond the new end.

    Raises:
        OSError: as `write_blocks`.
    """
    entry = node.blocks.get(size >> _BITS) if size < node.size and size & _MASK else 0
    if entry in (0, HOLE):
        return NO_BLOCKS
    block = bytearray(PAGE_SIZE)
    block[: size & _MASK] = arena.read(entry - 1, 0, size & _MASK)
    runs = arena.write(block, 1)
    return Change(runs, [Piece(size >> _BITS, runs[0][0], 1)], [crc32(block)])


def zero_blocks(arena: Arena, node: Node, offset: int, end: int, fetched: Fetched) -> tuple[tuple[int, int], Change]:
    """Make a range read as zeros.

    Args:
        offset: where it begins.
        end: where it ends; what is beyond the file's end is zeros anyway.

    Returns:
        the blocks that are to be dropped whole, and those at its ends that are written anew.

    Raises:
        NeedsBase, OSError: as `write_blocks`.
    """
    if end >= node.size:
        end = -(-node.size // PAGE_SIZE) * PAGE_SIZE
    if offset >= end:
        return (0, 0), NO_BLOCKS
    edges: dict[int, bytearray] = {}
    for block in dict.fromkeys((offset >> _BITS, end - 1 >> _BITS)):
        start = block << _BITS
        low, high = max(offset, start) - start, min(end, start + PAGE_SIZE) - start
        if high - low == PAGE_SIZE:
            continue
        old = old_block(arena, node, block, fetched)
        if len(old) > low:
            edges[block] = buffer = bytearray(PAGE_SIZE)
            buffer[: len(old)] = old
            buffer[low:high] = bytes(high - low)
    dropped = (offset + _MASK >> _BITS, end >> _BITS)
    if not edges:
        return dropped, NO_BLOCKS
    runs = arena.write(bytearray().join(edges.values()), len(edges))
    slots = [slot + place for slot, count in runs for place in range(count)]
    pieces = [Piece(block, slot, 1) for block, slot in zip(edges, slots, strict=True)]
    return dropped, Change(runs, pieces, [crc32(block) for block in edges.values()])


def old_block(arena: Arena, node: Node, block: int, fetched: Mapping[int, memoryview]) -> bytes | memoryview:
    """What a block holds; what it is shorter than a page is zeros.

    Raises:
        NeedsBase: as `write_blocks`.
    """
    entry = node.blocks.get(block)
    if entry == HOLE:
        return b""
    if entry:
        return arena.read(entry - 1, 0, PAGE_SIZE)
    left = node.blocks.base_end - (block << _BITS)
    if left <= 0:
        return b""
    if block not in fetched:
        raise NeedsBase(block)
    return fetched[block][:left]


def _checksums(arena: Arena, runs: Sequence[Run]) -> list[int]:
    """The checksums of blocks that were just written from memory that others may have changed meanwhile: what counts is
    what the file has got."""
    try:
        return [crc32(arena.read(slot + at, 0, PAGE_SIZE)) for slot, count in runs for at in range(count)]
    except BaseException:
        arena.cancel(runs)
        raise


def _pieces(first: int, runs: Sequence[Run]) -> list[Piece]:
    """Lay blocks in a row into runs of slots."""
    pieces: list[Piece] = []
    for slot, count in runs:
        pieces.append(Piece(first, slot, count))
        first += count
    return pieces
