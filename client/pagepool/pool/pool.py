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
import itertools
import logging
import os
import weakref
from collections import deque
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError, InvalidError
from pagepool.pool import epoch
from pagepool.pool import ledger as cell
from pagepool.pool.custody import NoCustody
from pagepool.pool.evict import Evictor
from pagepool.pool.files import PoolFile, hash_file, hold, is_unreadable, open_object
from pagepool.pool.filling import Filler
from pagepool.pool.layout import OBJECTS, TEMPORARY, open_format
from pagepool.pool.ledger import Ledger
from pagepool.pool.log import Log
from pagepool.pool.partial import Partial, check_extents
from pagepool.pool.reader import ReadOnlyPool
from pagepool.pool.scrub import Scrubber
from pagepool.pool.stats import PoolStats, inspect_objects, make_stats
from pagepool.pool.verity import can_seal, protection
from pagepool.pool.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Buffer

log = logging.getLogger("pagepool.pool")

SYNC_BYTES = 256 << 20
"""A durable pool is synced when so much was published since it last was, by whoever publishes."""
_FLUSH = 64  # hits and misses that a process keeps to itself
_MOST_KEPT = 4096
_BATCH = 256  # objects that are looked at while the ledger is locked


class Pool:
    """A pool that this process may write to. Thread-safe; `close` is for one thread.

    Opened by `open`; `attach` is for other people's pools. When it is closed, objects that are open stay good, and
    partial ones can still be read. After a fork the child may go on using the pool; what the parent had open at that
    moment is held until both have closed it.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: str,
        durable: bool,
        budget: int | None,
        initial: int = 0,
        reserve: int | None = None,
        custody: NoCustody | None = None,
    ) -> None:
        self.id = identity
        self.path = path
        self.durable = durable
        self._custody = custody or NoCustody()
        self._seen: deque[bytes | None] = deque(maxlen=_MOST_KEPT)
        self._closed = False
        with contextlib.ExitStack() as undo:
            self._objects, self._temporary = (_open_directory(path / name, undo) for name in (OBJECTS, TEMPORARY))
            self._ledger = Ledger(path, self._recover)
            undo.callback(self._ledger.close)
            self._log = Log(path)
            undo.callback(self._log.close)
            self._custody.attach(path)
            undo.callback(self._custody.close)
            self._evictor = Evictor(path, self._ledger, self._log, self._flush, self._custody)
            parts = (path, self._ledger, self._evictor, self._log)
            self._filler = Filler(*parts, self._sync_if_due)
            sealing = can_seal(self._temporary)
            directories = self._objects, self._temporary
            self._writer = Writer(*parts, directories, self._sync_if_due, durable=durable, sealing=sealing)
            self.protection = protection(path, sealed=sealing)
            self._begin(budget, initial, reserve)
            undo.pop_all()
        _pools.add(self)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        budget: int | None,
        initial: int = 0,
        durable: bool | None = None,
        reserve: int | None = None,
        custody: NoCustody | None = None,
    ) -> Pool:
        """Open a pool, or make one. Blocks while another process evicts, and for a walk of it after a boot or a kill.

        Args:
            path: its directory, made if it is not there; on a local file system.
            budget: bytes, of all its processes together: the last one to open it with one decides; None: as it was.
            initial: what it becomes without one where none was ever given.
            durable: of a new pool, whether it outlives a boot; None: unless it is on tmpfs or ramfs.
            reserve: bytes of the file system that are left free, whatever the budget; None: as it was, 0 at first.
            custody: who else has objects; attached to this pool, and closed with it.

        Raises:
            InvalidError: a budget or reserve below 0.
            StoreFormatError: the directory is something else, or a pool of another version.
            PermissionError: it is another user's.
            OSError: it cannot be made or read.
        """
        if (initial if budget is None else budget) < 0:
            raise InvalidError(budget, "a budget is not below 0")
        if reserve is not None and reserve < 0:
            raise InvalidError(reserve, "a reserve is not below 0")
        path = path.absolute()  # wherever the process goes
        found = open_format(path, durable)
        return cls(
            path,
            identity=found.id,
            durable=found.durable,
            budget=budget,
            initial=initial,
            reserve=reserve,
            custody=custody,
        )

    @classmethod
    def attach(cls, path: Path, pool_id: str) -> ReadOnlyPool:
        """See somebody else's pool: `ReadOnlyPool.attach`."""
        return ReadOnlyPool.attach(path, pool_id)

    @property
    def budget(self) -> int:
        """Bytes that all files of the pool may take together, in whole pages."""
        return self._ledger.seen(cell.BUDGET)

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
        reserved = self._writer.reserve(len(plain))
        if reserved is None:
            return None
        descriptor = self._writer.write(digest, plain, *reserved)
        return self._open(digest) if descriptor is None else PoolFile(descriptor, len(plain), digest, self._open)

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

    def verify(self, digest: bytes, /) -> bool:
        """Hash an object if it is suspect; it is removed if it is wrong. Is no use of it.

        Returns:
            whether it is here, and may be served.

        Raises:
            OSError: it cannot be opened.
        """
        with self._open(digest) or contextlib.nullcontext() as file:
            return file is not None

    def remove(self, digest: bytes, /) -> bool:
        """Remove an object, whoever holds it: they go on reading it, and it counts until they are done.

        Its second name, under which overlays look for what was just brought (`pagepool.pool.custody`), goes first. An
        overlay that has the file open, or remembers it, goes on with what it has.

        Returns:
            whether it was there.
        """
        with self._ledger:
            return self._evictor.drop_object(digest)

    def clear(self) -> None:
        """Remove all objects, and what there is of others that nobody has open."""
        for digest in list(self.digests()):
            self.remove(digest)
        with self._ledger:
            self._evictor.drop_partials()

    def note_use(self, digests: Iterable[bytes]) -> None:
        """Say that objects were used in ways that the pool does not see: mapped elsewhere, or by a kernel mount."""
        with self._ledger:
            self._log.append_accesses(digests)

    def digests(self) -> Iterator[bytes]:
        """The names of all whole objects, in order. Those that come or go meanwhile may be missed."""
        return (digest for digest, _ in self._evictor.walk())

    def sync(self) -> None:
        """Make everything durable that was published so far, in one go. Blocks on the disk.

        Raises:
            OSError: the disk did not take all of it. What it did not take has been removed; but of a pool that overlays
                look into the owner does that, and has it fetched again.
        """
        if self.durable:
            epoch.sync(self.path, self._ledger, self._check_lost)

    def published(self) -> tuple[int, int]:
        """The stamp that an object gets which is published now, and bytes that were published since the last `sync`:
        what changes whenever something is published."""
        return self._ledger.seen(cell.STAMP), self._ledger.seen(cell.UNSYNCED)

    def first_unsynced(self) -> int:
        """The first stamp of objects that no `sync` has made durable."""
        known = epoch.Epoch.read(self.path)
        return 0 if known is None else known.synced + 1

    def stats(self, *, inspect: bool = False) -> PoolStats:
        """Count.

        Args:
            inspect: also what is held and what is in memory, which opens every object: about ten microseconds each.
        """
        told = None
        with contextlib.suppress(OSError), self._ledger as cells:
            self._flush(cells)
            self._evictor.sweep()
            told = tuple(cells), self._evictor.effective_budget()
        # On a disk that takes nothing it is told all the same.
        counted, effective = told or (tuple(self._ledger.cells), self._evictor.effective_budget())
        if not inspect:
            return make_stats(counted, self.protection, None, None, effective)
        held = in_memory = 0
        digests = self.digests()
        while batch := list(itertools.islice(digests, _BATCH)):
            # Looking whether an object is held locks it for a moment: those who open it wait for the ledger then.
            with self._ledger:
                more = inspect_objects(self._objects, batch)
            held, in_memory = held + more[0], in_memory + more[1]
        return make_stats(counted, self.protection, held, in_memory, effective)

    def close(self) -> None:
        """Let go of the pool. Nothing is waited for: what is not synced is hashed once more after the next boot."""
        if self._closed:
            return
        self._closed = True
        _pools.discard(self)
        with contextlib.suppress(OSError), self._ledger as cells:
            self._flush(cells)
        os.close(self._objects)
        os.close(self._temporary)
        self._objects = self._temporary = -1  # the numbers may soon be those of other files
        self._log.close()
        self._custody.close()
        self._ledger.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, budget: int | None, initial: int, reserve: int | None) -> None:
        with self._ledger as cells:
            if epoch.begin(self.path, cells, self._evictor, durable=self.durable):
                self._ledger.forget()
            cells[cell.BUDGET] = (cells[cell.BUDGET] or initial) if budget is None else budget
            cells[cell.RESERVE] = cells[cell.RESERVE] if reserve is None else reserve
        with self._ledger:
            self._evictor.sweep()
            self._evictor.make_room(0)

    def _recover(self) -> None:
        log.debug("counting the pool at %s", self.path)
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
                # An evictor looks at it just now, and has the ledger meanwhile; or somebody is hostile. It can be read
                # without, also on a disk that takes nothing.
                with contextlib.suppress(OSError), self._ledger:
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
        try:
            right = hash_file(descriptor) == digest
        except OSError as error:
            if not is_unreadable(error):
                raise
            right = False
        if right:
            with self._ledger as cells:
                os.utime(descriptor, ns=epoch.stamp_ns(cells))
            return True
        log.warning("object %s was damaged when the machine went down; it is removed", digest.hex())
        self.remove(digest)
        return False

    def _sync_if_due(self) -> None:
        if self.durable and self._ledger.seen(cell.UNSYNCED) > SYNC_BYTES:
            epoch.sync(self.path, self._ledger, self._check_lost, wait=False)

    def _check_lost(self, stamp: int) -> None:
        """Compare with their names, as the disk has them, the objects that no sync has covered."""
        if not self._custody.careful:
            report = Scrubber(self).check_since(stamp)
            log.error("the disk did not take what was written to %s: %d objects", self.path, len(report.damaged))

    def _after_fork(self) -> None:
        self._ledger.after_fork()
        self._seen.clear()
        self._writer.renew()


def _open_directory(path: Path, undo: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, descriptor)
    return descriptor


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)
