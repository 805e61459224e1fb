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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pagepool_service.store.collect.freelist import FreeList, UnknownFormatError, runs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.store.collect.gate import Gate, Turn
    from pagepool_service.store.environment import Environment

log = logging.getLogger("pagepool.collect")

_PUNCH_HOLE_KEEP_SIZE: Final = 3
_KEPT: Final = 256 << 10  # bytes of free pages that are left
_LONGEST: Final = 1 << 20  # bytes of one call
_NOT_WORTH: Final = 0.01  # of what is in use: so much may stay in the smallest runs
_ATTEMPTS: Final = 5
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@dataclass(slots=True)
class _Plan:
    """What could be punched.

    Args:
        records: of LMDB's list, by their transactions, as they were.
        runs: offset, size in bytes, and the transactions of the records that its pages are in; the largest last.
    """

    records: dict[int, bytes] = field(default_factory=dict)
    runs: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)


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
        plan = _look_again(env, fd)
        given = 0
        while plan.runs:
            some = gate.run(lambda turn: _punch(env, fd, turn, plan))
            given += some
            watch(some)
        return given
    except UnknownFormatError:
        return 0
    finally:
        os.close(fd)


def _look_again(env: Environment, fd: int) -> _Plan:
    """`_look`; the head of a snapshot is written over when two others have committed meanwhile."""
    for _ in range(_ATTEMPTS):
        try:
            return _look(env, fd)
        except UnknownFormatError as error:
            log.debug("the list of free pages could not be read: %s", error)
    return _Plan()


def _look(env: Environment, fd: int) -> _Plan:
    """What could be punched, as a snapshot has it."""
    plan = _Plan()
    kept = _KEPT
    found: list[tuple[int, int, int]] = []
    with env.read() as txn:  # as long as it is open, nobody writes over the list that it has
        used = txn.used_bytes()
        free = FreeList(fd, txn.version)
        size = free.head.page_size
        for transaction, record in free.records():
            plan.records[transaction] = record
            for first, count in runs_of(record):
                if not _is_on_disk(fd, first * size, count * size):
                    continue
                spared = min(count, -(-kept // size))  # LMDB takes the pages of the oldest records first
                kept -= spared * size
                if spared < count:
                    found.append(((first + spared) * size, (count - spared) * size, transaction))
    runs = sorted(_joined(sorted(found)), key=lambda run: run[1])
    # Each costs a call, whatever its size: little scattered pages that make next to nothing stay for LMDB to use.
    left, least = int(used * _NOT_WORTH), 0
    while least < len(runs) and runs[least][1] <= left:
        left -= runs[least][1]
        least += 1
    plan.runs = runs[least:]
    return plan


def _joined(runs: list[tuple[int, int, int]]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Runs that follow each other as one, up to `_LONGEST` bytes each."""
    joined: list[tuple[int, int, tuple[int, ...]]] = []
    for offset, size, transaction in runs:
        for start in range(offset, offset + size, _LONGEST):
            part = min(_LONGEST, offset + size - start)
            if joined and joined[-1][0] + joined[-1][1] == start and joined[-1][1] + part <= _LONGEST:
                before = joined.pop()
                known = before[2] if transaction in before[2] else (*before[2], transaction)
                joined.append((before[0], before[1] + part, known))
            else:
                joined.append((start, part, (transaction,)))
    return joined


def _is_on_disk(fd: int, offset: int, size: int) -> bool:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) < offset + size
    except OSError as error:
        if error.errno == errno.ENXIO:  # there is a hole from there to the end
            return False
        raise


def _punch(env: Environment, fd: int, turn: Turn, plan: _Plan) -> int:
    """Punch what is still free and not needed, as long as the turn lasts. Returns how many bytes."""
    committed = turn.txn.version - 1
    free = FreeList(fd, committed)
    oldest = min(committed, env.oldest_reader(committed))
    right: dict[int, bool] = {}  # by transaction: whether its record is what it was, and nobody may look at its pages
    given = 0
    while plan.runs and not turn.is_over:
        offset, size, transactions = plan.runs.pop()
        for transaction in transactions:
            if transaction not in right:
                record = plan.records[transaction]
                right[transaction] = transaction < oldest and free.find(transaction) == record
        if not all(right[transaction] for transaction in transactions):
            continue
        if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, size):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(env.file))
        given += size
    return given
