"""What a worker counts of its own work: how long containers wait, what is fetched, and what goes wrong.

Kept in memory, by the threads that do the work, each count with one short lock; a worker that takes over begins at 0,
which Prometheus knows what to make of. Whether anybody asks for the figures changes nothing here.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Final

from pagepool.errors import (
    CorruptError,
    DeniedError,
    NotFoundError,
    PagepoolError,
    UnauthorizedError,
    UnreachableError,
)
from pagepool.node.exposition import Family, Histogram, Sample, counter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.content.cache import Fetch

_WAITS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_FETCHES_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LOOKUP: Final = "lookup"
READ: Final = "read"
_REASONS: Final = (
    ("corrupt", (CorruptError,)),
    ("unreachable", (UnreachableError,)),
    ("denied", (UnauthorizedError, DeniedError)),
    ("unknown", (NotFoundError,)),
)
_OTHER: Final = "other"


class Figures:
    """The counts of one worker. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waits = {LOOKUP: Histogram(_WAITS_S), READ: Histogram(_WAITS_S)}
        self._failed: Counter[str] = Counter()
        self._fetches = Histogram(_FETCHES_S)
        self._fetched_bytes = 0
        self._fetch_errors: Counter[str] = Counter()
        self._scrubbed: Counter[str] = Counter()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count how long somebody in a container has to wait for what is done meanwhile, and whether in vain.

        Args:
            what: `LOOKUP` or `READ`.
        """
        begun, failed = time.perf_counter(), True
        try:
            yield
            failed = False
        finally:
            took_s = time.perf_counter() - begun
            with self._lock:
                self._waits[what].observe(took_s)
                self._failed[what] += failed

    def counted(self, fetch: Fetch) -> Fetch:
        """The same way to fetch extents, counted: from the request until everything was taken in."""

        def ask(wanted: Sequence[bytes]) -> Iterator[tuple[bytes, memoryview]]:
            begun, size, reason = time.perf_counter(), 0, ""
            try:
                for digest, data in fetch(wanted):
                    size += len(data)
                    yield digest, data
            except (PagepoolError, OSError) as error:
                reason = _reason(error)
                raise
            finally:
                took_s = time.perf_counter() - begun
                with self._lock:
                    self._fetches.observe(took_s)
                    self._fetched_bytes += size
                    if reason:
                        self._fetch_errors[reason] += 1

        return ask

    def scrubbed(self, objects: int, damaged: int, repaired: int, *, finished: bool) -> None:
        """Count what a scrub has seen."""
        with self._lock:
            self._scrubbed.update(objects=objects, damaged=damaged, repaired=repaired, rounds=int(finished))

    def families(self) -> list[Family]:
        """All of them, as they are now."""
        with self._lock:
            waits = [sample for what, found in self._waits.items() for sample in found.samples({"for": what})]
            failed = [Sample(self._failed[what], {"for": what}) for what in self._waits]
            reasons = [name for name, _ in _REASONS] + [_OTHER]
            errors = [Sample(self._fetch_errors[reason], {"reason": reason}) for reason in reasons]
            fetches, size = self._fetches.samples(), self._fetched_bytes
            scrubbed = [
                counter(f"pagepool_node_scrub_{name}_total", text, Sample(self._scrubbed[name]))
                for name, text in _SCRUBS.items()
            ]
        return [
            Family(
                "pagepool_node_wait_seconds",
                "histogram",
                "Time that a program waited for an object that was not here: to find it, or to read a large one.",
                tuple(waits),
            ),
            counter("pagepool_node_wait_errors_total", "Of these waits, those that ended in an error.", *failed),
            Family("pagepool_node_fetch_seconds", "histogram", "Time of a request for content.", tuple(fetches)),
            counter("pagepool_node_fetched_bytes_total", "Bytes of content fetched, uncompressed.", Sample(size)),
            counter("pagepool_node_fetch_errors_total", "Requests for content that failed.", *errors),
            *scrubbed,
        ]


_SCRUBS: Final = {
    "objects": "Objects that were compared with their names.",
    "damaged": "Of these, objects that were damaged.",
    "repaired": "Of the damaged ones, objects that were fetched again.",
    "rounds": "Times that all objects of the pool were gone through.",
}


def _reason(error: Exception) -> str:
    return next((name for name, kinds in _REASONS if isinstance(error, kinds)), _OTHER)
