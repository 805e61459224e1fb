"""How objects that are being filled begin and end: opening, counting, publishing, giving up.

The part of a pool that `pagepool.pool.partial` calls back. Everything that changes names or counters is done with the
ledger's lock held, so it happens once, whichever of several fillers is first.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pagepool import linux
from pagepool.errors import CorruptError, DiskFullError, PoolFullError
from pagepool.pool import epoch
from pagepool.pool import ledger as cell
from pagepool.pool import log as event
from pagepool.pool.files import hold
from pagepool.pool.layout import OBJECTS, cost, object_name
from pagepool.pool.mapfile import (
    ABSENT,
    CHARGED,
    DISCARDED,
    FILLING,
    PUBLISHED,
    MapFile,
    data_path,
    extent_cost,
    map_path,
    partial_key,
    remove_partial,
)
from pagepool.pool.partial import Partial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pagepool.pool.evict import Evictor
    from pagepool.pool.files import PoolFile
    from pagepool.pool.ledger import Ledger
    from pagepool.pool.log import Log


class Filler:
    """The partial objects of a pool. Thread-safe.

    Args:
        path: the pool's directory.
        ledger: its account.
        evictor: makes room.
        log: gets to know what comes and goes.
        on_published: called after each object got its name, without the account's lock.
    """

    def __init__(
        self, path: Path, ledger: Ledger, evictor: Evictor, log: Log, on_published: Callable[[], object]
    ) -> None:
        self._path = path
        self._ledger = ledger
        self._evictor = evictor
        self._log = log
        self._on_published = on_published

    def open_whole(self, digest: bytes, extents: Sequence[bytes], whole: PoolFile) -> Partial:
        """An object that needs no filling any more, as a partial. The file is closed."""
        with whole:
            descriptor = os.dup(whole.fd)  # of the same open file: it stays held
        return Partial(self, b"", digest, extents, descriptor, None)

    def open(self, digest: bytes, size: int, extents: Sequence[bytes]) -> Partial:
        """Open or begin a partial: see `Pool.partial`."""
        key = partial_key(digest, size, extents)
        with self._ledger as cells:
            if cost(size) > cells[cell.BUDGET]:
                reason = f"object {digest.hex()} of {size} bytes is over the pool's budget of {cells[cell.BUDGET]}"
                raise PoolFullError(reason)
            try:
                found = self._find(key)
                descriptor = self._begin_anyhow(key, digest, size, len(extents)) if found is None else found
            except OSError as error:
                if not linux.is_full(error):
                    raise
                remove_partial(self._path, key)
                raise DiskFullError(f"{self._path}: {linux.words_of(error, self._path)}") from error
            try:
                hold(descriptor)
                marks = MapFile(self._path, key)
            except BaseException:
                os.close(descriptor)
                raise
        partial = Partial(self, key, digest, extents, descriptor, marks)
        try:
            self._believe(partial, marks)
            partial.finish()
        except BaseException:
            partial.close()
            raise
        return partial

    def charge_extent(self, partial: Partial, number: int, /) -> None:
        """Count an extent that is about to be written, once.

        Raises:
            PoolFullError: there is no room for it.
            DiskFullError: not even for noting that.
        """
        marks = partial.map
        with self._ledger:
            if marks is None or marks.state != FILLING or marks.marks[number] != ABSENT:
                return
            charged = extent_cost(partial.size, number)
            if not self._evictor.make_room(charged):
                raise PoolFullError(f"{self._path}: extent {number} of {partial.digest.hex()} is over its budget")
            try:
                marks.mark(number, CHARGED)
            except OSError as error:
                if not linux.is_full(error):
                    raise
                raise DiskFullError(f"{self._path}: {linux.words_of(error, self._path)}") from error
            self._evictor.count(cell.PARTIAL_BYTES, charged)
            self._log.append(event.PARTIAL, partial.key, marks.charged)

    def publish_partial(self, partial: Partial, /) -> None:
        """Give a filled and verified object its name."""
        marks, target = partial.map, self._path / OBJECTS / object_name(partial.digest)
        with self._ledger as cells:
            if marks is None or marks.state != FILLING:
                return
            if target.exists():
                self._end(partial, marks, PUBLISHED)
                return
            data, charged = data_path(self._path, partial.key), cost(partial.size)
            data.chmod(0o444)
            os.utime(data, ns=epoch.stamp_ns(cells))
            data.rename(target)
            map_path(self._path, partial.key).unlink()
            marks.state = PUBLISHED
            self._evictor.uncount(cell.PARTIAL_BYTES, charged)
            self._evictor.count(cell.OBJECT_BYTES, charged)
            cells[cell.UNSYNCED] += charged
            cells[cell.PARTIALS] -= 1
            cells[cell.OBJECTS] += 1
            cells[cell.CONTENT] += partial.size
            self._log.append(event.GONE, partial.key)
            self._log.append(event.OBJECT, partial.digest, charged)
        self._on_published()

    def discard_partial(self, partial: Partial, /) -> None:
        """Give an object up; what was filled counts until nobody has it open."""
        with self._ledger:
            if partial.map is not None and partial.map.state == FILLING:
                self._end(partial, partial.map, DISCARDED)

    def free_disk(self, size: int, /) -> bool:
        """Evict, because the disk is full. Whether something went."""
        with self._ledger:
            return self._evictor.free_disk(cost(size))

    def has_named(self, partial: Partial, inode: int, /) -> bool:
        """Whether a partial's file has a name, its own or that of the whole object."""
        for path in (self._path / OBJECTS / object_name(partial.digest), data_path(self._path, partial.key)):
            with suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    return True
        return False

    def _end(self, partial: Partial, marks: MapFile, state: int) -> None:
        charged = marks.charged
        if not data_path(self._path, partial.key).exists():
            # Another one was killed when it had published it, and the account was made anew since.
            marks.state = state
            return
        self._evictor.retire(data_path(self._path, partial.key), charged)
        remove_partial(self._path, partial.key)
        marks.state = state
        self._evictor.uncount(cell.PARTIAL_BYTES, charged)
        self._ledger.cells[cell.PARTIALS] -= 1
        self._log.append(event.GONE, partial.key)

    def _find(self, key: bytes) -> int | None:
        """The descriptor of a partial that was begun, by whomever."""
        if MapFile.read_charged(self._path, key) is None:
            return None
        self._log.append_accesses((key,))
        path, flags = data_path(self._path, key), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags)
        except PermissionError:  # its filler was killed when it was about to publish it
            path.chmod(0o600)
            return os.open(path, flags)

    def _begin_anyhow(self, key: bytes, digest: bytes, size: int, count: int) -> int:
        """Begin a partial; if the disk is full, once more after others were evicted."""
        try:
            return self._begin(key, digest, size, count)
        except OSError as error:
            if not linux.is_full(error) or not self._evictor.free_disk(0):
                raise
        return self._begin(key, digest, size, count)

    def _begin(self, key: bytes, digest: bytes, size: int, count: int) -> int:
        with suppress(FileNotFoundError):
            data_path(self._path, key).stat()
            self._ledger.forget()  # it was counted as something, and is damaged
        remove_partial(self._path, key)
        MapFile.create(self._path, key, digest, size, count, linux.boot_id())
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(data_path(self._path, key), flags, 0o600)
        try:
            os.ftruncate(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self._ledger.cells[cell.PARTIALS] += 1
        self._log.append(event.PARTIAL, key)
        return descriptor

    def _believe(self, partial: Partial, marks: MapFile) -> None:
        """Verify what was filled in another boot: the map may have reached the disk, and the data not."""
        boot = linux.boot_id()
        if marks.boot == boot:
            return
        try:
            descriptor = os.open(map_path(self._path, partial.key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if marks.state == PUBLISHED:
                return
            raise CorruptError("object", partial.digest.hex(), "it was given up while it was opened") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if marks.boot != boot:
                partial.verify()
                marks.boot = boot
        finally:
            os.close(descriptor)
