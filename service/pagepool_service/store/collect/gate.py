"""Write transactions of bounded length, so that collection keeps no push waiting.

A turn does as much as its time allows, commits, and leaves the writer's lock to others for as long as it had it. How
much work a turn may do is what the last commits have left of the budget: on a slow disk turns get smaller.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pagepool_service.store.environment import Environment, Writer

Item = TypeVar("Item")
Result = TypeVar("Result")

BUDGET_S: Final = 0.02
_LEAST_WORK_S: Final = 0.001
_MOST_WORK_S: Final = 0.005
_LONGEST_REST_S: Final = 0.1


@dataclass(slots=True)
class Holds:
    """How often and how long the writer's lock was held, in seconds; and how much of the longest work was no commit."""

    count: int = 0
    longest_s: float = 0.0
    longest_work_s: float = 0.0
    total_s: float = 0.0

    def add(self, held_s: float, work_s: float) -> None:
        """One more; the rest of the time was the commit's, mostly waiting for the disk."""
        self.longest_work_s = max(self.longest_work_s, work_s)
        self.count += 1
        self.total_s += held_s
        self.longest_s = max(self.longest_s, held_s)


class Turn:
    """A write transaction, and until when it may do work."""

    def __init__(self, txn: Writer, until_s: float) -> None:
        self.txn = txn
        self._until_s = until_s

    @property
    def is_over(self) -> bool:
        """Whether its time for work is up."""
        return time.monotonic() >= self._until_s


class BehindError(Exception):
    """What is marked is behind what was written: nothing was removed. Never leaves this package."""


class Gate:
    """Makes turns. For one thread.

    Args:
        budget_s: about how long the lock may be held, commit included.
    """

    def __init__(self, env: Environment, budget_s: float = BUDGET_S) -> None:
        self._env = env
        self._budget_s = budget_s
        self._work_s = _MOST_WORK_S / 2
        self.holds = Holds()
        self.prepare: Callable[[], None] = _nothing
        """Called before each turn, without the lock."""
        self.check: Callable[[Writer], None] = _nothing_of
        """Called with each turn's transaction before any work; raises BehindError to have the turn begun again."""

    def run(self, act: Callable[[Turn], Result]) -> Result:
        """Do something in a turn: nothing of it is done if it raises. It is called again if it was too early."""
        while True:
            self.prepare()
            try:
                with self._turn() as turn:
                    self.check(turn.txn)
                    return act(turn)
            except BehindError:
                continue

    def each(self, items: Sequence[Item], act: Callable[[Writer, Item], None]) -> None:
        """Do something for each item, in as many turns as that takes."""
        done = 0

        def some(turn: Turn) -> int:
            count = 0
            for item in islice(items, done, None):
                act(turn.txn, item)
                count += 1
                if turn.is_over:
                    break
            return count

        while done < len(items):
            done += self.run(some)

    @contextmanager
    def _turn(self) -> Iterator[Turn]:
        # What others left to be written would be written by our commit otherwise, while everybody waits for it.
        self._env.sync()
        began = worked = time.monotonic()
        try:
            with self._env.write() as txn:
                began = time.monotonic()
                try:
                    yield Turn(txn, began + self._work_s)
                finally:
                    worked = time.monotonic()
        finally:
            held = time.monotonic() - began
            self.holds.add(held, worked - began)
            if held > self._budget_s:
                self._work_s = max(_LEAST_WORK_S, self._work_s * self._budget_s / held)
            else:
                self._work_s = min(_MOST_WORK_S, self._work_s * 1.1)
            time.sleep(min(held, _LONGEST_REST_S))


def _nothing() -> None:
    """Nothing is to be prepared."""


def _nothing_of(txn: Writer) -> None:
    """Nothing is to be checked."""
