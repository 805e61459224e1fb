"""How often the kernel was told of each large object, and so when it has forgotten one: then no mount reads it here.

Each entry that answers a look-up is one reference, and FORGET gives references back. Only objects that this process has
numbered are counted: what a server before it answered is not known. One reference too many, for an answer that the
kernel did not take, means that an object never counts as forgotten, which does no harm. Thread-safe.
"""

from __future__ import annotations

from collections import Counter
from threading import Lock


class References:
    """The references of the kernel.

    Args:
        first: the first number that is counted.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._lock = Lock()
        self._counts: Counter[int] = Counter()

    def given(self, node: int) -> bool:
        """The kernel was told of an object; whether it has forgotten that since: FORGET may be faster."""
        return self._add(node, 1)

    def returned(self, node: int, count: int) -> bool:
        """The kernel gives references back; whether these were the last."""
        return self._add(node, -count)

    def is_forgotten(self, node: int) -> bool:
        """Whether the kernel has forgotten what it was told of an object."""
        return self._counts.get(node) == 0

    def _add(self, node: int, count: int) -> bool:
        if node < self._first:
            return False
        with self._lock:
            self._counts[node] += count
            return self._counts[node] == 0
