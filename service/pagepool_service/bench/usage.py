"""What a server takes: memory of all its processes, sampled while it works, and disk.

Memory has three figures, because no single one is fair. `pss`: the sum of the processes' proportional set
sizes, the highest of all samples: shared pages count once; it includes the pages of files that are mapped, of
the database too, which the kernel takes back when it needs them. `private`: of that sum, what is not backed by a
file, the highest of all samples. `high_water`: the sum of each process's own maximum as the kernel keeps it
(VmHWM): misses no peak, but counts what is shared once for each process, and adds maxima of different times.

A sample takes the kernel well under a millisecond for each process, ten times a second.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pagepool.linux.processes import memory_of, process_tree, size_fields

_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Memory:
    """Peaks, in bytes; see the module."""

    pss: int
    private: int
    high_water: int


class MemorySampler:
    """Watches a process and all its descendants for the length of a block.

    Args:
        pid: of the first process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._pss = self._private = 0
        self._high: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peak(self) -> Memory:
        """The peaks so far."""
        self._sample()
        return Memory(self._pss, self._private, sum(self._high.values()))

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        pss = private = 0
        for pid in process_tree(self._pid):
            fields = memory_of(pid)
            pss += fields.get("Pss", 0)
            private += fields.get("Pss_Anon", 0)
            self._high[pid] = max(self._high.get(pid, 0), size_fields(Path(f"/proc/{pid}/status")).get("VmHWM", 0))
        self._pss = max(self._pss, pss)
        self._private = max(self._private, private)


def disk_bytes(directory: Path) -> int:
    """What a directory takes on disk, as `du` counts: blocks of files and directories, each inode once."""
    seen: dict[int, int] = {}
    for root, _, names in os.walk(directory):
        for path in (Path(root), *(Path(root) / name for name in names)):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())
