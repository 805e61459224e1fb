"""The service's extent cache: the objects of a pool that all workers share, filled out of the store.

A page read looks here first, in the event loop: what is in the pool is served out of the pool's own pages, without a
thread or a transaction. What is missing is read from the store's frames in a thread, compared with its name, and kept:
see `pagepool.content.cache`, of which this is the service's use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.content import ObjectCache
from pagepool.errors import CorruptError
from pagepool_service.extentstream import read_extents

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.content import SharedPool
    from pagepool.image.treefile import ObjectInfo
    from pagepool_service.store.store import Store


class ExtentCache:
    """The cache, as one worker sees it. Thread-safe.

    Args:
        store: where extents come from.
        pool: shared with the other workers; None to keep nothing.
        budget: of the pool, bytes.
    """

    def __init__(self, store: Store, pool: SharedPool | None, budget: int = 0) -> None:
        self._store = store
        self._objects = ObjectCache(pool, budget)
        self.pool = pool
        self.view = self._objects.view
        self.tick = self._objects.tick
        self.close = self._objects.close

    def fill(self, info: ObjectInfo, first: int, end: int) -> bool:
        """Bring extents `[first, end)` of an object into the pool: see `ObjectCache.fill`. Blocks."""
        return self._objects.fill(info, first, end, self._fetch)

    def fill_small(self, infos: Sequence[ObjectInfo]) -> None:
        """Bring objects of one extent into the pool, reading each stored frame once. Blocks.

        What is damaged or does not fit is left out: `fill` tells.
        """
        wanted = {info.digest: info for info in infos if self.view(info, 0, info.size) is None}
        for digest, data in read_extents(self._store, list(wanted)):
            if not isinstance(data, CorruptError):
                self._objects.keep(wanted[digest], 0, data)

    def pieces(self, info: ObjectInfo, start: int, end: int) -> Iterator[memoryview]:
        """The bytes `[start, end)` of an object, filled as they are gone through: see `ObjectCache.pieces`. Blocks."""
        return self._objects.pieces(info, start, end, self._fetch)

    def _fetch(self, wanted: Sequence[bytes]) -> Iterator[tuple[bytes, memoryview]]:
        failed: CorruptError | None = None
        for digest, data in read_extents(self._store, wanted):
            if isinstance(data, CorruptError):
                failed = failed or CorruptError("extent", digest.hex(), data.reason)
            else:
                yield digest, data
        if failed is not None:
            raise failed
