"""Which block of a file lies in which slot: a table of two levels, small for sparse files and for large ones.

A block is private (it has a slot), a hole (zeros, whatever the image has there), or neither: then it is the image's
below `base_end`, and zeros from there on. An entry takes four bytes; chunks of entries exist only where something is
private or a hole, and are no longer than they must be (what is beyond their end is 0). Pure; not thread-safe.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from pagepool.vfs.interface import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.overlay.slots import Run

CHUNK_BITS: Final = 10
CHUNK: Final = 1 << CHUNK_BITS
_MASK: Final = CHUNK - 1
HOLE: Final = 0xFFFFFFFF
"""The entry of a hole. That of a private block is its slot plus one, that of any other 0."""
MAX_SLOTS: Final = HOLE - 1


class BlockMap:
    """The blocks of one regular file.

    Args:
        base_end: how many bytes of the image's file can be seen: its size, lowered by truncation.
    """

    __slots__ = ("base_end", "chunks", "private", "shadowed")

    def __init__(self, base_end: int) -> None:
        self.base_end = base_end
        self.chunks: dict[int, array[int]] = {}
        self.private = 0
        """How many blocks are private."""
        self.shadowed = 0
        """How many blocks below `base_end` are private or holes."""

    @property
    def base_blocks(self) -> int:
        """How many blocks hold something below `base_end`."""
        return -(-self.base_end // PAGE_SIZE)

    def get(self, block: int) -> int:
        """The entry of a block."""
        chunk, at = self.chunks.get(block >> CHUNK_BITS), block & _MASK
        return chunk[at] if chunk is not None and at < len(chunk) else 0

    def put(self, first: int, slot: int, count: int) -> list[Run]:
        """Make blocks private.

        Args:
            first: the first block.
            slot: where it lies; the others follow.
            count: how many.

        Returns:
            the runs of slots where they were before.
        """
        freed: list[Run] = []
        block, end, value = first, first + count, slot + 1
        while block < end:
            chunk, at, size = self._part(block, end)
            self._replace(chunk, at, size, block, freed)
            if size == 1:
                chunk[at] = value
            else:
                chunk[at : at + size] = array("I", range(value, value + size))
            block += size
            value += size
        self.private += count
        return freed

    def drop(self, first: int, end: int) -> list[Run]:
        """Make blocks read as zeros: holes where the image has something, else without an entry.

        Returns:
            the runs of slots where they were.
        """
        freed: list[Run] = []
        block, middle = first, min(max(first, self.base_blocks), end)
        while block < middle:
            chunk, at, size = self._part(block, middle)
            self._replace(chunk, at, size, block, freed)
            chunk[at : at + size] = array("I", [HOLE]) * size
            block += size
        self._forget(middle, end, freed)
        return freed

    def truncate(self, size: int) -> list[Run]:
        """Forget all that lies in blocks beyond a size, and what the image has beyond it.

        Returns:
            the runs of slots that those blocks had.
        """
        freed: list[Run] = []
        self.base_end = min(self.base_end, size)
        if self.chunks:
            self._forget(-(-size // PAGE_SIZE), max(self.chunks) + 1 << CHUNK_BITS, freed)
            self.recount()
        return freed

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(block, count, entry) of each run in `[first, end)`: of slots in a row, of holes, or of neither."""
        block = first
        for number in sorted(self.chunks) if end - first > CHUNK else range(first >> CHUNK_BITS, -(-end // CHUNK)):
            chunk = self.chunks.get(number)
            start, stop = max(block, number << CHUNK_BITS), min(end, number + 1 << CHUNK_BITS)
            if chunk is None or start >= stop:
                continue
            if block < start:
                yield block, start - block, 0
            block = start
            for _, count, value in _runs(chunk[start & _MASK : (stop - 1 & _MASK) + 1]):
                yield block, count, value
                block += count
            if block < stop:
                yield block, stop - block, 0
                block = stop
        if block < end:
            yield block, end - block, 0

    def slots(self) -> list[Run]:
        """The runs of slots of all private blocks."""
        found: list[Run] = []
        for chunk in self.chunks.values():
            _collect(chunk, found)
        return found

    def recount(self) -> None:
        """Count `private` and `shadowed` again."""
        self.private = self.shadowed = 0
        limit = self.base_blocks
        for number, chunk in self.chunks.items():
            self.private += len(chunk) - chunk.count(0) - chunk.count(HOLE)
            below = chunk[: max(0, min(CHUNK, limit - (number << CHUNK_BITS)))]
            self.shadowed += len(below) - below.count(0)

    def _part(self, block: int, end: int) -> tuple[array[int], int, int]:
        """The chunk of a block, made if need be, the place in it, and how many of the blocks up to `end` it holds."""
        number, at = block >> CHUNK_BITS, block & _MASK
        size = min(end - block, CHUNK - at)
        chunk = self.chunks.get(number)
        if chunk is None:
            chunk = self.chunks[number] = array("I", bytes(4 * (at + size)))
        elif len(chunk) < at + size:
            chunk.frombytes(bytes(4 * (min(CHUNK, max(at + size, 2 * len(chunk))) - len(chunk))))
        return chunk, at, size

    def _replace(self, chunk: array[int], at: int, size: int, block: int, freed: list[Run]) -> None:
        """Note that entries get others instead, none of them 0."""
        if size == 1:
            old = chunk[at]
            if not old:
                self.shadowed += block * PAGE_SIZE < self.base_end
            elif old != HOLE:
                freed.append((old - 1, 1))
                self.private -= 1
            return
        olds = chunk[at : at + size]
        covered = max(0, min(size, self.base_blocks - block))
        if covered:
            self.shadowed += olds[:covered].count(0)
        self.private -= _collect(olds, freed)

    def _forget(self, first: int, end: int, freed: list[Run]) -> None:
        """Take entries away, none of them below `base_end`."""
        if first >= end:
            return
        numbers: list[int] | range = range(first >> CHUNK_BITS, -(-end // CHUNK))
        if len(numbers) > len(self.chunks):
            numbers = [number for number in self.chunks if number in numbers]
        for number in numbers:
            chunk = self.chunks.get(number)
            if chunk is None:
                continue
            start, stop = max(first, number << CHUNK_BITS) & _MASK, (min(end, number + 1 << CHUNK_BITS) - 1 & _MASK) + 1
            stop = min(stop, len(chunk))
            if start < stop:
                self.private -= _collect(chunk[start:stop], freed)
                chunk[start:stop] = array("I", bytes(4 * (stop - start)))
                if chunk.count(0) == len(chunk):
                    del self.chunks[number]


def _runs(values: array[int]) -> Iterator[tuple[int, int, int]]:
    at, size = 0, len(values)
    while at < size:
        value = values[at]
        end = at + 1
        if value in (0, HOLE):
            while end < size and values[end] == value:
                end += 1
        elif values[size - 1] == value + size - 1 - at and values[at:] == array("I", range(value, value + size - at)):
            end = size
        else:
            while end < size and values[end] == value + end - at and values[end] != HOLE:
                end += 1
        yield at, end - at, value
        at = end


def _collect(values: array[int], runs: list[Run]) -> int:
    """Append the runs of slots among entries; returns how many slots that are."""
    if values.count(0) == len(values):
        return 0
    total = 0
    for _, count, value in _runs(values):
        if value not in (0, HOLE):
            runs.append((value - 1, count))
            total += count
    return total
