"""Which processes of the service run, and who keeps its writers waiting: memory that the supervisor writes and every
process reads.

Made before the first fork, so that all of them have it. A number is written in one step; who reads may be a moment
late, never wrong by half.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBER_SIZE = 4


class Roster:
    """Names of processes, and the process id of each that runs.

    Args:
        names: in the order in which they are noted.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._pids = memoryview(mmap.mmap(-1, _NUMBER_SIZE * max(1, len(self._names)))).cast("i")
        self._writer = memoryview(mmap.mmap(-1, 2 * _NUMBER_SIZE)).cast("i")

    def note(self, place: int, pid: int) -> None:
        """Say that a process runs, or with 0 that it has ended. The supervisor's alone."""
        self._pids[place] = pid

    def note_writer(self, pid: int, held_s: int) -> None:
        """Say who has kept the store's writer lock for long, and how long; 0 if nobody. The supervisor's alone."""
        self._writer[0], self._writer[1] = pid, held_s

    def writer(self) -> tuple[int, int]:
        """What `note_writer` said last."""
        return self._writer[0], self._writer[1]

    def has(self, kind: str) -> bool:
        """Whether any process runs whose name begins with this word."""
        return any(pid for name, pid in self.processes().items() if name.split()[0] == kind)

    def processes(self) -> dict[str, int]:
        """The id of each process, 0 of one that does not run."""
        return dict(zip(self._names, self._pids, strict=False))
