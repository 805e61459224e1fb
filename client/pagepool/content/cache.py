"""Objects of a pool that are open in this process, and how they get into it.

A read looks here first: what is in the pool is a view of the pool's own pages. What is missing is fetched, compared
with its name, and kept. An extent is fetched once however many threads wait for it; processes may do the same work at
the same time, which is harmless.

What the pool cannot take (it is too large for the budget, or the file system under it is full or gone) is handed on as
it was fetched. Objects that nobody read for a while are let go of, so that the pool can evict them; when it is full
half of what is open here is, too. If that does not help nothing is kept for a moment, and it is tried again then.
A crash leaves what the pool's own rules say; nothing here is durable.

Where extents come from is the caller's: a service reads its store, a client asks a service about one tree. So it is
named at each call that may fetch.
"""

from __future__ import annotations

import errno
import logging
import resource
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING

from pagepool.content.held import Held, ReadablePool, SharedPool
from pagepool.errors import CorruptError, StoreFullError, UnreachableError
from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pagepool.content.held import WholeFile
    from pagepool.image.treefile import ObjectInfo

    Fetch = Callable[[Sequence[bytes]], Iterable[tuple[bytes, memoryview]]]
    """Brings extents by their digests: (digest, verified bytes) of each, perhaps of others too, in any order.

    Raises CorruptError of kind ``extent`` when all that could be had has come.
    """

log = logging.getLogger("pagepool.cache")

WINDOW = 8
"""Extents that are read at a time for one request: 1 MiB."""
_IDLE_TICKS = 2
_MOST_OPEN = 1024
_FEWEST_OPEN = 64
_QUIET_TICKS = 30  # between two lines in the log about a pool that takes nothing
_PAUSE_S = 1.0  # that a pool is left alone when it does not
_LARGEST_SHARE = 4  # an object of more than one part in so many of the budget is not kept


