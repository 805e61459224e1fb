"""Lets go of what was not read for a while, also in a process that reads nothing: a mount that nobody uses would
otherwise keep what it read once, and the pool could not evict it."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pagepool.content.cache import ObjectCache

EVERY_S: Final = 10.0


class Ticker:
    """A thread that calls a cache's `tick` now and then. It ends with the cache, or when this is closed.

    Args:
        cache: referred to weakly.
        every_s: seconds between two calls.
    """

    def __init__(self, cache: ObjectCache, every_s: float = EVERY_S) -> None:
        self._end = threading.Event()
        arguments = (weakref.ref(cache), self._end, every_s)
        self._thread = threading.Thread(target=_tick, args=arguments, name="pagepool-tick", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Have the thread end. A call that is under way is not waited for."""
        self._end.set()


def _tick(cache: weakref.ref[ObjectCache], end: threading.Event, every_s: float) -> None:
    while not end.wait(every_s) and (found := cache()) is not None:
        found.tick()
        del found
