"""Tell glibc's allocator that this process passes megabytes around.

By default a block of 128 KiB or more comes from mmap and goes back at once, so every chunk that is inflated,
compressed or rebuilt is faulted in anew, page by page: a third of all page faults of ingest, and 5 % of its
processor time.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None)


def keep_large_blocks() -> bool:
    """Keep freed blocks of up to 32 MiB for the next, in one place. Returns whether the C library knows how.

    One arena: with one for each thread, what a thread has freed is kept for it alone.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, 32 << 20),
        (_M_TRIM_THRESHOLD, 64 << 20),
        (_M_TOP_PAD, 4 << 20),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)


def give_back() -> None:
    """Return freed memory to the system: before a process has nothing to do for a while."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
