"""How whole objects are written: into a file of their own, which gets its name when it is complete.

Room is made and counted before anything is written. The file in `tmp/` says in its name what it counts, and is locked
by its writer, so that what a writer that was killed has left can be told, counted and removed by anybody.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from pagepool import linux
from pagepool.errors import DiskFullError
from pagepool.pool import epoch
from pagepool.pool import ledger as cell
from pagepool.pool import log as event
from pagepool.pool.files import READ, hold
from pagepool.pool.layout import cost, object_name
from pagepool.pool.verity import seal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool.pool.evict import Evictor
    from pagepool.pool.ledger import Ledger
    from pagepool.pool.log import Log


class Writer:
    """Writes objects. Thread-safe.

    Args:
        path: the pool's directory.
        ledger: its account.
        evictor: makes room.
        log: gets to know what comes.
        directories: descriptors of `objects/` and `tmp/`; they stay the caller's.
        on_published: called after each object got its name, without the account's lock.
        durable: whether objects are stamped.
        sealing: whether objects are sealed with fs-verity.
    """

    def __init__(
        self,
        path: Path,
        ledger: Ledger,
        evictor: Evictor,
        log: Log,
        directories: tuple[int, int],
        on_published: Callable[[], object],
        *,
        durable: bool,
        sealing: bool,
    ) -> None:
        self._path = path
        self._ledger = ledger
        self._evictor = evictor
        self._log = log
        self._objects, self.directory = directories
        self._on_published = on_published
        self._durable = durable
        self._sealing = sealing
        self.renew()

    def renew(self) -> None:
        """Take new names for files: in a child, after a fork."""
        self._token = os.urandom(8).hex()
        self._number = 0

    def reserve(self, size: int) -> tuple[int, str] | None:
        """Begin a file of so many bytes: its descriptor and name; None if there is no room."""
        charged = cost(size)
        with self._ledger:
            if not self._evictor.make_room(charged):
                return None
            self._number += 1
            name = f"{self._token}.{self._number}.{charged}"
            try:
                descriptor = self._create(name, charged)
            except OSError as error:
                raise self._full(error) from error
            hold(descriptor)
            self._evictor.count(cell.TEMPORARY_BYTES, charged)
        return descriptor, name

    def write(self, digest: bytes, plain: memoryview, descriptor: int, name: str) -> int | None:
        """Write a file that was reserved, and publish it.

        Returns:
            a descriptor of the object, open for reading and held; None if it got its name from somebody else meanwhile.

        Raises:
            DiskFullError: the disk is full. Nothing is left.
        """
        size, reading = len(plain), -1
        try:
            try:
                self._write_all(descriptor, plain)
                os.fchmod(descriptor, 0o444)
                # What is handed on must not be open for writing.
                reading = os.open(name, READ, dir_fd=self.directory)
                hold(reading)
            finally:
                os.close(descriptor)
            if self._sealing:
                seal(reading)
            if self._publish(digest, size, name, reading):
                return reading
        except BaseException as error:
            self._give_up(name, size, reading)
            if isinstance(error, OSError):
                raise self._full(error) from error
            raise
        self._give_up(name, size, reading)
        return None

    def _create(self, name: str, charged: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(name, flags, 0o444, dir_fd=self.directory)
        except OSError as error:
            if not linux.is_full(error) or not self._evictor.free_disk(charged):
                raise
        return os.open(name, flags, 0o444, dir_fd=self.directory)

    def _write_all(self, descriptor: int, plain: memoryview) -> None:
        """Write a file; if the disk is full, once more after others were evicted."""
        try:
            _write(descriptor, plain)
        except OSError as error:
            if not linux.is_full(error):
                raise
            with self._ledger:
                freed = self._evictor.free_disk(cost(len(plain)))
            if not freed:
                raise
            _write(descriptor, plain)

    def _publish(self, digest: bytes, size: int, name: str, descriptor: int) -> bool:
        """Give a written file its name. False if another one got it meanwhile."""
        target, charged = object_name(digest), cost(size)
        with self._ledger as cells:
            if _exists(target, self._objects):
                return False
            if self._durable:
                os.utime(descriptor, ns=epoch.stamp_ns(cells))
                cells[cell.UNSYNCED] += charged
            os.rename(name, target, src_dir_fd=self.directory, dst_dir_fd=self._objects)
            cells[cell.TEMPORARY_BYTES] -= charged
            cells[cell.OBJECT_BYTES] += charged
            cells[cell.OBJECTS] += 1
            cells[cell.CONTENT] += size
            self._log.append(event.OBJECT, digest, charged)
        self._on_published()
        return True

    def _give_up(self, name: str, size: int, descriptor: int) -> None:
        if descriptor >= 0:
            os.close(descriptor)
        with self._ledger, contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.directory)
            self._evictor.uncount(cell.TEMPORARY_BYTES, cost(size))

    def _full(self, error: OSError) -> Exception:
        return DiskFullError(f"{self._path}: {linux.words_of(error, self._path)}") if linux.is_full(error) else error


def _write(descriptor: int, plain: memoryview) -> None:
    """Write all of a file, from its beginning."""
    done = 0
    while done < len(plain):
        done += os.pwrite(descriptor, plain[done:], done)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
