"""The bytes of one tree's objects: out of a pool, and what is not there from a service. Implements `vfs.Content`.

What comes is verified and kept in the pool, also what nobody asked for (a stored frame is sent whole): a client does
not ask for it again. Reading a large object in order fetches ahead, in ever larger windows; reading it here and there
fetches what was asked for. A pool that is somebody else's (the service's own, on the same machine) is filled by its
owner instead, who is asked to.

Small files are fetched ahead, too: whoever reads them in the order of the tree, as programs that walk it do, asks for
more and more of those that come next. Who reads here and there asks for what he reads.

What no pool takes is fetched anew for each read, but for the last few extents, which stay in memory: a file is read in
small pieces.

Thread-safe. Blocks while something is fetched.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pagepool.content.ahead import FilesAhead
from pagepool.content.cache import WINDOW
from pagepool.errors import CorruptError, PagepoolError, UnreachableError, UnsupportedError
from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from pagepool.content.cache import Fetch, ObjectCache
    from pagepool.image.treefile import ObjectInfo, TreeFile

    Ask = Callable[[Sequence[tuple[bytes, int, int]]], int]
    """Asks a pool's owner for extents `[first, end)` of objects; tells how many, from the first on, are there now.

    Raises UnsupportedError if the owner has another pool by now, or none.
    """

_LARGEST_WINDOW: Final = 64  # extents: 8 MiB
_BATCH_BYTES: Final = 64 << 20
_BATCH_EXTENTS: Final = 8192
_LARGE: Final = 32 << 20
_MOST_SAMPLES: Final = 4
_OBJECTS_KNOWN: Final = 8192
_PIECE: Final = 64  # extents of a large object that somebody else's pool is asked for as one: 8 MiB
_MOST_IN_VAIN: Final = 2  # requests that brought nothing, until it is believed that the pool does not take an object
_MOST_REFUSED: Final = 8  # objects in a row, until the rest of a batch is not asked for
_UNASKED_S: Final = 10.0
_MOST_PASSING: Final = 32  # extents that no pool takes: 4 MiB


class TreeContent:
    """The objects of a tree.

    Args:
        cache: of a pool; closed by the caller.
        tree: closed by the caller.
        fetch: brings extents of the tree.
        ask: where the pool is somebody else's: asks for objects to be brought into it.
        in_order: brings extents in the order in which they are asked for, about; for `prefetch_parts`.
    """

    def __init__(
        self,
        cache: ObjectCache,
        tree: TreeFile,
        fetch: Fetch,
        ask: Ask | None = None,
        in_order: Fetch | None = None,
    ) -> None:
        self._in_order = in_order or fetch
        self._cache = cache
        self._tree = tree
        self._source = fetch
        self._ask = ask
        self._info: Callable[[int], ObjectInfo] = lru_cache(_OBJECTS_KNOWN)(tree.object)
        self._ahead: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # object -> where reading goes on, window
        self._samples: OrderedDict[bytes, int] = OrderedDict()  # reads of an object that is not in the pool
        self._lock = threading.Lock()
        self._unasked_until = 0.0
        self._passing: OrderedDict[bytes, memoryview] = OrderedDict()  # the last extents that no pool took
        self._files = FilesAhead(tree)
        self._fetching_ahead = threading.Lock()

    def view(self, index: int, start: int, end: int, around: int = 1) -> memoryview:
        """See `Content`.

        Args:
            around: what is missing is fetched with its neighbours, up to so many extents of an object.
        """
        info = self._info(index)
        found = self._cache.view(info, start, end)
        if found is None and info.size <= EXTENT_SIZE and self._fetch_ahead(index):
            found = self._cache.view(info, start, end)
        return self._obtain(info, start, end, around) if found is None else found

    def is_here(self, index: int, start: int, end: int) -> bool:
        """Whether bytes of an object are in the pool; nothing is fetched."""
        return self._cache.view(self._info(index), start, end) is not None

    def whole(self, index: int) -> memoryview | None:
        """All of an object if it is here; nothing is fetched."""
        info = self._info(index)
        return self._cache.view(info, 0, info.size)

    def forget(self, index: int) -> None:
        """Look for an object in the pool again, though it is open: it was damaged there."""
        self._cache.forget(self._info(index).digest)

    def prefetch(self, indices: Iterable[int], on_bytes: Callable[[int], object] = lambda _: None) -> None:
        """See `Content`.

        Args:
            on_bytes: told of plain bytes as they are there, those included that were there already.
        """
        for batch in self._batches(dict.fromkeys(indices), on_bytes):
            if self._ask is None:
                self._fetch_batch(batch, on_bytes)
            else:
                on_bytes(sum(info.size for info in self._ask_batch(self._ask, batch)))

    def prefetch_parts(
        self, parts: Mapping[int, Collection[int] | None], on_object: Callable[[bytes], object] = lambda _: None
    ) -> None:
        """Fetch objects in this order, of some of them only a part, in as few requests as possible. Blocks. Raises as
        `view`.

        Only into a pool of one's own.

        Args:
            parts: by the place of an object, the numbers of the extents that are wanted of it; None: all of it.
            on_object: told of the digest of each object of which all that was missing has come.
        """
        wanted = {self._info(index).digest: numbers for index, numbers in parts.items()}
        for batch in self._batches(parts):
            self._fetch_batch(batch, parts=wanted, on_object=on_object)

    def close(self) -> None:
        """See `Content`. The cache, which others use too, stays open."""
        with self._lock:
            self._passing.clear()
        self._info = self._tree.object

    def _fetch_ahead(self, index: int) -> bool:
        """Fetch a small object together with those that are likely to be read next; False if it is to be fetched alone.

        One thread at a time; what goes wrong here is found out by whoever reads what is missing. That the service is
        gone is told at once: to find it out takes as long as a caller is ready to wait.
        """
        wanted = self._files.next(index)
        if len(wanted) < 2 or not self._fetching_ahead.acquire(blocking=False):
            return False
        try:
            self.prefetch(wanted)
        except UnreachableError:
            if self.whole(index) is None:
                raise
        except PagepoolError:
            return False
        finally:
            self._fetching_ahead.release()
        return True

    def _obtain(self, info: ObjectInfo, start: int, end: int, around: int = 1) -> memoryview:
        """Bytes that are not in the pool."""
        first, last = start // EXTENT_SIZE, -(-end // EXTENT_SIZE)
        if self._passing and self._passing.keys() >= set(info.extents(first, last)):
            return self._pass_on(info, start, end, last)
        window = self._window(info, first, last)
        if self._ask is not None:
            # Somebody else's pool is read object by object: a large one is brought into it once that pays.
            taken = not self._is_sample(info) and self._ask_until(self._ask, info)
        else:
            # Neighbours come with a little; who reads as much as that at once has said what he wants.
            begin = first - first % around if last - first < around else first
            until = min(max(last, first + window, begin + around), info.extent_count)
            if around > 1:
                with self._lock:
                    self._ahead[info.digest] = until, max(window, WINDOW // 2)
            taken = self._cache.fill(info, begin, until, self._fetch, window=min(until - begin, _LARGEST_WINDOW))
        found = self._cache.view(info, start, end) if taken else None
        if found is not None:
            return found
        window = min(window, _MOST_PASSING // 2)
        with self._lock:
            self._ahead[info.digest] = max(last, first + window), window
        return self._pass_on(info, start, end, first + window)

    def _pass_on(self, info: ObjectInfo, start: int, end: int, ahead: int) -> memoryview:
        """Bytes `[start, end)` that no pool takes; extents up to `ahead` are fetched with them."""
        stop = min(max(end, ahead * EXTENT_SIZE), info.size)
        pieces: list[memoryview] = []
        for piece in self._cache.direct(info, start, stop, self._fetch_passing):
            pieces.append(piece[: end - start])
            start += len(piece)
            if start >= end:
                break
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    def _fetch_passing(self, wanted: Sequence[bytes]) -> Iterator[tuple[bytes, memoryview]]:
        """Extents that no pool takes: the last ones are kept here."""
        with self._lock:
            known = {digest: self._passing[digest] for digest in wanted if digest in self._passing}
        yield from known.items()
        left = [digest for digest in wanted if digest not in known]
        for digest, data in self._fetch(left) if left else ():
            with self._lock:
                self._passing[digest] = data
                while len(self._passing) > _MOST_PASSING:
                    self._passing.popitem(last=False)
            yield digest, data

    def _window(self, info: ObjectInfo, first: int, last: int) -> int:
        """How many extents to fetch from `first` on: more and more, as long as an object is read in order."""
        with self._lock:
            expected, window = self._ahead.pop(info.digest, (0, WINDOW // 2))
            window = min(window * 2, _LARGEST_WINDOW) if first == expected else last - first
            self._ahead[info.digest] = first + window, max(window, WINDOW // 2)
            while len(self._ahead) > _OBJECTS_KNOWN:
                self._ahead.popitem(last=False)
        return window

    def _fetch(self, wanted: Sequence[bytes], source: Fetch | None = None) -> Iterator[tuple[bytes, memoryview]]:
        """Extents that were asked for; others that came along are kept at once."""
        asked = frozenset(wanted)
        for digest, data in (source or self._source)(wanted):
            if digest in asked:
                yield digest, data
            else:
                self._keep_gift(digest, data)

    def _keep_gift(self, digest: bytes, data: memoryview) -> None:
        """Keep an extent that is an object by itself. Which objects another one is of is not looked for."""
        place = self._tree.find_object(digest)
        if place >= 0:
            self._cache.keep(self._info(place), 0, data)

    def _batches(
        self, parts: Mapping[int, Collection[int] | None], on_bytes: Callable[[int], object] = lambda _: None
    ) -> Iterator[list[ObjectInfo]]:
        """Objects that are not whole here, in parts that are worth a request."""
        batch: list[ObjectInfo] = []
        size = extents = 0
        for index, numbers in parts.items():
            info = self._info(index)
            if self._cache.view(info, 0, info.size) is not None:
                on_bytes(info.size)
                continue
            if self._ask is None and not self._cache.takes(info):
                continue  # all of it would be fetched for nothing; a hole of it may be of any length
            count = info.extent_count if numbers is None else len(numbers)
            plain = min(info.size, count * EXTENT_SIZE)
            if batch and (size + plain > _BATCH_BYTES or extents + count > _BATCH_EXTENTS):
                yield batch
                batch, size, extents = [], 0, 0
            batch.append(info)
            size += plain
            extents += count
        if batch:
            yield batch

    def _fetch_batch(
        self,
        batch: list[ObjectInfo],
        on_bytes: Callable[[int], object] = lambda _: None,
        parts: Mapping[bytes, Collection[int] | None] | None = None,
        on_object: Callable[[bytes], object] = lambda _: None,
    ) -> None:
        """Fetch objects in one request, each extent once; what the pool does not take is not kept."""
        places: dict[bytes, list[tuple[ObjectInfo, int]]] = {}
        for info in batch:
            # That it is not whole was seen before.
            wanted = frozenset(self._cache.missing(info) if info.extent_count > 1 else (0,))
            numbers = None if parts is None else parts[info.digest]
            if numbers is not None:
                wanted &= frozenset(numbers)
            for number, digest in enumerate(info.extents()):
                if number in wanted:
                    places.setdefault(digest, []).append((info, number))
                else:
                    on_bytes(min(EXTENT_SIZE, info.size - number * EXTENT_SIZE))
        if not places:
            return
        left = Counter(info.digest for found in places.values() for info, _ in found)
        try:
            source = self._source if parts is None else self._in_order
            for digest, data in self._fetch(list(places), source):
                for info, number in places[digest]:
                    self._cache.keep(info, number, data)
                    on_bytes(len(data))
                    left[info.digest] -= 1
                    if not left[info.digest]:
                        on_object(info.digest)
        except CorruptError as error:
            raise _about(places, error) from error

    def _ask_batch(self, ask: Ask, batch: list[ObjectInfo]) -> list[ObjectInfo]:
        """Have objects brought into somebody else's pool; those that it took."""
        taken: list[ObjectInfo] = []
        left, refused = batch, 0
        while left and refused < _MOST_REFUSED and time.monotonic() >= self._unasked_until:
            try:
                done = ask([(info.digest, 0, info.extent_count) for info in left])
            except UnsupportedError:
                self._unasked_until = time.monotonic() + _UNASKED_S
                break
            refused = 0 if done else refused + 1
            if not done and self._ask_until(ask, left[0]):
                done, refused = 1, 0
            taken += left[:done]
            left = left[max(done, 1) :]
        return taken

    def _is_sample(self, info: ObjectInfo) -> bool:
        """Whether only a little of a large object was read so far."""
        with self._lock:
            self._samples[info.digest] = self._samples.pop(info.digest, 0) + 1
            while len(self._samples) > _OBJECTS_KNOWN:
                self._samples.popitem(last=False)
            return info.size > _LARGE and self._samples[info.digest] <= _MOST_SAMPLES

    def _ask_until(self, ask: Ask, info: ObjectInfo) -> bool:
        """Ask for one object until it is there; False if its pool does not take it.

        The owner works for a bounded time at each request, and tells how far it came.
        """
        first, in_vain = 0, 0
        while first < info.extent_count and in_vain < _MOST_IN_VAIN:
            if time.monotonic() < self._unasked_until:
                return False
            ends = range(first, info.extent_count, _PIECE)
            try:
                done = ask([(info.digest, at, min(at + _PIECE, info.extent_count)) for at in ends])
            except UnsupportedError:
                self._unasked_until = time.monotonic() + _UNASKED_S
                return False
            first += done * _PIECE
            in_vain = 0 if done else in_vain + 1
        return first >= info.extent_count


def _about(places: dict[bytes, list[tuple[ObjectInfo, int]]], error: CorruptError) -> CorruptError:
    """An error about an extent, as one about the first object that it is of."""
    found = places.get(bytes.fromhex(error.name)) if error.kind == "extent" else None
    if not found:
        return error
    info, number = found[0]
    return CorruptError("object", info.digest.hex(), f"extent {number} ({error.name}): {error.reason}")
