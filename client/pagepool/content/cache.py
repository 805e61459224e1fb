"""Objects of a pool that are open in this process, and how they get into it.

A read looks here first: what is in the pool is a view of the pool's own pages. What is missing is fetched, compared
with its name, and kept. An extent is fetched once however many threads wait for it; processes may do the same work at
the same time, which is harmless.

What the pool cannot take (it is too large for the budget, or the file system under it is full or gone) is handed on as
it was fetched. Objects that nobody read for a while are let go of, so that what the pool evicts becomes free.
A crash leaves what the pool's own rules say; nothing here is durable.

Where extents come from is the caller's: a service reads its store, a client asks a service about one tree. So it is
named at each call that may fetch.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pagepool.errors import CorruptError, StoreFullError
from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pagepool.image.treefile import ObjectInfo

    Fetch = Callable[[Sequence[bytes]], Iterable[tuple[bytes, memoryview]]]
    """Brings extents by their digests: (digest, verified bytes) of each, perhaps of others too, in any order.

    Raises CorruptError of kind ``extent`` when all that could be had has come.
    """

log = logging.getLogger("pagepool.cache")

WINDOW = 8
"""Extents that are read at a time for one request: 1 MiB."""
_IDLE_TICKS = 2
_LARGEST_SHARE = 4  # an object of more than one part in so many of the budget is not kept


class WholeFile(Protocol):
    """An object of a pool that is open: see `pagepool.pool.PoolFile`."""

    @property
    def view(self) -> memoryview: ...
    def close(self) -> None: ...


class PartialFile(Protocol):
    """An object that is being filled: see `pagepool.pool.Partial`."""

    def has(self, number: int, /) -> bool: ...
    def missing(self, first: int, end: int, /) -> list[int]: ...
    def write(self, number: int, data: memoryview, /) -> object: ...
    def view(self, offset: int, size: int, /) -> memoryview: ...
    def close(self) -> None: ...


class ReadablePool(Protocol):
    """What the cache uses of somebody else's pool: see `pagepool.pool.ReadOnlyPool`."""

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> Path: ...
    def get(self, digest: bytes, /) -> WholeFile | None: ...
    def close(self) -> None: ...


@runtime_checkable
class SharedPool(ReadablePool, Protocol):
    """What it uses of a pool of its own: see `pagepool.pool.Pool`."""

    def put(self, digest: bytes, data: memoryview, /) -> WholeFile | None: ...
    def partial(self, digest: bytes, size: int, extents: Sequence[bytes], /) -> PartialFile: ...


