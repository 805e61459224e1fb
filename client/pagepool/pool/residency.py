"""How much of a file is in memory, from the kernel's own books: cachestat(2) of Linux 6.5, or mincore(2) before it."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

from pagepool import linux
from pagepool.linux import call
from pagepool.pool.layout import PAGE

_CACHESTAT = 451  # the number of the system call, on every architecture


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


@cache
def has_cachestat() -> bool:
    """Whether the running kernel knows the call."""
    try:
        _cachestat(-1, 0, 0)
    except OSError as error:
        return error.errno == errno.EBADF
    return True


def resident(descriptor: int, offset: int = 0, size: int = 0) -> int:
    """Bytes of a file's range that are in memory, in whole pages.

    Args:
        descriptor: of a file that this user owns: of others the kernel does not tell.
        offset: where the range begins, at a page.
        size: its bytes; 0 for the rest of the file.
    """
    if has_cachestat():
        found = _cachestat(descriptor, offset, size) * PAGE
        # An overlay's files have no pages of their own: a mapping shows those of the file below.
        if found or linux.file_system(descriptor) != linux.OVERLAY:
            return found
    return _mincore(descriptor, offset, size or os.fstat(descriptor).st_size - offset)


def _cachestat(descriptor: int, offset: int, size: int) -> int:
    counts = _Counts()
    call(
        "syscall",
        ctypes.c_long(_CACHESTAT),
        ctypes.c_uint(descriptor & 0xFFFFFFFF),
        ctypes.byref(_Range(offset, size)),
        ctypes.byref(counts),
        ctypes.c_uint(0),
    )
    return int(counts.cached)


def _mincore(descriptor: int, offset: int, size: int) -> int:
    if size <= 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    address = libc.mmap(None, size, 1, 1, descriptor, offset)  # PROT_READ, MAP_SHARED
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "mmap")
    try:
        pages = (ctypes.c_ubyte * -(-size // PAGE))()
        call("mincore", ctypes.c_void_p(address), ctypes.c_size_t(size), pages)
        return sum(page & 1 for page in pages) * PAGE
    finally:
        call("munmap", ctypes.c_void_p(address), ctypes.c_size_t(size))
