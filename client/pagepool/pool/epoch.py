"""What is known to be on the disk, without a sync for each small file: a logical clock, and one syncfs(2) now and then.

Objects are published without waiting for the disk. When an object gets its name its modification time is set to a
*stamp*: a counter, as seconds after `BASE_S`. `sync` takes the stamp of that moment, moves the counter on, has the file
system written to its disk, and only then notes durably in `epoch` that everything up to that stamp is safe. No clock of
the machine is involved, and an object that comes again has a new stamp.

When a pool is opened in another boot than `epoch` names, nobody knows how the last one ended: objects whose stamp is
not known to be safe are marked as *suspect* (time 0). A suspect object is hashed when it is first asked for, by whoever
asks; it is served and stamped anew if it is right, and removed if it is not. Clean shutdowns are not told apart: what
was not synced is hashed once more. Partial objects note their boot themselves (`pagepool.pool.mapfile`).

A pool that is not durable is emptied instead. Everything here but the waiting is done with the ledger's lock held.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool import linux
from pagepool.errors import BusyError, StoreFormatError
from pagepool.pool import ledger as cell
from pagepool.pool.layout import EPOCH, EPOCH_LOCK, OBJECTS, PARTIAL, RETIRED, TEMPORARY, object_name, replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool.pool.evict import Evictor
    from pagepool.pool.ledger import Ledger

BASE_S: Final = 1_000_000_000
_MOST: Final = 1 << 28
_NS: Final = 1_000_000_000
TRUSTED_NS: Final = range(BASE_S * _NS, (BASE_S + _MOST) * _NS)
"""Modification times, in nanoseconds, of objects that may be served. The time of day is beyond it."""
_SUSPECT: Final = (0, 0)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the file says.

    Args:
        boot: the boot in which the pool was last opened.
        synced: objects with stamps up to this one are on the disk.
        last: no stamp beyond this one was ever used.
    """

    boot: bytes
    synced: int
    last: int

    def encode(self) -> bytes:
        """The file's bytes."""
        return f"boot {self.boot.hex()}\nsynced {self.synced}\nlast {self.last}\n".encode()

    @classmethod
    def read(cls, path: Path) -> Epoch | None:
        """The epoch of a pool; None if it has none yet.

        Raises:
            StoreFormatError: the file is damaged.
        """
        try:
            text = (path / EPOCH).read_text("ascii")
        except FileNotFoundError:
            return None
        try:
            fields = dict(line.split(" ") for line in text.splitlines())
            return cls(bytes.fromhex(fields["boot"]), int(fields["synced"]), int(fields["last"]))
        except (KeyError, ValueError) as error:
            raise StoreFormatError(f"{path}: the pool's epoch file is damaged") from error


def begin(path: Path, cells: memoryview[int], evictor: Evictor, *, durable: bool) -> bool:
    """Find out whether the machine has booted since the pool was last open, and distrust what has to be.

    Returns:
        whether it has (or the pool is new): then the account is to be made anew.
    """
    boot = linux.boot_id()
    epoch = Epoch.read(path)
    if epoch is not None and epoch.boot == boot:
        cells[cell.STAMP] = max(cells[cell.STAMP], epoch.last)
        return False
    synced = -1 if epoch is None else epoch.synced
    last = max(synced, -1 if epoch is None else epoch.last)
    if epoch is not None and not durable:
        _empty(path)
    for digest, status in evictor.walk():
        if not BASE_S <= status.st_mtime_ns / _NS <= BASE_S + synced:
            os.utime(path / OBJECTS / object_name(digest), ns=_SUSPECT)
    evictor.forget()
    for number in (cell.HITS, cell.MISSES, cell.EVICTIONS, cell.EVICTED_BYTES, cell.UNSYNCED):
        cells[number] = 0
    cells[cell.STAMP] = last + 1
    replace(path, EPOCH, Epoch(boot, synced, last + 1).encode(), durable=durable)
    return True


def check_reader(path: Path, *, durable: bool) -> None:
    """Raise BusyError if the owner of a durable pool has not opened it since the machine booted."""
    epoch = Epoch.read(path)
    if durable and (epoch is None or epoch.boot != linux.boot_id()):
        raise BusyError(f"{path}: the pool's owner has not opened it since the machine booted")


def stamp_ns(cells: memoryview[int]) -> tuple[int, int]:
    """The times that an object which is published now gets, with the ledger's lock held."""
    at = (BASE_S + cells[cell.STAMP]) * _NS
    return at, at


def sync(path: Path, ledger: Ledger, on_lost: Callable[[int], object], *, wait: bool = True) -> bool:
    """Make everything durable that was published before. Blocks for as long as the disk takes.

    Args:
        path: the pool's directory.
        ledger: its account, not locked.
        on_lost: called when the disk did not take something, with the first stamp of what that may be: the kernel tells
            once, and reads afterwards what the disk has.
        wait: also if another process is doing the same.

    Returns:
        whether it was done; False if somebody else is at it and `wait` is false.
    """
    descriptor = os.open(path / EPOCH_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        epoch = Epoch.read(path)
        if epoch is None:
            raise StoreFormatError(f"{path}: the pool's epoch file is gone")
        with ledger as cells:
            stamp = cells[cell.STAMP]
            cells[cell.UNSYNCED] = 0
        # Whatever gets a later stamp after a crash must get one that was not used before it.
        replace(path, EPOCH, Epoch(epoch.boot, epoch.synced, stamp + 1).encode(), durable=True)
        with ledger as cells:
            cells[cell.STAMP] = stamp + 1
        try:
            linux.syncfs(descriptor)
        except OSError:
            on_lost(epoch.synced + 1)
            raise
        replace(path, EPOCH, Epoch(epoch.boot, stamp, stamp + 1).encode(), durable=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _empty(path: Path) -> None:
    for directory in (path / PARTIAL, path / RETIRED, path / TEMPORARY, *(path / OBJECTS).iterdir()):
        for found in directory.iterdir():
            found.unlink()
