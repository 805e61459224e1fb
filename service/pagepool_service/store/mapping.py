"""Drop a mapped file from this process's page tables.

LMDB maps its whole file. Pages that were read through the map count as resident memory of the process until
the kernel reclaims them, though they are the page cache's, and a service that has served 4 GiB would look
(and be accounted in its cgroup's statistics by some tools) as if it held 4 GiB. MADV_DONTNEED on a shared
file mapping only forgets the translations: a later read faults the page back in from the page cache. Safe
while other threads read.

How much is mapped cannot be told from what was read: a fault maps the pages around it, too, so a look-up of a few
bytes in a large index may map 64 KiB. The kernel's own count tells.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_MADV_DONTNEED = 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class MappedFile:
    """A file that this process has mapped, looked up in /proc/self/maps when first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start: int | None = None
        self._pid = 0

    def trim(self, most: int) -> bool:
        """Forget the resident pages of the mapping if this process has more than `most` bytes of any files mapped.

        Takes a few microseconds when there is nothing to do. Returns whether they were forgotten.
        """
        try:
            # Fields of statm count pages; the third is what is backed by files. By name: a descriptor that stays open
            # would be of the process that opened it.
            statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
            try:
                pages = int(os.read(statm, 256).split(None, 3)[2])
            finally:
                os.close(statm)
        except OSError:  # no descriptor left: better once too often
            return self.release()
        return pages * mmap.PAGESIZE > most and self.release()

    def release(self) -> bool:
        """Forget the resident pages of the mapping. Returns whether they were.

        Nothing is raised where that cannot be done, for want of descriptors, or of /proc: what was committed before
        counts, and the next look is another try.
        """
        try:
            if self._start is None or self._pid != os.getpid():
                self._start, self._pid = self._find(), os.getpid()
            if self._start is None:
                return False
            size = self._path.stat().st_size
        except OSError:
            return False
        return bool(_libc.madvise(self._start, size, _MADV_DONTNEED) == 0)

    def _find(self) -> int | None:
        wanted = os.path.realpath(self._path)
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == wanted and int(fields[2], 16) == 0:
                return int(fields[0].partition("-")[0], 16)
        return None
