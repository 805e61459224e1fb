"""How much the workers have done since the service began: a page of memory with a place for each.

Made by the supervisor before the fork, as the roster. A worker that is started again goes on in its place, so no count
runs backwards while the service runs. Numbers are written in one step; who reads may be a moment late.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

_FIELDS = 3


class Counts(NamedTuple):
    """Since the service began.

    Args:
        requests: that were answered, page reads included.
        page_reads: answered at once out of the cache.
        sent_bytes: of answers' bodies.
    """

    requests: int
    page_reads: int
    sent_bytes: int


class Tally:
    """Counts of all workers.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, 8 * _FIELDS * workers)).cast("Q")

    def add(self, place: int, requests: int, page_reads: int, sent_bytes: int) -> None:
        """Count what a worker has done.

        Args:
            place: of the worker, from 0; nobody else writes there.
        """
        start = place * _FIELDS
        for offset, number in enumerate((requests, page_reads, sent_bytes)):
            self._cells[start + offset] += number

    def total(self) -> Counts:
        """Of all workers together."""
        return Counts(*(sum(self._cells[field::_FIELDS]) for field in range(_FIELDS)))