class Held:
    """An object that is open here: whole, or as far as it has been filled."""

    __slots__ = ("file", "info", "partial", "tick", "whole")

    def __init__(self, info: ObjectInfo, file: WholeFile | None, partial: PartialFile | None, tick: int) -> None:
        self.info = info
        self.file = file
        self.partial = partial
        self.tick = tick
        self.whole = None if file is None else file.view

    def view(self, start: int, end: int) -> memoryview | None:
        """The bytes `[start, end)`, if all of them are there."""
        if self.whole is not None:
            return self.whole[start:end]
        partial = self.partial
        if partial is None or partial.missing(start // EXTENT_SIZE, -(-end // EXTENT_SIZE)):
            return None
        return partial.view(start, end - start)

    def look(self) -> None:
        """See whether it has become whole."""
        if self.partial is not None and not self.partial.missing(0, self.info.extent_count):
            self.whole = self.partial.view(0, self.info.size)

    def close(self) -> None:
        """Let go of it. Views that are on their way out stay valid."""
        self.whole = None
        for opened in (self.file, self.partial):
            if opened is not None:
                opened.close()


class ObjectCache:
    """The open objects of one process. Thread-safe.

    Args:
        pool: shared with other processes; one that can only be read is filled by others; None to keep nothing.
        budget: of the pool, bytes.
        most_open: objects that are open at a time; each costs a file descriptor.
    """

    def __init__(self, pool: ReadablePool | None, budget: int = 0, most_open: int = 1024) -> None:
        self._readable = pool
        self.pool = pool if isinstance(pool, SharedPool) else None
        self._most_open = most_open
        self._largest = budget // _LARGEST_SHARE
        self._held: OrderedDict[bytes, Held] = OrderedDict()
        self._tick = 0
        self._lock = threading.Lock()
        self._under_way: dict[tuple[bytes, int], Future[bool]] = {}

    def view(self, info: ObjectInfo, start: int, end: int) -> memoryview | None:
        """The bytes `[start, end)` of an object if they are in the pool; takes microseconds.

        Returns:
            a view of the pool's pages, which stays valid; None if something has to be filled.
        """
        held = self._held.get(info.digest)
        if held is None and (held := self._open(info)) is None:
            return None
        held.tick = self._tick
        whole = held.whole
        return held.view(start, end) if whole is None else whole[start:end]

    def fill(self, info: ObjectInfo, first: int, end: int, fetch: Fetch, window: int = WINDOW) -> bool:
        """Bring extents `[first, end)` of an object into the pool. Blocks.

        Args:
            window: extents that are fetched at a time.

        Returns:
            whether they are there; False if the pool does not take them.

        Raises:
            CorruptError: an extent cannot be had right; it names the object and the extent.
        """
        if self.pool is None or info.size > self._largest:
            return False
        try:
            while first < end:
                last = min(first + window, end)
                here = self.view(info, first * EXTENT_SIZE, min(last * EXTENT_SIZE, info.size)) is not None
                if not here and not self._fill_window(self.pool, info, range(first, last), fetch):
                    return False
                first = last
        except (OSError, StoreFullError) as error:
            log.warning("the pool does not take object %s: %s", info.digest.hex(), error)
            return False
        return True

    def pieces(self, info: ObjectInfo, start: int, end: int, fetch: Fetch) -> Iterator[memoryview]:
        """The bytes `[start, end)` of an object, in pieces of at most 1 MiB, filled as they are gone through. Blocks.

        Raises:
            CorruptError: as `fill`; what was yielded before was right.
        """
        while start < end:
            first = start // EXTENT_SIZE
            stop = min(end, (first + WINDOW) * EXTENT_SIZE)
            piece = self.view(info, start, stop)
            if piece is None and self.fill(info, first, -(-stop // EXTENT_SIZE), fetch):
                piece = self.view(info, start, stop)
            if piece is not None:
                yield piece
            else:
                yield from self.direct(info, start, stop, fetch)
            start = stop

    def direct(self, info: ObjectInfo, start: int, end: int, fetch: Fetch) -> Iterator[memoryview]:
        """The bytes `[start, end)` of an object as they are fetched; nothing is kept. Blocks. Raises as `fill`."""
        for number, data in self._read(info, range(start // EXTENT_SIZE, -(-end // EXTENT_SIZE)), fetch).items():
            base = number * EXTENT_SIZE
            yield data[max(0, start - base) : end - base]

    def keep(self, info: ObjectInfo, number: int, data: memoryview) -> bool:
        """Keep an extent that came without having been asked for here. It may be there already.

        Returns:
            whether the pool took it.
        """
        if self.pool is None or info.size > self._largest:
            return False
        try:
            if info.extent_count > 1:
                return self._keep_part(self.pool, info, {number: data})
            if info.digest not in self._held:
                file = self.pool.put(info.digest, data)
                if file is None:
                    return False
                file.close()
        except (OSError, StoreFullError) as error:
            log.warning("the pool does not take object %s: %s", info.digest.hex(), error)
            return False
        return True

    def tick(self) -> None:
        """Let go of what was not read during the last calls of this. Called every few seconds."""
        self._tick += 1
        with self._lock:
            idle = [digest for digest, held in self._held.items() if self._tick - held.tick > _IDLE_TICKS]
            dropped = [self._held.pop(digest) for digest in idle]
        for held in dropped:
            held.close()

    def close(self) -> None:
        """Let go of everything, and of the pool."""
        with self._lock:
            dropped = list(self._held.values())
            self._held.clear()
        for held in dropped:
            held.close()
        if self._readable is not None:
            self._readable.close()

    def _open(self, info: ObjectInfo) -> Held | None:
        """An object that is whole in the pool."""
        if self._readable is None:
            return None
        try:
            file = self._get(self._readable, info.digest)
        except OSError as error:
            log.warning("object %s cannot be opened: %s", info.digest.hex(), error)
            return None
        return None if file is None else self._keep(Held(info, file, None, self._tick))

    def _get(self, pool: ReadablePool, digest: bytes) -> WholeFile | None:
        """Open an object; where the process has no descriptors left, after some others were closed."""
        try:
            return pool.get(digest)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        with self._lock:
            dropped = [self._held.popitem(last=False)[1] for _ in range(-(-len(self._held) // 2))]
        for one in dropped:
            one.close()
        return pool.get(digest)

    def _keep(self, held: Held) -> Held:
        """Remember an open object; if another thread was faster, its one is kept."""
        dropped: list[Held] = []
        with self._lock:
            kept = self._held.get(held.info.digest)
            if kept is not None and (kept.file is not None or held.file is None):
                dropped.append(held)
                held = kept
            else:
                if kept is not None:
                    dropped.append(kept)
                self._held[held.info.digest] = held
                while len(self._held) > self._most_open:
                    dropped.append(self._held.popitem(last=False)[1])
        for one in dropped:
            one.close()
        return held

    def _fill_window(self, pool: SharedPool, info: ObjectInfo, numbers: range, fetch: Fetch) -> bool:
        """Fill a few extents: those that nobody is filling, then wait for the others. Whether the pool took them."""
        claimed: dict[int, Future[bool]] = {}
        awaited: list[Future[bool]] = []
        with self._lock:
            for number in numbers:
                other = self._under_way.get((info.digest, number))
                if other is None:
                    claimed[number] = self._under_way[info.digest, number] = Future()
                else:
                    awaited.append(other)
        error: BaseException | None = None
        taken = False
        try:
            taken = self._fill_claimed(pool, info, list(claimed), fetch)
        except BaseException as caught:
            error = caught
            raise
        finally:
            with self._lock:
                for number in claimed:
                    del self._under_way[info.digest, number]
            for future in claimed.values():
                future.set_result(taken) if error is None else future.set_exception(error)
        return all([taken, *(future.result() for future in awaited)])

    def _fill_claimed(self, pool: SharedPool, info: ObjectInfo, numbers: Sequence[int], fetch: Fetch) -> bool:
        if info.extent_count == 1:
            # Another thread may have been done with it before this one claimed it.
            for number in numbers if self.view(info, 0, info.size) is None else ():
                file = pool.put(info.digest, self._read(info, [number], fetch)[number])
                if file is None:
                    return False
                self._keep(Held(info, file, None, self._tick))
            return True
        held = self._being_filled(pool, info)
        if held.partial is None:
            return True  # whole by now
        wanted = [number for number in numbers if not held.partial.has(number)]
        return not wanted or self._keep_part(pool, info, self._read(info, wanted, fetch))

    def _keep_part(self, pool: SharedPool, info: ObjectInfo, found: Mapping[int, memoryview]) -> bool:
        held = self._being_filled(pool, info)
        for number, data in found.items():
            if held.partial is not None:
                held.partial.write(number, data)
        held.look()
        return True

    def _being_filled(self, pool: SharedPool, info: ObjectInfo) -> Held:
        """An object of several extents, open for filling; or whole, if it has become that."""
        held = self._held.get(info.digest) or self._open(info)
        if held is None:
            partial = pool.partial(info.digest, info.size, info.extents())
            held = self._keep(Held(info, None, partial, self._tick))
        held.tick = self._tick
        return held

    def _read(self, info: ObjectInfo, numbers: Sequence[int], fetch: Fetch) -> dict[int, memoryview]:
        """Fetch extents of an object."""
        names = {number: info.extents(number, number + 1)[0] for number in numbers}
        wanted = list(dict.fromkeys(names.values()))
        found: dict[bytes, memoryview] = {}
        try:
            found |= fetch(wanted)
        except CorruptError as error:
            raise _about(info, names, error) from error
        for digest in wanted:
            if digest not in found:
                raise _about(info, names, CorruptError("extent", digest.hex(), "it did not come"))
        return {number: found[digest] for number, digest in names.items()}


def _about(info: ObjectInfo, names: Mapping[int, bytes], error: CorruptError) -> CorruptError:
    """An error about an extent, as one about the object that it is of."""
    number = next((number for number, digest in names.items() if digest.hex() == error.name), None)
    if error.kind != "extent" or number is None:
        return error
    return CorruptError("object", info.digest.hex(), f"extent {number} ({error.name}): {error.reason}")
