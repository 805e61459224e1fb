"""The arena: one file of 4096-byte blocks, the private data of all files of an overlay.

Owns the file ``blocks`` and which of its slots are in use; who uses them is the state's. What keeps data right:

- A block is always written to a free slot, never over one in use: an operation that fails, or is cut off by
  the death of the process, leaves the old block as it was.
- A slot that something durable refers to (it was written before the last `begin_sync`) becomes free only when a
  later sync has made durable that nothing refers to it any more. Until then it is *pending*.

Not thread-safe: the overlay's lock is held for everything but `read` and `flush`. After a crash slots that no record
refers to are free; their content means nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from itertools import groupby
from typing import TYPE_CHECKING, Final

from pagepool.errors import CorruptError
from pagepool.overlay.blockmap import MAX_SLOTS
from pagepool.overlay.slots import SlotAllocator
from pagepool.vfs.interface import PAGE_SIZE, fail

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pagepool.overlay.slots import Run

NAME: Final = "blocks"
# A free run is given back to the file system from 1 MiB on.
_PUNCH_SLOTS: Final = 256
_PUNCH_HOLE_KEEP_SIZE: Final = 3
# At a time: 2 MiB, the largest piece in which the kernel keeps a file.
_AGAIN_SLOTS: Final = 512
# Bytes of one call: pread(2) stops at 2 GiB less a page, and does not say why.
_READ_AT_ONCE: Final = 1 << 30
_libc = ctypes.CDLL(None, use_errno=True)


class Arena:
    """An open arena.

    Args:
        directory: where it is; the file is made if it is not there.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._slots = SlotAllocator()
        self._fresh = bytearray()
        self._pending: list[Run] = []
        self._releasing: list[Run] = []
        self.pending_count = 0
        """How many slots wait for a sync."""

    def write(self, data: memoryview | bytearray, count: int) -> list[Run]:
        """Write blocks to free slots.

        Args:
            data: `count` whole blocks.

        Returns:
            where they lie, in order.

        Raises:
            OSError: ENOSPC or another; no slot was taken.
        """
        runs = self._slots.take(count)
        try:
            self._write_runs(data, count, runs)
        except BaseException:
            self._give_back(runs)
            raise
        fresh = self._fresh
        if len(fresh) < self._slots.end:
            fresh.extend(bytes(self._slots.end + (self._slots.end >> 2) + 1024 - len(fresh)))
        for slot, size in runs:
            if size == 1:
                fresh[slot] = 1
            else:
                fresh[slot : slot + size] = b"\1" * size
        return runs

    def write_again(self, runs: Iterable[Run]) -> None:
        """Write slots once more as they are, so that the next `flush` waits for them: a disk may have refused them
        before, of which the kernel tells once.

        What memory has of them is let go of before: ext4 goes on to take a block for empty that it could not write,
        whatever is written to the page later. Pages that are yet to be written stay.

        Raises:
            OSError: they cannot be written.
        """
        for number, pieces in groupby(_split(runs), key=lambda run: run[0] // _AGAIN_SLOTS):
            found = [(slot, self.read(slot, 0, count * PAGE_SIZE)) for slot, count in pieces]
            size = _AGAIN_SLOTS * PAGE_SIZE
            os.posix_fadvise(self._fd, number * size, size, os.POSIX_FADV_DONTNEED)
            for slot, data in found:
                self._pwrite(data, slot * PAGE_SIZE, len(data))

    def cancel(self, runs: Iterable[Run]) -> None:
        """Give slots back that `write` returned and no record names."""
        self._give_back(runs)

    def free(self, runs: Iterable[Run]) -> None:
        """Note that nothing refers to slots any more."""
        free: list[Run] = []
        for start, count in runs:
            fresh = self._fresh[start] if count == 1 else self._fresh.count(1, start, start + count)
            if fresh == count:
                free.append((start, count))
            elif not fresh:
                self._pending.append((start, count))
                self.pending_count += count
            else:
                self.free((slot, 1) for slot in range(start, start + count))
        if len(free) == 1:
            self._slots.give(*free[0])
        elif free:
            self._release(free)

    def read(self, slot: int, start: int, size: int) -> bytes:
        """Bytes from a run of slots; `start` counts from the first of them.

        Raises:
            CorruptError: the file ends before that.
        """
        offset = slot * PAGE_SIZE + start
        data = os.pread(self._fd, min(size, _READ_AT_ONCE), offset)
        if size > _READ_AT_ONCE:
            rest = range(_READ_AT_ONCE, size, _READ_AT_ONCE)
            pieces = (os.pread(self._fd, min(size - at, _READ_AT_ONCE), offset + at) for at in rest)
            data = b"".join((data, *pieces))
        if len(data) != size:
            raise CorruptError("overlay", str(self.path), f"it ends in slot {slot + (start + len(data)) // PAGE_SIZE}")
        return data

    def load(self, used: Iterable[Run]) -> None:
        """Take over which slots are in use, at the opening; all of that is durable.

        Raises:
            CorruptError: a slot is used twice, or lies beyond the end of the file.
        """
        runs = sorted(used)
        last = 0
        self._slots = SlotAllocator()
        for start, count in runs:
            if start < last:
                raise CorruptError("overlay", str(self.path), f"slot {start} belongs to two blocks")
            last = start + count
        size = os.fstat(self._fd).st_size
        if last * PAGE_SIZE > size:
            raise CorruptError("overlay", str(self.path), f"it has {size} bytes, its blocks end at {last * PAGE_SIZE}")
        self._slots.end = last
        before = 0
        for start, count in runs:
            if before < start:
                self._slots.give(before, start - before)
            before = start + count
        self._fresh = bytearray(last)

    def begin_sync(self) -> None:
        """All blocks written so far are about to become durable, with the records that refer to them."""
        self._fresh = bytearray(len(self._fresh))
        self._releasing += self._pending
        self._pending = []
        self.pending_count = 0

    def flush(self) -> None:
        """Wait until what was written is on disk."""
        os.fdatasync(self._fd)

    def end_sync(self) -> None:
        """What `begin_sync` announced is durable: what had been freed before it can be used again."""
        self._release(self._releasing)
        self._releasing = []
        self.trim()

    def trim(self) -> None:
        """Cut off what is free at the end of the file, if that is much."""
        end = self._slots.end * PAGE_SIZE
        if os.fstat(self._fd).st_size > end + _PUNCH_SLOTS * PAGE_SIZE:
            # Only space: a file system that fails here fails nobody's operation.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, end)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write_runs(self, data: memoryview | bytearray, count: int, runs: list[Run]) -> None:
        if self._slots.end > MAX_SLOTS:
            fail(errno.ENOSPC)
        if len(runs) == 1:
            self._pwrite(data, runs[0][0] * PAGE_SIZE, count * PAGE_SIZE)
            return
        view, at = memoryview(data), 0
        for slot, size in runs:
            self._pwrite(view[at : at + size * PAGE_SIZE], slot * PAGE_SIZE, size * PAGE_SIZE)
            at += size * PAGE_SIZE

    def _pwrite(self, data: memoryview | bytearray | bytes, offset: int, size: int) -> None:
        done = os.pwrite(self._fd, data, offset)
        while done < size:
            done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)

    def _release(self, runs: list[Run]) -> None:
        """Make slots free, and give the file system back what is much in a row."""
        starts = {self._slots.give(start, count)[0] for start, count in runs}
        if sum(count for _, count in runs) >= _PUNCH_SLOTS:
            for start in starts:
                size = self._slots.length(start)
                if size >= _PUNCH_SLOTS:
                    self._punch(start, size)
            self.trim()

    def _give_back(self, runs: Iterable[Run]) -> None:
        for start, count in runs:
            self._slots.give(start, count)

    def _punch(self, start: int, count: int) -> None:
        """Give the space of free slots back; where the file system cannot, they keep it until they are used again."""
        offset, size = ctypes.c_longlong(start * PAGE_SIZE), ctypes.c_longlong(count * PAGE_SIZE)
        _libc.fallocate(self._fd, _PUNCH_HOLE_KEEP_SIZE, offset, size)


def _split(runs: Iterable[Run]) -> Iterator[Run]:
    """Runs in order, none of them beyond a multiple of `_AGAIN_SLOTS`."""
    for slot, count in runs:
        end = slot + count
        while slot < end:
            stop = min(end, slot - slot % _AGAIN_SLOTS + _AGAIN_SLOTS)
            yield slot, stop - slot
            slot = stop
