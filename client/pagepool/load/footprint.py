"""What a client takes: memory by the kernel's own books, and processor time."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pagepool.linux.processes import cpu_seconds, memory_of

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory, bytes; summed over the processes of a client.

    Args:
        rss: all pages that are mapped.
        pss: the same, each page divided among those who map it.
        private: pages that nobody else maps.
        shared: pages that others map, too.
        anonymous: of `pss`, what is of no file: heaps, stacks.
        pool: of `pss`, shared memory: a pool in /dev/shm.
        file: of `pss`, files: programs, libraries, a pool on a disk.
    """

    rss: int = 0
    pss: int = 0
    private: int = 0
    shared: int = 0
    anonymous: int = 0
    pool: int = 0
    file: int = 0

    def to_json(self) -> dict[str, int]:
        """As an object."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Footprint:
        """What `to_json` made."""
        return cls(**{name: int(value) for name, value in fields.items()})


def measure_footprint(pids: Iterable[int | str] = ("self",)) -> Footprint:
    """What processes take now; those that have ended take nothing."""
    total = dict.fromkeys(Footprint.__slots__, 0)
    for pid in pids:
        fields = memory_of(pid)
        for name, parts in _PARTS.items():
            total[name] += sum(fields.get(part, 0) for part in parts)
    return Footprint(**total)


_PARTS = {
    "rss": ("Rss",),
    "pss": ("Pss",),
    "private": ("Private_Clean", "Private_Dirty"),
    "shared": ("Shared_Clean", "Shared_Dirty"),
    "anonymous": ("Pss_Anon",),
    "pool": ("Pss_Shmem",),
    "file": ("Pss_File",),
}


def cpu_time(pids: Iterable[int] = ()) -> float:
    """Seconds of processor time that this process, the children that it waited for, and some others have taken."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime + sum(cpu_seconds(pid) for pid in pids)
