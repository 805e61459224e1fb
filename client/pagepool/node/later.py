"""Something that is done a fixed time after it was asked for: by one thread, however much is waiting."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Thing = TypeVar("_Thing")

log = logging.getLogger("pagepool.node")


class Later(Generic[_Thing]):
    """Calls a function with what it is given, in that order. Thread-safe; its thread ends with the process.

    Args:
        seconds: from being given something to the call.
        call: quick; what it raises is logged.
    """

    def __init__(self, seconds: float, call: Callable[[_Thing], None]) -> None:
        self._seconds, self._call = seconds, call
        self._waiting: queue.SimpleQueue[tuple[float, _Thing]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="node-later", daemon=True).start()

    def put(self, thing: _Thing) -> None:
        """Have the call made later. Does not block."""
        self._waiting.put((time.monotonic() + self._seconds, thing))

    def _work(self) -> None:
        while True:
            due, thing = self._waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                self._call(thing)
            except Exception:  # without this thread nothing would be done any more
                log.exception("what was to be done later is not")
