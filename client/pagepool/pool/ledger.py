"""The account that all processes of a pool share: one small mapped file, changed under one lock.

`state` is one page: a magic, then unsigned 64-bit counters (docs/format/pool.md). `lock` is locked with flock(2) for
every change, which the kernel gives back when its holder dies. While a change is going on, the first counter is not
zero: whoever takes the lock and finds it so knows that its last holder was killed in the middle, and has the account
made anew from the files before anything else happens. So the account is exact after every kill, and never too low.

Changes are made to a copy and written back, never through the mapping: where a page has to go to another place on the
disk when it is changed (btrfs), a full disk would end the process by SIGBUS. So it is an OSError, before anything is
changed. On such a disk the file is asked for to stay where it is, and can be written then, too.

Threads of a process exclude each other by a mutex. After a fork the child opens the lock again: a descriptor that it
inherited is the same lock as its parent's. Critical sections are short: microseconds, or a batch of evictions.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from typing import TYPE_CHECKING, Final

from pagepool import linux
from pagepool.errors import PagepoolError
from pagepool.pool.layout import LOCK, PAGE, STATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

MAGIC: Final = int.from_bytes(b"PPSTATE\x01", "little")

# Counters by their number. Byte figures are whole pages, except CONTENT.
_MAGIC: Final = 0
BUSY: Final = 1
KNOWN: Final = 2
BUDGET: Final = 3
USED: Final = 4
OBJECTS: Final = 5
CONTENT: Final = 6
OBJECT_BYTES: Final = 7
PARTIALS: Final = 8
PARTIAL_BYTES: Final = 9
RETIRED_BYTES: Final = 10
TEMPORARY_BYTES: Final = 11
HITS: Final = 12
MISSES: Final = 13
EVICTIONS: Final = 14
EVICTED_BYTES: Final = 15
GENERATION: Final = 16
STAMP: Final = 17
UNSYNCED: Final = 18
PINNED_BYTES: Final = 19
RESERVE: Final = 20

_SIZE: Final = 8 * (RESERVE + 1)
_COUNTED = (USED, OBJECTS, CONTENT, OBJECT_BYTES, PARTIALS, PARTIAL_BYTES, RETIRED_BYTES, TEMPORARY_BYTES, PINNED_BYTES)


class Ledger:
    """The counters, and the lock over them. A context manager that holds the lock; not re-entrant.

    Args:
        path: the pool's directory.
        recover: called with the lock held when the account must be made anew: counts the files, from 0.
    """

    def __init__(self, path: Path, recover: Callable[[], None]) -> None:
        self._path = path / LOCK
        self._recover = recover
        self._mutex = threading.Lock()
        self._copy = bytearray(_SIZE)
        self.cells = memoryview(self._copy).cast("Q")
        self._file = os.open(path / STATE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock = -1
        try:
            self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if os.fstat(self._file).st_size < PAGE:
                linux.stay_in_place(self._file)
                # Written, not extended: a page of a full file system must be missed here, not when it is touched.
                os.pwrite(self._file, bytes(PAGE), 0)
            self._map = mmap.mmap(self._file, PAGE, prot=mmap.PROT_READ)
            self._load()
            if self.cells[_MAGIC] != MAGIC:
                self.cells[_MAGIC], self.cells[KNOWN] = MAGIC, 0
                self._store()
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        except BaseException:
            for descriptor in filter(lambda number: number >= 0, (self._file, self._lock)):
                os.close(descriptor)
            raise

    def __enter__(self) -> memoryview[int]:
        self._mutex.acquire()
        try:
            fcntl.flock(self._checked(), fcntl.LOCK_EX)
        except BaseException:
            self._mutex.release()
            raise
        try:
            self._begin()
        except BaseException:
            self._release()
            raise
        return self.cells

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Our own errors are raised between changes. Any other may have come between two counters: they are made anew.
        try:
            if kind is None or issubclass(kind, PagepoolError):
                self.cells[BUSY] = 0
                self._store()
        finally:
            self._release()

    def attempt(self, action: Callable[[memoryview[int]], None]) -> bool:
        """Do something with the lock held, if nobody else has it just now.

        Returns:
            whether it was done; False also if the disk takes nothing: what is to be done now and then can be left out.
        """
        if not self._mutex.acquire(blocking=False):
            return False
        try:
            fcntl.flock(self._checked(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            self._mutex.release()
            if isinstance(error, BlockingIOError):
                return False
            raise
        try:
            self._begin()
            action(self.cells)
            self.cells[BUSY] = 0
            self._store()
        except OSError:
            return False
        finally:
            self._release()
        return True

    def seen(self, number: int) -> int:
        """A counter as it is just now, without the lock."""
        return int.from_bytes(self._map[8 * number : 8 * number + 8], "little")

    def forget(self) -> None:
        """Have the account made anew when the lock is next taken. Called with the lock held."""
        self.cells[KNOWN] = 0

    def after_fork(self) -> None:
        """In a child: get a lock of its own."""
        os.close(self._lock)
        self._lock = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self._mutex = threading.Lock()

    def close(self) -> None:
        """Let go of lock and map, once no other thread has the lock. From then on taking it is a ValueError."""
        with self._mutex:
            os.close(self._lock)
            os.close(self._file)
            self._lock = self._file = -1  # their numbers may soon be those of other files
            self.cells.release()
            self._map.close()

    def _checked(self) -> int:
        if self._lock < 0:
            raise ValueError(f"the pool at {self._path.parent} is closed")
        return self._lock

    def _load(self) -> None:
        self._copy[:] = self._map[:_SIZE]

    def _store(self) -> None:
        os.pwrite(self._file, self._copy, 0)

    def _begin(self) -> None:
        cells = self.cells
        self._load()
        counted = not cells[BUSY] and cells[KNOWN]
        cells[BUSY] = 1
        self._store()
        if not counted:
            for number in _COUNTED:
                cells[number] = 0
            self._recover()
            cells[KNOWN] = 1

    def _release(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._mutex.release()
