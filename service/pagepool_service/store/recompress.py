"""Compress what is stored once more, thoroughly, when there is time.

A push compresses as fast as it can. This goes through the frames by their numbers and puts smaller records of the same
frames in their places: same number, same extents at the same offsets, same plain bytes. So no other record changes, and
nobody who reads can tell, but for the size.

Owns the record `recompressed` in `meta`: the method, and the number of the next frame to look at. Frames only come with
greater numbers, so each is looked at once; another method starts from the first again.

A new record replaces an old one only if it decompresses to the bytes that the old one held, each extent of which has
its digest, and if the old one is still there, unchanged, in the transaction that replaces it. Frames, totals and
position change in one transaction: a crash loses at most the work of one batch. LMDB writes it to other pages, and
gives those of the old ones up for reuse: the file does not shrink, it grows less.

A damaged frame is passed over: fsck and the reads that meet it say so. One process at a time does this; a second one
would only do the same work.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool.extents import THOROUGH_METHOD, FrameHead, recompress_frame
from pagepool_service.store.environment import CHECKSUM_SIZE, Table, checksum
from pagepool_service.store.schema import u64
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.store.environment import Environment, Reader, Writer

log = logging.getLogger("pagepool.recompress")

_KEY = b"recompressed"
_POSITION = struct.Struct(">BQ")
_BATCH_PLAIN = 4 << 20  # plain bytes of the frames of one transaction: a third of a second's work
_BATCH_FRAMES = 256  # and at most so many, however small


def load_position(txn: Reader) -> int:
    """The number of the next frame to look at."""
    try:
        payload = txn.get(Table.META, _KEY)
        method, number = (0, 0) if payload is None else _POSITION.unpack(payload)
    except (CorruptError, struct.error):  # it is written anew
        return 1
    return number if method == THOROUGH_METHOD else 1


def count_waiting(txn: Reader) -> int:
    """How many frames nobody has looked at yet, at most."""
    return Totals.load(txn).next_frame - load_position(txn)


@dataclass(frozen=True, slots=True)
class Replacement:
    """A frame's new record, and the checksum of the one that it was made from."""

    number: int
    seen: bytes
    payload: bytes


class Recompressor:
    """Goes through the frames of a store.

    Args:
        compress: does the work on one frame, see `recompress_frame`; may run it elsewhere.
    """

    def __init__(self, env: Environment, compress: Callable[[int, bytes], bytes | None] = recompress_frame) -> None:
        self._env = env
        self._compress = compress

    def step(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Work on the next few frames.

        Args:
            stop: asked before each frame and before the transaction; if it says so, all of this step is dropped.

        Returns:
            whether this brought it further; not if there is no frame left, nor if it was stopped.

        Raises:
            StoreFullError, ReadOnlyError: as writes do; nothing was changed.
        """
        with self._env.read() as txn:
            start, end = load_position(txn), Totals.load(txn).next_frame
        if start >= end:
            return False
        made: list[Replacement] = []
        position, plain = start, 0
        for _ in range(_BATCH_FRAMES):
            if stop():
                return False
            found = self._next(position)
            if found is None:
                position = end
                break
            number, value = found
            position = number + 1
            plain += self._work(number, value, made)
            if plain >= _BATCH_PLAIN:
                break
        if stop():
            return False
        self._replace_all(made, position)
        return True

    def _next(self, number: int) -> tuple[int, bytes] | None:
        """The first frame from a number on, as its record lies there."""
        with self._env.read() as txn:
            for key, value in txn.scan(Table.FRAMES, start=u64(number), check=False):
                return int.from_bytes(key, "big"), bytes(value)
        return None

    def _work(self, number: int, value: bytes, made: list[Replacement]) -> int:
        """Try to make a frame smaller. Returns its plain bytes."""
        payload, seen = value[:-CHECKSUM_SIZE], value[-CHECKSUM_SIZE:]
        try:
            if checksum(Table.FRAMES, u64(number), payload) != seen:
                raise CorruptError("frame", str(number), "its checksum does not match its bytes")
            head, _ = FrameHead.decode(memoryview(payload), str(number))
            fresh = self._compress(number, payload)
        except CorruptError as error:
            log.error("passed over: %s", error)
            return 0
        if fresh is not None:
            made.append(Replacement(number, seen, fresh))
        return head.plain_size

    def _replace_all(self, made: list[Replacement], position: int) -> None:
        with self._env.write() as txn:
            for replacement in made:
                _replace(txn, replacement)
            txn.put(Table.META, _KEY, _POSITION.pack(THOROUGH_METHOD, position))


def _replace(txn: Writer, new: Replacement) -> None:
    """Put the new record in the place of the old one, unless that is gone or another by now."""
    key = u64(new.number)
    value = txn.get_unchecked(Table.FRAMES, key)
    if value is None or value[-CHECKSUM_SIZE:] != new.seen:
        return
    old, _ = FrameHead.decode(value[:-CHECKSUM_SIZE], str(new.number))
    stored = len(value) - CHECKSUM_SIZE
    totals = Totals.load(txn)
    totals.count_frame(old.role, old.plain_size, stored, len(old.extents), sign=-1)
    totals.count_frame(old.role, old.plain_size, len(new.payload), len(old.extents))
    txn.put(Table.FRAMES, key, new.payload)
    totals.store(txn)
