"""Who holds the writer's lock of a store, seen from a process that does not have the store open.

LMDB's lock is a mutex in ``lock.mdb``, which the kernel frees when its holder dies. One that lives and does not go on
keeps it, and every writer waits without a word. The mutex has the id of the thread that holds it in one of its words;
which one depends on the C library and the version of LMDB, so that is found by taking the lock and looking.

To close a file drops all of a process's POSIX locks on it, LMDB's own among them: never look from a process that has
the store open.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool_service.store.environment import Environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEAD_SIZE = 256  # of the file: more than what lies before the table of readers
_ID_MASK = 0x3FFFFFFF  # the other bits say whether somebody waits, and whether the last holder died
_META_SIZE = 256  # of each of the two pages that a commit changes one of


@dataclass(frozen=True, slots=True)
class Holder:
    """A thread that holds the lock.

    Args:
        thread: its id.
        version: differs between two transactions of which the first was committed.
    """

    thread: int
    version: bytes


@dataclass(frozen=True, slots=True)
class WriterLock:
    """The lock of the store in a directory.

    Args:
        place: of the word in ``lock.mdb``.
    """

    directory: Path
    place: int

    @classmethod
    def find(cls, directory: Path) -> WriterLock | None:
        """Find the word, by taking the lock. Nobody else may have the store open. None if there is no such word."""
        own = threading.get_native_id()
        with Environment.open(directory):
            pass  # makes the file, if it is not there
        with _opened(directory / "lock.mdb") as file, Environment.open(directory) as env:
            before = _words(file)
            with env.write():
                held = _words(file)
            after = _words(file)
        steps = zip(before, held, after, strict=True)
        places = [4 * place for place, (was, now, then) in enumerate(steps) if now == own and own not in (was, then)]
        return cls(directory, places[0]) if places else None

    def holder(self) -> Holder | None:
        """Who holds the lock now; None if nobody does."""
        try:
            with _opened(self.directory / "lock.mdb") as file:
                thread = int.from_bytes(os.pread(file, 4, self.place), sys.byteorder) & _ID_MASK
            if not thread:
                return None
            with _opened(self.directory / "data.mdb") as file:
                pages = (os.pread(file, _META_SIZE, offset) for offset in (0, os.sysconf("SC_PAGE_SIZE")))
                return Holder(thread, b"".join(pages))
        except OSError:  # the disk fails: others say so
            return None


def _words(file: int) -> list[int]:
    head = os.pread(file, _HEAD_SIZE, 0)
    return [int.from_bytes(head[place : place + 4], sys.byteorder) & _ID_MASK for place in range(0, len(head) - 3, 4)]


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)
