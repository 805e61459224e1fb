"""Which object goes next: S3-FIFO over bytes. Pure; no files, no clock, no threads.

Follows "FIFO queues are all you need for cache eviction" (SOSP 2023): what is new waits in a small queue of a tenth of
the bytes, and moves to the main one only if it is used again before its turn comes; so a scan passes through without
pushing out what is in use. What was evicted unused is remembered by name for a while, and goes straight to the main
queue when it comes again. docs/benchmarks.md compares it with others on recorded reads of images.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SMALL_SHARE: Final = 10
"""The small queue is one in so many of the bytes."""
MOST_USES: Final = 3
"""Uses that count: an object survives at most so many turns without another one."""


class Entry(NamedTuple):
    """One line of the saved state.

    Args:
        queue: 0 small, 1 main, 2 remembered only.
        uses: since it was last looked at, at most `MOST_USES`.
        size: bytes.
        name: what the owner calls it.
    """

    queue: int
    uses: int
    size: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Goal:
    """What evicting is to come to.

    Args:
        size: bytes that are to fit.
        base: what all may come to.
        floor: what is left in any case for what is not pinned, nor about to be.
        most_pinned: it is given up when more is pinned.
    """

    size: int
    base: int
    floor: int
    most_pinned: float = float("inf")

    def ceiling(self, bound: int) -> int:
        """What all may come to: more than `base` where most of that is bound, by being pinned or fresh."""
        return max(self.base, bound + self.floor)

    def is_met(self, used: int, pinned: int, fresh: int, slack: int = 0) -> bool:
        """Whether nothing more has to go.

        Args:
            used: bytes of everything.
            pinned: of what has no names, and is in use.
            fresh: of what overlays are about to look for.
            slack: bytes that are to fit besides.
        """
        left = self.ceiling(pinned + fresh) - self.size
        return left >= 0 and (used <= max(0, left - slack) or pinned > self.most_pinned)


class S3Fifo:
    """The queues. Sizes are whatever unit the owner counts in."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._small: OrderedDict[bytes, int] = OrderedDict()
        self._main: OrderedDict[bytes, int] = OrderedDict()
        self._ghost: OrderedDict[bytes, int] = OrderedDict()
        self._uses: dict[bytes, int] = {}
        self._small_bytes = self._main_bytes = self._ghost_bytes = 0
        for queue, uses, size, name in entries:
            if queue == 0:
                self._small[name] = size
                self._small_bytes += size
            elif queue == 1:
                self._main[name] = size
                self._main_bytes += size
            else:
                self._ghost[name] = size
                self._ghost_bytes += size
            if uses:
                self._uses[name] = uses

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __contains__(self, name: object) -> bool:
        return name in self._small or name in self._main

    @property
    def size(self) -> int:
        """Bytes of all objects in the queues."""
        return self._small_bytes + self._main_bytes

    def entries(self) -> Iterator[Entry]:
        """The state, to be saved; queues from their oldest."""
        uses = self._uses
        for number, queue in enumerate((self._small, self._main, self._ghost)):
            for name, size in queue.items():
                yield Entry(number, uses.get(name, 0), size, name)

    def insert(self, name: bytes, size: int) -> None:
        """An object came, or has another size now."""
        if name in self._small:
            self._small_bytes += size - self._small[name]
            self._small[name] = size
        elif name in self._main:
            self._main_bytes += size - self._main[name]
            self._main[name] = size
        elif (remembered := self._ghost.pop(name, None)) is not None:
            self._ghost_bytes -= remembered
            self._main[name] = size
            self._main_bytes += size
        else:
            self._small[name] = size
            self._small_bytes += size

    def access(self, name: bytes) -> None:
        """An object was used."""
        uses = self._uses.get(name, 0)
        if uses < MOST_USES and name in self:
            self._uses[name] = uses + 1

    def remove(self, name: bytes) -> None:
        """An object went for another reason. It is not remembered."""
        self._small_bytes -= self._small.pop(name, 0)
        self._main_bytes -= self._main.pop(name, 0)
        self._uses.pop(name, None)

    def plan_victim(self) -> tuple[bytes, int] | None:
        """Choose what goes next, and take it out of the queues.

        Returns:
            its name and size; None when there is nothing left. If it cannot go, `keep` puts it back.
        """
        while self._small or self._main:
            if self._small and (self._small_bytes * SMALL_SHARE >= self.size or not self._main):
                name, size = self._small.popitem(last=False)
                self._small_bytes -= size
                if not self._uses.pop(name, 0):
                    self._remember(name, size)
                    return name, size
            else:
                name, size = self._main.popitem(last=False)
                self._main_bytes -= size
                uses = self._uses.pop(name, 0)
                if not uses:
                    return name, size
                if uses > 1:
                    self._uses[name] = uses - 1
            self._main[name] = size
            self._main_bytes += size
        return None

    def keep(self, name: bytes, size: int) -> None:
        """A chosen object is in use: it stays, as one that was used."""
        self._ghost_bytes -= self._ghost.pop(name, 0)
        self._main[name] = size
        self._main_bytes += size

    def split(self, chosen: Callable[[bytes], bool]) -> S3Fifo:
        """Take objects out into queues of their own, each in the order and with the uses that it has here."""
        part = S3Fifo(entry for entry in self.entries() if entry.queue < 2 and chosen(entry.name))
        for entry in part.entries():
            self.remove(entry.name)
        return part

    def merge(self, part: S3Fifo) -> None:
        """Put back what is left of what was taken out, as what came last, and what that remembers."""
        self._small.update(part._small)
        self._main.update(part._main)
        self._uses.update(part._uses)
        self._small_bytes += part._small_bytes
        self._main_bytes += part._main_bytes
        for name, size in part._ghost.items():
            self._remember(name, size)

    def _remember(self, name: bytes, size: int) -> None:
        self._ghost[name] = size
        self._ghost_bytes += size
        while self._ghost_bytes > self._main_bytes + self._small_bytes and len(self._ghost) > 1:
            self._ghost_bytes -= self._ghost.popitem(last=False)[1]
