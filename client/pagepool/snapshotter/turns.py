"""Whose turn it is, within this process: one thread at a time for each of any number of things."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

_Key = TypeVar("_Key")


class Turns(Generic[_Key]):
    """Locks by key, of which only those are kept that somebody has or waits for. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[_Key, threading.Lock] = {}
        self._waiting: Counter[_Key] = Counter()

    @contextmanager
    def turn(self, key: _Key) -> Iterator[None]:
        """Have one's turn for the length of the block. Blocks while another thread has it; not reentrant."""
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
            self._waiting[key] += 1
        try:
            with turn:
                yield
        finally:
            with self._lock:
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    del self._waiting[key], self._turns[key]