class ObjectCache:
    """The open objects of one process. Thread-safe.

    Args:
        pool: shared with other processes; one that can only be read is filled by others; None to keep nothing.
        budget: of the pool, bytes.
        most_open: file descriptors of objects that are open at a time: one for each, or four while it is being filled.
            None: half of what this process may have, at most 1024.
    """

    def __init__(self, pool: ReadablePool | None, budget: int = 0, most_open: int | None = None) -> None:
        self._readable = pool
        self.pool = pool if isinstance(pool, SharedPool) else None
        self._most_open = default_open() if most_open is None else most_open
        self._largest = budget // _LARGEST_SHARE
        self._held: OrderedDict[bytes, Held] = OrderedDict()
        self._descriptors = 0  # of those
        self._tick = 0
        self._told = -_QUIET_TICKS - 1
        self._refused_until = 0.0
        self._lock = threading.Lock()
        self._under_way: dict[tuple[bytes, int], Future[bool | None]] = {}

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
        while first < end:
            last = min(first + window, end)
            here = self.view(info, first * EXTENT_SIZE, min(last * EXTENT_SIZE, info.size)) is not None
            if not here and not self._fill_window(info, range(first, last), fetch):
                return False
            first = last
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
        return (info.extent_count == 1 and info.digest in self._held) or self._store(info, {number: data}, held=False)

    def takes(self, info: ObjectInfo) -> bool:
        """Whether an object is of a size that the pool keeps at all; True where there is none."""
        return self.pool is None or info.size <= self._largest

    def missing(self, info: ObjectInfo) -> list[int]:
        """The extents of an object that are not in the pool, also of one that others have begun to fill."""
        found = self._missing(info, range(info.extent_count))
        return list(range(info.extent_count)) if found is None else found

    def tick(self) -> None:
        """Let go of what was not read during the last calls of this, and of what the pool does not have any more.

        Called every few seconds. Opens what is open once more: about ten microseconds each.
        """
        self._tick += 1
        with self._lock:
            idle = [digest for digest, held in self._held.items() if self._tick - held.tick > _IDLE_TICKS]
            dropped = [self._take(digest) for digest in idle]
            kept = list(self._held.items())
        dropped.clear()  # closes them, without the lock
        for digest, held in kept:
            if not held.is_current():
                self._forget(digest, held)

    def forget(self, digest: bytes) -> None:
        """Let go of an object: it has been found to be damaged."""
        held = self._held.get(digest)
        if held is not None:
            self._forget(digest, held)

    def _forget(self, digest: bytes, held: Held) -> None:
        with self._lock:
            if self._held.get(digest) is held:
                self._take(digest)

    def _take(self, digest: bytes) -> Held:
        """Take an object out of those that are open. The lock is held, and whoever has it last closes it: not here."""
        held = self._held.pop(digest)
        self._descriptors -= held.descriptors
        return held

    def close(self) -> None:
        """Let go of everything, and of the pool."""
        with self._lock:
            dropped, self._held, self._descriptors = self._held, OrderedDict(), 0
        dropped.clear()
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
        self._drop_half()
        return pool.get(digest)

    def _drop_half(self) -> int:
        """Let go of half of the open objects, those that were read longest ago; tells how many."""
        with self._lock:
            oldest = sorted(self._held, key=lambda digest: self._held[digest].tick)
            dropped = [self._take(digest) for digest in oldest[: -(-len(oldest) // 2)]]
        return len(dropped)

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
                    dropped.append(self._take(held.info.digest))
                self._held[held.info.digest] = held
                self._descriptors += held.descriptors
                while self._descriptors > self._most_open and len(self._held) > 1:
                    dropped.append(self._take(next(iter(self._held))))
        dropped.clear()
        return held

    def _fill_window(self, info: ObjectInfo, numbers: Sequence[int], fetch: Fetch) -> bool:
        """Fill a few extents: those that nobody is filling, then wait for the others. Whether the pool took them.

        Another thread may fail for reasons of its own (its image is gone, it was interrupted): what it was to bring is
        tried once more here then. That the service is gone or has wrong bytes holds for all.
        """
        claimed: dict[int, Future[bool | None]] = {}
        awaited: dict[int, Future[bool | None]] = {}
        with self._lock:
            for number in numbers:
                other = self._under_way.get((info.digest, number))
                if other is None:
                    claimed[number] = self._under_way[info.digest, number] = Future()
                else:
                    awaited[number] = other
        error: BaseException | None = None
        taken = False
        try:
            taken = self._fill_claimed(info, list(claimed), fetch)
        except BaseException as caught:
            error = caught
            raise
        finally:
            with self._lock:
                for number in claimed:
                    del self._under_way[info.digest, number]
            for future in claimed.values():
                if isinstance(error, CorruptError | UnreachableError):
                    future.set_exception(error)
                else:
                    future.set_result(taken if error is None else None)
        results = {number: future.result() for number, future in awaited.items()}
        left = [number for number, result in results.items() if result is None]
        return taken and False not in results.values() and (not left or self._fill_window(info, left, fetch))

    def _fill_claimed(self, info: ObjectInfo, numbers: Sequence[int], fetch: Fetch) -> bool:
        # Another thread, or a process before this one, may have been done with some of them.
        wanted = self._missing(info, numbers)
        return wanted is not None and (not wanted or self._store(info, self._read(info, wanted, fetch)))

    def _missing(self, info: ObjectInfo, numbers: Sequence[int]) -> list[int] | None:
        """Which of an object's extents are not in the pool; None if it does not take them."""
        wanted: list[int] = []

        def look(pool: SharedPool) -> bool:
            held = self._held.get(info.digest) or self._open(info)
            if held is None and info.extent_count > 1:
                held = self._being_filled(pool, info)
            if held is None:
                wanted.extend(numbers)
            elif (partial := held.partial) is not None:
                wanted.extend(number for number in numbers if not partial.has(number))
            return True

        return wanted if self._offer(info, look) else None

    def _store(self, info: ObjectInfo, found: Mapping[int, memoryview], *, held: bool = True) -> bool:
        """Give extents to the pool. Whether it took them.

        Args:
            held: whether an object of one extent stays open.
        """

        def write(pool: SharedPool) -> bool:
            if info.extent_count == 1:
                file = pool.put(info.digest, found[0])
                if file is not None:
                    self._keep(Held(info, file, None, self._tick)) if held else file.close()
                return file is not None
            opened = self._being_filled(pool, info)
            for number, data in found.items():
                if opened.partial is not None:
                    opened.partial.write(number, data)
            opened.look()
            if opened.whole is not None:
                self._open(info)  # in place of the partial, which takes four descriptors
            return True

        return self._offer(info, write)

    def _offer(self, info: ObjectInfo, action: Callable[[SharedPool], bool]) -> bool:
        """Do something with the pool. False if it does not take the object, though some were let go of for it."""
        if self.pool is None or not self.takes(info) or time.monotonic() < self._refused_until:
            return False
        reason: Exception | str = "it is full"
        for _ in range(2):
            try:
                if action(self.pool):
                    return True
            except StoreFullError as error:
                reason = error
            except OSError as error:
                reason = error
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    break
            if not self._drop_half():
                break
        self._refused_until = time.monotonic() + _PAUSE_S
        if self._tick - self._told > _QUIET_TICKS:
            self._told = self._tick
            log.warning("the pool does not take object %s, and perhaps others: %s", info.digest.hex(), reason)
        return False

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


def default_open() -> int:
    """Objects to keep open when nothing was said: a program needs some descriptors of its own, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if soft == resource.RLIM_INFINITY else max(_FEWEST_OPEN, min(_MOST_OPEN, soft // 2))


def _about(info: ObjectInfo, names: Mapping[int, bytes], error: CorruptError) -> CorruptError:
    """An error about an extent, as one about the object that it is of."""
    number = next((number for number, digest in names.items() if digest.hex() == error.name), None)
    if error.kind != "extent" or number is None:
        return error
    return CorruptError("object", info.digest.hex(), f"extent {number} ({error.name}): {error.reason}")
