"""From a recipe and its extents back to the bytes of a layer.

The hot path of pulls and of verification. Consecutive files of a layer mostly lie one after the other in the
same frame, so the frame at hand is asked first, and the index only when it does not hold the next extent.
Each step reads in a transaction of its own, which has ended before anything is yielded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE
from pagepool.image import LITERAL, SLICE, Op, decode_chunk
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import ObjectRecord, parse_recipe_key, recipe_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.extents import Frame
    from pagepool_service.store.environment import Environment, Reader
    from pagepool_service.store.extents import ExtentStore

PIECE_SIZE = 1 << 20
_COPIED = 16 << 10


def rebuild(env: Environment, extents: ExtentStore, recipe: int, start: int, end: int) -> Iterator[bytes]:
    """The bytes `[start, end)` of a layer's tar, in pieces of about 1 MiB.

    Args:
        recipe: the recipe's id.

    Raises:
        CorruptError: something it needs is damaged or missing; what was yielded before was right.
    """
    position = start
    while position < end:
        with env.read() as txn:
            found = txn.last(Table.RECIPES, recipe_key(recipe, 0)[:8], recipe_key(recipe, position))
            if found is None:
                raise CorruptError("recipe", str(recipe), f"nothing covers byte {position}")
            key = found[0]
            ops = decode_chunk(found[1])
        chunk_start = parse_recipe_key(key)[1]
        chunk_end = chunk_start + sum(op.size for op in ops)
        if chunk_end <= position:
            raise CorruptError("recipe", str(recipe), f"nothing covers byte {position}")
        taken = _cut(ops, position - chunk_start, end - chunk_start)
        yield from assemble(env, extents, taken)
        position = chunk_end


def rebuild_chunk(env: Environment, extents: ExtentStore, key: bytes) -> Iterator[bytes | memoryview]:
    """The bytes that one chunk of a recipe stands for, for whoever only looks at them: large runs of them uncopied.

    Views are valid until the next step, or keep a decoded frame in memory.

    Raises:
        CorruptError: something is damaged or missing that they need, or the holes of the sparse files among them.
    """
    ops = read_chunk(env, key)
    sliced = {bytes(op.data) for op in ops if op.kind == SLICE}
    if sliced:
        with env.read() as txn:
            for digest in sliced:
                extents.check_stored(txn, extents.object_by_name(txn, digest))
    for parts in _gather(env, extents, ops):
        small: list[bytes | memoryview] = []
        for part in parts:
            if len(part) < _COPIED:
                small.append(part)
                continue
            if small:
                yield b"".join(small)
                small.clear()
            yield part
        if small:
            yield b"".join(small)


def read_chunk(env: Environment, key: bytes) -> Sequence[Op]:
    """The operations of one chunk.

    Raises:
        CorruptError: it is damaged or missing.
    """
    with env.read() as txn:
        payload = txn.get(Table.RECIPES, key)
        if payload is None:
            raise CorruptError("recipe", key.hex(), "a chunk is missing")
        return decode_chunk(payload)


def assemble(env: Environment, extents: ExtentStore, ops: Sequence[Op]) -> Iterator[bytes]:
    """Carry operations out, in pieces of about 1 MiB."""
    return map(b"".join, _gather(env, extents, ops))


def _gather(env: Environment, extents: ExtentStore, ops: Sequence[Op]) -> Iterator[list[bytes | memoryview]]:
    """Carry operations out: buffers that follow each other, about 1 MiB at a time."""
    assembler = _Assembler(extents)
    steps = iter(ops)
    done = False
    while not done:
        with env.read() as txn:
            done = assembler.step(txn, steps)
        if assembler.parts:
            yield assembler.take()


class _Assembler:
    """Gathers the buffers that operations stand for, about `PIECE_SIZE` bytes at a time."""

    def __init__(self, extents: ExtentStore) -> None:
        self._extents = extents
        self._frame: Frame | None = None
        self._sliced: tuple[bytes, ObjectRecord] | None = None
        self._left: Iterator[tuple[bytes, int, int]] = iter(())  # (extent, start in it, end) of an object begun
        self.parts: list[bytes | memoryview] = []
        self._size = 0

    def take(self) -> list[bytes | memoryview]:
        """The buffers gathered."""
        parts = self.parts
        self.parts = []
        self._size = 0
        return parts

    def step(self, txn: Reader, ops: Iterator[Op]) -> bool:
        """Gather one piece. Returns whether everything is done."""
        if self._finish_object(txn):
            return False
        for kind, data, offset, size in ops:
            if kind == LITERAL:
                self.parts.append(data)
                self._size += size
            elif kind != SLICE and size <= EXTENT_SIZE:
                frame, start, length = self._find(txn, bytes(data))
                self._add(frame, start, start + length)
            elif size:
                record = self._record(txn, bytes(data), None if kind == SLICE else size)
                self._left = _object_range(record, offset, offset + size)
                self._finish_object(txn)
            if self._size >= PIECE_SIZE:
                return False
        return True

    def _finish_object(self, txn: Reader) -> bool:
        """Go on with a large object. Returns whether the piece is full."""
        for digest, first, last in self._left:
            frame, start, length = self._find(txn, digest)
            self._add(frame, start + first, start + min(last, length))
            if self._size >= PIECE_SIZE:
                return True
        return False

    def _add(self, frame: Frame, start: int, end: int) -> None:
        """Add bytes of a frame. Few of them as a copy: a view of a few bytes would keep a whole frame in memory."""
        self.parts.append(frame.plain[start:end] if end - start < _COPIED else frame.view[start:end])
        self._size += end - start

    def _find(self, txn: Reader, digest: bytes) -> tuple[Frame, int, int]:
        """Where an extent is: the frame, and its offset and length in that."""
        frame = self._frame
        place = frame.index.get(digest) if frame else None
        if frame is None or place is None:
            frame = self._frame = self._extents.frame_of(txn, digest)
            place = frame.index[digest]
        return frame, *place

    def _record(self, txn: Reader, digest: bytes, size: int | None) -> ObjectRecord:
        if size is not None:
            return self._extents.object_record(txn, digest, size)
        # The slices of a sparse file follow each other, and its list of extents can be long.
        if self._sliced is None or self._sliced[0] != digest:
            self._sliced = digest, self._extents.object_by_name(txn, digest)
        return self._sliced[1]


def _object_range(record: ObjectRecord, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The extents that hold `[start, end)` of an object, each with the part of it that is wanted."""
    for offset, digest in record.extents(start):
        if offset >= end:
            return
        yield digest, max(0, start - offset), min(end - offset, EXTENT_SIZE, record.size - offset)


def _cut(ops: Sequence[Op], start: int, end: int) -> Sequence[Op]:
    """The operations for `[start, end)` of what `ops` stand for."""
    cut: list[Op] = []
    position = 0
    for op in ops:
        low, high = max(start - position, 0), min(end - position, op.size)
        position += op.size
        if low >= high:
            continue
        if low == 0 and high == op.size:
            cut.append(op)
        elif op.kind == LITERAL:
            cut.append(Op(LITERAL, op.data[low:high], 0, high - low))
        else:
            cut.append(Op(SLICE, op.data, op.offset + low, high - low))
    return cut
