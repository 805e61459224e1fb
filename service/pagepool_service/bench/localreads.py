"""Hot reads of pages in this process: through the library, beside `os.pread` of a plain file with the same bytes.

Both read the same random pages of the same content, all of it in the page cache. A round is as many reads as take some
tenths of a second; rounds take turns, and the medians count.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from pagepool.image import Kind
from pagepool.vfs import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pagepool.vfs import Rootfs

READS = 100_000
ROUNDS = 7
_SEED = 1


@dataclass(frozen=True, slots=True)
class PageTimes:
    """Nanoseconds for one read of 4 KiB.

    Args:
        view: `RawFile.view`: a view of the pool's page.
        pread: `RawFile.pread`: bytes.
        plain: `os.pread` of a plain file.
        plain_mapped: a slice of the plain file's own mapping, copied to bytes: what the interpreter can do at all.
    """

    view: float
    pread: float
    plain: float
    plain_mapped: float


def measure_pages(root: Rootfs, copy: Path) -> PageTimes:
    """Read pages of the largest file in a root file system.

    Args:
        copy: where to write the plain file.
    """
    path = largest_file(root)
    copy.write_bytes(root.read_bytes(path))
    pages = copy.stat().st_size // PAGE_SIZE
    chosen = random.Random(_SEED).choices(range(pages), k=READS)
    offsets = [page * PAGE_SIZE for page in chosen]
    fd = os.open(copy, os.O_RDONLY)
    try:
        with root.open(path, "rb", buffering=0) as file:
            whole = memoryview(copy.read_bytes())
            rounds: dict[str, Callable[[], float]] = {
                "view": lambda: _round(offsets, lambda offset: file.view(offset, PAGE_SIZE)),
                "pread": lambda: _round(offsets, lambda offset: file.pread(PAGE_SIZE, offset)),
                "plain": lambda: _round(offsets, lambda offset: os.pread(fd, PAGE_SIZE, offset)),
                "plain_mapped": lambda: _round(offsets, lambda offset: bytes(whole[offset : offset + PAGE_SIZE])),
            }
            times: dict[str, list[float]] = {name: [] for name in rounds}
            for _ in range(ROUNDS):
                for name, run in rounds.items():
                    times[name].append(run())
    finally:
        os.close(fd)
    return PageTimes(**{name: median(found) for name, found in times.items()})


def largest_file(root: Rootfs) -> bytes:
    """The path of the largest regular file."""
    best, size = b"", -1
    for directory, _, names in root.walk(b"/"):
        for name in names:
            path = directory.rstrip(b"/") + b"/" + name
            found = root.lstat(path)
            if found.kind is Kind.REGULAR and found.size > size:
                best, size = path, found.size
    return best


def _round(offsets: Sequence[int], read: Callable[[int], object]) -> float:
    """Nanoseconds for each read. The call of `read` is in it, for all of them alike."""
    begun = time.perf_counter_ns()
    for offset in offsets:
        read(offset)
    return (time.perf_counter_ns() - begun) / len(offsets)
