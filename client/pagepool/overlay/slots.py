"""Which slots of the arena are free: runs, joined when they meet, found by their length.

Pure bookkeeping, no file. Slots are numbers from 0; every slot at or above `end` was never used or is free again, all
free ones below it are in runs. Not thread-safe: the arena's owner has a lock.
"""

from __future__ import annotations

from typing import Final

Run = tuple[int, int]
"""First slot and number of slots."""

_CLASSES: Final = 40
# A request is put together from runs of at least an eighth of it, else it goes to the end.
_PIECES_BITS: Final = 3


class SlotAllocator:
    """Free slots below `end`."""

    def __init__(self) -> None:
        self.end = 0
        self.free_count = 0
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        # Starts of runs by the bit length of their counts; bit n of the mask says whether class n has any.
        self._classes: list[dict[int, None]] = [{} for _ in range(_CLASSES)]
        self._mask = 0

    def take(self, count: int) -> list[Run]:
        """Take free slots.

        Returns:
            runs of `count` slots in all: one where that is possible without much looking.
        """
        taken: list[Run] = []
        while count:
            size = self._find(count)
            if not size:
                taken.append((self.end, count))
                self.end += count
                break
            start = next(iter(self._classes[size]))
            have = self._remove(start)
            if have > count:
                self._insert(start + count, have - count)
                have = count
            taken.append((start, have))
            count -= have
        return taken

    def give(self, start: int, count: int) -> Run:
        """Give slots back.

        Returns:
            the free run that they are part of now.
        """
        before = self._ends.get(start)
        if before is not None:
            count += self._remove(before)
            start = before
        after = start + count
        if after in self._starts:
            count += self._remove(after)
        if start + count == self.end:
            self.end = start
        else:
            self._insert(start, count)
        return start, count

    def length(self, start: int) -> int:
        """How long the free run that begins at a slot is; 0 if none does."""
        return self._starts.get(start, 0)

    def runs(self) -> list[Run]:
        """All free runs below `end`, in order."""
        return sorted(self._starts.items())

    def _find(self, count: int) -> int:
        """The class to take a run from; 0 for the end of the arena."""
        wanted = count.bit_length()
        above = self._mask >> wanted
        if above:
            return wanted + (above & -above).bit_length() - 1
        below = self._mask & ((1 << wanted) - 1)
        size = below.bit_length() - 1
        return size if size >= max(1, wanted - _PIECES_BITS) else 0

    def _insert(self, start: int, count: int) -> None:
        self._starts[start] = count
        self._ends[start + count] = start
        size = count.bit_length()
        self._classes[size][start] = None
        self._mask |= 1 << size
        self.free_count += count

    def _remove(self, start: int) -> int:
        count = self._starts.pop(start)
        del self._ends[start + count]
        size = count.bit_length()
        members = self._classes[size]
        del members[start]
        if not members:
            self._mask &= ~(1 << size)
        self.free_count -= count
        return count
