"""A pool: one file for each unique content, shared by every process that reads it.

Owns the directory that docs/format/pool.md describes. What holds, whatever is killed and whenever:

- A name in `objects/` is whole, was compared with its digest before it got the name, is read-only, and never changes
  its content. Wrong bytes found at rest are an error or a miss; see `pagepool.pool.scrub`, `pagepool.pool.epoch`.
- The bytes of all files of the pool, counted in pages, stay within the budget: whole objects, present extents of
  partial ones, files being written, and retired files that somebody still holds. (Maps, logs and directories are not
  counted.) Room is made before anything is written.
- Removing hurts nobody: whoever has an object open or mapped goes on reading the same bytes.

Any number of processes and threads use a pool at the same time, without a daemon. Reading takes no lock; publishing and
evicting take the ledger's for microseconds. A process that is killed leaves at most files in `tmp/`, which the next one
to open the pool or to need room removes, and partial objects, which the next filler goes on with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections import deque
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError, StoreFullError
from pagepool.pool import epoch, linux
from pagepool.pool import ledger as cell
from pagepool.pool import log as event
from pagepool.pool.evict import Evictor
from pagepool.pool.files import READ, PoolFile, hash_file, hold, open_object
from pagepool.pool.filling import Filler
from pagepool.pool.layout import OBJECTS, TEMPORARY, cost, object_name, open_format
from pagepool.pool.ledger import Ledger
from pagepool.pool.log import Log
from pagepool.pool.partial import Partial, check_extents
from pagepool.pool.reader import ReadOnlyPool
from pagepool.pool.stats import PoolStats, inspect_objects, make_stats

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Buffer

log = logging.getLogger("pagepool.pool")

SYNC_BYTES = 256 << 20
"""A durable pool is synced when so much was published since it last was, by whoever publishes."""
_FLUSH = 64  # hits and misses that a process keeps to itself
_MOST_KEPT = 4096


class Pool:
    """A pool that this process may write to. Thread-safe; `close` is for one thread.

    Opened by `open`; `attach` is for other people's pools. An open object, and an open partial one, stay good when the
    pool is closed. After a fork the child may go on using the pool.
    """

    def __init__(self, path: Path, *, identity: str, durable: bool, budget: int) -> None:
        self.id = identity
        self.path = path
        self.durable = durable
        self._seen: deque[bytes | None] = deque(maxlen=_MOST_KEPT)
        self._token = os.urandom(8).hex()
        self._number = 0
        self._closed = False
        with contextlib.ExitStack() as undo:
            self._objects, self._temporary = (_open_directory(path / name, undo) for name in (OBJECTS, TEMPORARY))
            self._ledger = Ledger(path, self._recover)
            undo.callback(self._ledger.close)
            self._log = Log(path)
            undo.callback(self._log.close)
            self._evictor = Evictor(path, self._ledger, self._log)
            self._filler = Filler(path, self._ledger, self._evictor, self._log)
            self._begin(budget)
            undo.pop_all()
        _pools.add(self)

    @classmethod
    def open(cls, path: Path, *, budget: int, durable: bool | None = None) -> Pool:
        """Open a pool, or make one. Blocks while another process evicts, and for a walk of it after a boot or a kill.

        Args:
            path: its directory, made if it is not there; on a local file system.
            budget: bytes, of all its processes together: the last one to open it decides.
            durable: of a new pool, whether it outlives a boot; None: unless it is on tmpfs or ramfs.

        Raises:
            StoreFormatError: the directory is something else, or a pool of another version.
            OSError: it cannot be made or read.
        """
        found = open_format(path, durable)
        return cls(path, identity=found.id, durable=found.durable, budget=budget)

    @classmethod
    def attach(cls, path: Path, pool_id: str) -> ReadOnlyPool:
        """See somebody else's pool: `ReadOnlyPool.attach`."""
        return ReadOnlyPool.attach(path, pool_id)

    @property
    def budget(self) -> int:
        """Bytes that all files of the pool may take together, in whole pages."""
        return self._ledger.cells[cell.BUDGET]

    def get(self, digest: bytes, /) -> PoolFile | None:
        """Open a whole object: microseconds, but for one that is suspect after a boot, which is hashed first.

        Args:
            digest: BLAKE3, 32 bytes.

        Returns:
            the object, held until it is closed; None if it is not here. Counts as a hit or a miss.

        Raises:
            OSError: it cannot be opened (too many open files).
        """
        file = self._open(digest)
        seen = self._seen
        seen.append(None if file is None else digest)
        if len(seen) >= _FLUSH:
            self._ledger.attempt(self._flush)
        return file

    def put(self, digest: bytes, data: Buffer, /) -> PoolFile | None:
        """Take an object in. Blocks on the disk, and while others are evicted for it.

        Args:
            digest: BLAKE3 of the data.
            data: the whole object.

        Returns:
            the object, held until it is closed; None if it cannot be kept within the budget.

        Raises:
            CorruptError: the data does not have that digest.
            StoreFullError: the disk is full.
        """
        plain = memoryview(data).cast("B")
        got = blake3_raw(plain)
        if got != digest:
            raise CorruptError("object", digest.hex(), f"the {len(plain)} bytes to be kept are {got.hex()}")
        present = self._open(digest)
        if present is not None:
            return present
        temporary = self._reserve(len(plain))
        return None if temporary is None else self._write(digest, plain, *temporary)

    def partial(self, digest: bytes, size: int, extents: Sequence[bytes], /) -> Partial:
        """Open an object to be filled, extent by extent; go on where others left off. Blocks shortly.

        What was filled before an unclean boot is compared with its names first, and a whole object that its filler
        could not publish any more is hashed: that takes as long as reading it.

        Args:
            digest: BLAKE3 of the object.
            size: its bytes, not 0.
            extents: BLAKE3 of its extents, in order.

        Raises:
            InvalidError: so many extents do not make an object of that size.
            CorruptError: all extents are there, and do not make the object. They have been given up.
            StoreFullError: it could never fit the budget, or the disk is full.
        """
        check_extents(digest, size, extents)
        whole = self._open(digest)
        if whole is not None:
            return self._filler.open_whole(digest, extents, whole)
        return self._filler.open(digest, size, extents)

    def remove(self, digest: bytes, /) -> bool:
        """Remove an object, whoever holds it: they go on reading it, and it counts until they are done.

        Returns:
            whether it was there.
        """
        with self._ledger:
            return self._evictor.drop_object(digest)

    def sync(self) -> None:
        """Make everything durable that was published so far, in one go. Blocks on the disk."""
        if self.durable:
            epoch.sync(self.path, self._ledger)

    def stats(self, *, inspect: bool = False) -> PoolStats:
        """Count.

        Args:
            inspect: also what is held and what is in memory, which opens every object: a few microseconds each.
        """
        with self._ledger as cells:
            self._flush(cells)
            self._evictor.sweep()
            counted = tuple(cells[: cell.UNSYNCED + 1])
        if not inspect:
            return make_stats(counted, None, None)
        digests = (digest for digest, _ in self._evictor.walk())
        return make_stats(counted, *inspect_objects(self._objects, digests))

    def close(self) -> None:
        """Let go of the pool. Nothing is waited for: what is not synced is hashed once more after the next boot."""
        if self._closed:
            return
        self._closed = True
        _pools.discard(self)
        with self._ledger as cells:
            self._flush(cells)
        os.close(self._objects)
        os.close(self._temporary)
        self._log.close()
        self._ledger.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, budget: int) -> None:
        with self._ledger as cells:
            if epoch.begin(self.path, cells, self._evictor, durable=self.durable):
                self._ledger.forget()
            cells[cell.BUDGET] = budget
        with self._ledger:
            self._evictor.sweep()
            self._evictor.make_room(0)

    def _recover(self) -> None:
        log.info("counting the pool at %s", self.path)
        self._evictor.recount()

    def _flush(self, cells: memoryview[int]) -> None:
        """Tell the others what was read here, with the ledger's lock held."""
        names: list[bytes] = []
        with contextlib.suppress(IndexError):
            while True:
                name = self._seen.popleft()
                if name is None:
                    cells[cell.MISSES] += 1
                else:
                    names.append(name)
        cells[cell.HITS] += len(names)
        if names:
            self._log.append_accesses(names)

    def _open(self, digest: bytes) -> PoolFile | None:
        found = open_object(self._objects, digest)
        if found is None:
            return None
        descriptor, status, held = found
        try:
            if not held:
                # An evictor looks at it just now, and has the ledger meanwhile; or somebody is hostile.
                with self._ledger:
                    hold(descriptor)
                status = os.fstat(descriptor)
            right = bool(status.st_nlink)
            if right and self.durable and status.st_mtime_ns not in epoch.TRUSTED_NS:
                right = self._check_suspect(digest, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if not right:
            os.close(descriptor)
            return None
        return PoolFile(descriptor, status.st_size, digest, self._open)

    def _check_suspect(self, digest: bytes, descriptor: int) -> bool:
        """Hash an object that may not have reached the disk before the machine lost its power."""
        if hash_file(descriptor) == digest:
            with self._ledger as cells:
                os.utime(descriptor, ns=epoch.stamp_ns(cells))
            return True
        log.warning("object %s was damaged when the machine went down; it is removed", digest.hex())
        self.remove(digest)
        return False

    def _reserve(self, size: int) -> tuple[int, str] | None:
        """Begin a file of so many bytes: its descriptor and name; None if there is no room."""
        charged = cost(size)
        with self._ledger:
            if not self._evictor.make_room(charged):
                return None
            self._number += 1
            name = f"{self._token}.{self._number}.{charged}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                descriptor = os.open(name, flags, 0o444, dir_fd=self._temporary)
            except OSError as error:
                raise self._full(error) from error
            hold(descriptor)
            self._evictor.count(cell.TEMPORARY_BYTES, charged)
        return descriptor, name

    def _write(self, digest: bytes, plain: memoryview, descriptor: int, name: str) -> PoolFile | None:
        size, reading = len(plain), -1
        try:
            try:
                while plain:
                    plain = plain[os.write(descriptor, plain) :]
                os.fchmod(descriptor, 0o444)
                # What is handed on must not be open for writing.
                reading = os.open(name, READ, dir_fd=self._temporary)
                hold(reading)
            finally:
                os.close(descriptor)
            if self._publish(digest, size, name, reading):
                return PoolFile(reading, size, digest, self._open)
        except BaseException as error:
            self._give_up(name, size, reading)
            if isinstance(error, OSError):
                raise self._full(error) from error
            raise
        self._give_up(name, size, reading)
        return self._open(digest)

    def _publish(self, digest: bytes, size: int, name: str, descriptor: int) -> bool:
        """Give a written file its name. False if another one got it meanwhile."""
        target, charged = object_name(digest), cost(size)
        with self._ledger as cells:
            if _exists(target, self._objects):
                return False
            if self.durable:
                os.utime(descriptor, ns=epoch.stamp_ns(cells))
                cells[cell.UNSYNCED] += charged
            os.rename(name, target, src_dir_fd=self._temporary, dst_dir_fd=self._objects)
            cells[cell.TEMPORARY_BYTES] -= charged
            cells[cell.OBJECT_BYTES] += charged
            cells[cell.OBJECTS] += 1
            cells[cell.CONTENT] += size
            self._log.append(event.OBJECT, digest, charged)
            behind = cells[cell.UNSYNCED] > SYNC_BYTES
        if behind:
            epoch.sync(self.path, self._ledger, wait=False)
        return True

    def _give_up(self, name: str, size: int, descriptor: int) -> None:
        if descriptor >= 0:
            os.close(descriptor)
        with self._ledger, contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._temporary)
            self._evictor.uncount(cell.TEMPORARY_BYTES, cost(size))

    def _full(self, error: OSError) -> Exception:
        return StoreFullError(f"{self.path}: {error.strerror}") if linux.is_full(error) else error

    def _after_fork(self) -> None:
        self._ledger.after_fork()
        self._seen.clear()
        self._token = os.urandom(8).hex()


def _open_directory(path: Path, undo: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, descriptor)
    return descriptor


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)
