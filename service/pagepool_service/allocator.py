"""Tell glibc's allocator what kind of process this is.

One that passes megabytes around keeps them (`keep_large_blocks`). By default a block of 128 KiB or more comes from mmap
and goes back at once, so every chunk that is inflated, compressed or rebuilt is faulted in anew, page by page: a third
of all page faults of ingest, and 5 % of its processor time.

One that answers requests in many threads has one arena (`share_one_arena`). By default each thread gets its own, up to
eight for a processor, and what has been freed in one is of no use to the others: with 32 clients a worker had 79 MB
after four minutes, and 60 with one arena. What was done in that time differed no more than it does from run to run.
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
    return share_one_arena() and _set(
        (_M_MMAP_THRESHOLD, 32 << 20),
        (_M_TRIM_THRESHOLD, 64 << 20),
        (_M_TOP_PAD, 4 << 20),
    )


def share_one_arena() -> bool:
    """Let threads that begin from now on share the memory that others have freed. Returns as above."""
    return _set((_M_ARENA_MAX, 1))


def give_back() -> None:
    """Return freed memory to the system: before a process has nothing to do for a while."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set(*settings: tuple[int, int]) -> bool:
    mallopt = getattr(_libc, "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in settings)
