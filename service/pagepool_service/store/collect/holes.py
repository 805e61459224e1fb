"""Give free pages of the database back to the file system, while others read and write.

LMDB's file never gets shorter, and its free pages stay on the disk. Here they are punched out of it
(`fallocate(PUNCH_HOLE)`): the file keeps its size, and takes only what is in use. A free page is written before it is
ever read again (LMDB prepares pages in memory and writes them whole, but in its mode WRITEMAP, in which the store is
never opened), so it makes no difference what is read where it was.

Which pages nobody needs is decided exactly as LMDB decides which it may write over: those in records of its list that
are older than the last commit, and than every snapshot in the table of readers. The writer's lock is held meanwhile,
so neither the list nor the last commit changes; a reader that comes takes a snapshot of that commit. Of the two head
pages the older one is of the commit before the last; its snapshot does not have these pages either, so a loss of
power leaves what it would have left without this.

A few pages are left, those that LMDB takes first: on a full disk a deletion needs some.

Where a file system cannot do this, nothing is done.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool_service.store.collect.freelist import FreeList, UnknownFormatError, runs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.store.collect.gate import Gate, Turn
    from pagepool_service.store.environment import Environment

log = logging.getLogger("pagepool.collect")

_PUNCH_HOLE_KEEP_SIZE: Final = 3
_KEPT: Final = 256 << 10  # bytes of free pages that are left
_LONGEST: Final = 8 << 20  # bytes of one call
_ATTEMPTS: Final = 5
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@dataclass(slots=True)
class _Piece:
    """A record of the list, and those runs of its pages (offset, size, in bytes) that are on the disk."""

    transaction: int
    record: bytes
    runs: list[tuple[int, int]]


def give_back(env: Environment, gate: Gate, watch: Callable[[int], None] = lambda _: None) -> int:
    """Punch free pages out of the database. Blocks, in turns.

    Args:
        watch: told how many more bytes were given back.

    Returns:
        bytes that were given back; those that are free now and were already holes do not count.

    Raises:
        OSError: the file system does not do it (EOPNOTSUPP), or failed.
    """
    fd = os.open(env.file, os.O_RDWR | os.O_CLOEXEC)
    try:
        pieces = _look_again(env, fd)
        given = 0
        while pieces:
            some = gate.run(lambda turn: _punch(env, fd, turn, pieces))
            given += some
            watch(some)
        return given
    except UnknownFormatError:
        return 0
    finally:
        os.close(fd)


def free_on_disk(env: Environment) -> int:
    """Bytes of free pages that are on the disk."""
    fd = os.open(env.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sum(size for piece in _look(env, fd, 0) for _, size in piece.runs)
    except UnknownFormatError:
        return 0
    finally:
        os.close(fd)


def _look_again(env: Environment, fd: int) -> list[_Piece]:
    """`_look`; the head of a snapshot is written over when two others have committed meanwhile."""
    for _ in range(_ATTEMPTS):
        try:
            return _look(env, fd)
        except UnknownFormatError as error:
            log.debug("the list of free pages could not be read: %s", error)
    return []


def _look(env: Environment, fd: int, kept: int = _KEPT) -> list[_Piece]:
    """What could be punched, as a snapshot has it; the last piece is the oldest, which LMDB takes first."""
    pieces: list[_Piece] = []
    with env.read() as txn:  # as long as it is open, nobody writes over the list that it has
        free = FreeList(fd, txn.version)
        size = free.head.page_size
        for transaction, record in free.records():
            found = [(first * size, count * size) for first, count in runs_of(record)]
            runs = [run for run in found if _is_on_disk(fd, *run)]
            spared = []
            while runs and kept > 0:
                spared.append(runs.pop(0))
                kept -= spared[-1][1]
            if runs:
                pieces.append(_Piece(transaction, record, runs))
    pieces.reverse()
    return pieces


def _is_on_disk(fd: int, offset: int, size: int) -> bool:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) < offset + size
    except OSError as error:
        if error.errno == errno.ENXIO:  # there is a hole from there to the end
            return False
        raise


def _punch(env: Environment, fd: int, turn: Turn, pieces: list[_Piece]) -> int:
    """Punch what is still free and not needed, as long as the turn lasts. Returns how many bytes."""
    committed = turn.txn.version - 1
    free = FreeList(fd, committed)
    oldest = min(committed, env.oldest_reader(committed))
    given = 0
    while pieces and not turn.is_over:
        piece = pieces[-1]
        if piece.transaction >= oldest or free.find(piece.transaction) != piece.record:
            pieces.pop()  # somebody may still look at it, or it was used meanwhile
            continue
        while piece.runs and not turn.is_over:
            offset, size = piece.runs.pop()
            if size > _LONGEST:
                piece.runs.append((offset + _LONGEST, size - _LONGEST))
                size = _LONGEST
            if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, size):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(env.file))
            given += size
        if not piece.runs:
            pieces.pop()
    return given
