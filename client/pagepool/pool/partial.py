"""Objects that are being filled, extent by extent, by any number of threads and processes at the same time.

A partial is a sparse file of the object's size and a map of the extents that are there. An extent is compared with its
name before it is written; one of zeros is left a hole, which counts as what it would take. Filling is idempotent, so
two fillers of the same one need no lock between them. When the last one has come the whole object is hashed, since a
tree could lie about which extents make an object: it gets its name among the whole ones only if it deserves it.
Otherwise the partial goes, and everyone who has it open is told.

The file is held (`pagepool.pool.files`) while it is open here or views of it exist: four descriptors, of which closing
gives back one, the last view another, and the end of this object those of the map. A filler that dies leaves what it
had written, for the next one; a partial that nobody has open can be evicted like a whole object.

Two fillers may write the same extent, and the slower one when the object has its name already: the same bytes over the
same bytes. That only spoils the object's stamp (`pagepool.pool.epoch`), so it is hashed once more.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError, InvalidError, RangeInvalidError, StoreFullError
from pagepool.extents import EXTENT_SIZE, ZERO_EXTENT
from pagepool.linux import is_full
from pagepool.pool.files import map_file
from pagepool.pool.mapfile import ABSENT, CHARGED, DISCARDED, PRESENT, PUBLISHED, MapFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Protocol

    from typing_extensions import Buffer

    class Keeper(Protocol):
        """What a partial asks of its pool."""

        def charge_extent(self, partial: Partial, number: int, /) -> None: ...
        def publish_partial(self, partial: Partial, /) -> None: ...
        def discard_partial(self, partial: Partial, /) -> None: ...
        def free_disk(self, size: int, /) -> bool: ...
        def has_named(self, partial: Partial, inode: int, /) -> bool: ...


def check_extents(digest: bytes, size: int, extents: Sequence[bytes]) -> None:
    """Raise InvalidError unless a list of extents can be that of an object of this size."""
    if size <= 0 or len(extents) != -(-size // EXTENT_SIZE) or any(len(extent) != 32 for extent in extents):
        raise InvalidError(digest.hex(), f"{len(extents)} extents do not make an object of {size} bytes")


class Partial:
    """An object that is being filled, or was when this was opened. Thread-safe; `close` is for one.

    Args:
        keeper: the pool it belongs to.
        key: its name in the pool.
        digest: of the object.
        extents: the digests of its extents, in order.
        descriptor: of its bytes, held; owned by this object from now on, which closes it where it cannot be mapped.
        marks: its map; None if the object is whole and the descriptor is that of the object.

    Raises:
        OSError: it cannot be mapped.
    """

    def __init__(
        self,
        keeper: Keeper,
        key: bytes,
        digest: bytes,
        extents: Sequence[bytes],
        descriptor: int,
        marks: MapFile | None,
    ) -> None:
        self._keeper = keeper
        self.key = key
        self.digest = digest
        self.size = os.fstat(descriptor).st_size
        self.map = marks
        self.descriptor = descriptor
        self._extents = extents
        self._marks = memoryview(bytes([PRESENT]) * len(extents)) if marks is None else marks.marks
        self._lock = threading.Lock()
        self._users, self._closed = 0, False
        try:
            self._view: memoryview | None = map_file(descriptor, self.size)
        except BaseException:
            self.close()
            raise

    def has(self, number: int, /) -> bool:
        """Whether an extent is there."""
        return self._marks[number] == PRESENT

    def missing(self, first: int, end: int, /) -> list[int]:
        """The numbers in `[first, end)` of the extents that are not there."""
        marks = bytes(self._marks[first:end])
        if marks.count(PRESENT) == len(marks):
            return []
        return [number for number, mark in enumerate(marks, first) if mark != PRESENT]

    def write(self, number: int, data: Buffer, /) -> bool:
        """Take an extent in. Blocks on the disk, and while others are evicted for it.

        Args:
            number: which, from 0.
            data: all of its bytes.

        Returns:
            whether the object is whole now, and has its name in the pool.

        Raises:
            CorruptError: the bytes are not the extent, or more or fewer than it has in the object, or the extents, all
                there, do not make the object: then it has been given up.
            StoreFullError: it does not fit the budget or the disk. What was there stays.
        """
        plain = memoryview(data).cast("B")
        got = blake3_raw(plain)
        if got != self._extents[number]:
            reason = f"extent {number} should be {self._extents[number].hex()}, and is {got.hex()}"
            raise CorruptError("object", self.digest.hex(), f"{reason} ({len(plain)} bytes)")
        # The list may lie: what goes beyond its place would make the file longer than the object that is hashed.
        if len(plain) != (size := min(EXTENT_SIZE, self.size - number * EXTENT_SIZE)):
            reason = f"extent {number} should have {size} bytes, and has {len(plain)}"
            raise CorruptError("object", self.digest.hex(), reason)
        if (mark := self._marks[number]) != PRESENT:
            self._check_state()
            self._keeper.charge_extent(self, number)
            # Nobody has written where nothing was counted: there the file is a hole, and reads as zeros.
            if mark != ABSENT or got != ZERO_EXTENT:
                self._write(number, plain)
            if self.map is not None:
                self.map.mark(number, PRESENT)
        return self.finish()

    def finish(self) -> bool:
        """Publish the object if all of it is there; harmless if it is published. Hashes all of it.

        Returns:
            whether it is whole.

        Raises:
            CorruptError: it is not what its digest says. It has been given up.
        """
        if self.map is None or self.map.state == PUBLISHED:
            return True
        if not self.map.whole:
            return False
        self._check_state()
        got = blake3_raw(self.view(0, self.size))
        if got != self.digest:
            self._keeper.discard_partial(self)
            raise CorruptError("object", self.digest.hex(), f"its {len(self._extents)} extents make {got.hex()}")
        self._keeper.publish_partial(self)
        return True

    def is_current(self) -> bool:
        """Whether it is still in the pool, being filled or whole."""
        with self._using() as descriptor:
            return self._keeper.has_named(self, os.fstat(descriptor).st_ino)

    def discard(self) -> None:
        """Give the object up: what was filled goes, for everybody. It counts until nobody has it open."""
        if self.map is not None:
            self._keeper.discard_partial(self)

    def view(self, offset: int, size: int, /) -> memoryview:
        """Bytes of the object whose extents are there, as a read-only view that stays valid after `close`.

        Raises:
            RangeInvalidError: they are outside of the object, or one of their extents is not there.
            ValueError: it was closed.
        """
        view = self._view
        if view is None:
            raise ValueError("the partial object was closed")
        end = offset + size
        if not 0 <= offset <= end <= self.size:
            raise RangeInvalidError((offset, end), f"the object has {self.size} bytes")
        if absent := self.missing(offset // EXTENT_SIZE, -(-end // EXTENT_SIZE)):
            raise RangeInvalidError((offset, end), f"extent {absent[0]} is not there")
        return view[offset:end]

    def verify(self) -> int:
        """Compare every extent that is said to be there with its name; those that are wrong become absent.

        Returns:
            how many were wrong.
        """
        wrong = 0
        with self._using() as descriptor:
            for number, mark in enumerate(bytes(self._marks)):
                if mark == PRESENT and self.map is not None:
                    # Read, not mapped: a disk that cannot read it is an error that can be caught.
                    try:
                        data = os.pread(descriptor, EXTENT_SIZE, number * EXTENT_SIZE)
                    except OSError:
                        data = b""
                    if blake3_raw(data) != self._extents[number]:
                        self.map.mark(number, CHARGED)
                        wrong += 1
        return wrong

    def close(self) -> None:
        """Let go of it; what was filled stays for others. Writes that are under way in other threads are finished."""
        with self._lock:
            self._view, self._closed = None, True
            self._release_unused()

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) is False:
            self.close()

    @contextmanager
    def _using(self) -> Iterator[int]:
        """The descriptor, which is not closed meanwhile: its number could by then be that of another file."""
        with self._lock:
            if self._closed:
                raise ValueError("the partial object was closed")
            self._users += 1
        try:
            yield self.descriptor
        finally:
            with self._lock:
                self._users -= 1
                self._release_unused()

    def _release_unused(self) -> None:
        if self._closed and not self._users and self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _check_state(self) -> None:
        if self.map is not None and self.map.state == DISCARDED:
            raise CorruptError("object", self.digest.hex(), "its extents do not make it; it was given up")

    def _write(self, number: int, plain: memoryview) -> None:
        try:
            try:
                self._write_at(number * EXTENT_SIZE, plain)
            except OSError as error:
                if not is_full(error) or not self._keeper.free_disk(len(plain)):
                    raise
                self._write_at(number * EXTENT_SIZE, plain)
        except OSError as error:
            if is_full(error):
                raise StoreFullError(f"the pool's file system, while object {self.digest.hex()} is filled") from error
            raise

    def _write_at(self, offset: int, plain: memoryview) -> None:
        with self._using() as descriptor:
            while plain:
                written = os.pwrite(descriptor, plain, offset)
                plain, offset = plain[written:], offset + written
