"""Reading without leaving pages in memory: `read_uncached`."""

from __future__ import annotations

import errno
import os
from typing import Final

_DONTCACHE: Final = 0x80  # RWF_DONTCACHE, linux/fs.h


def read_uncached(descriptor: int, buffer: bytearray, offset: int) -> int:
    """Read, and have the kernel drop the pages that it had to bring in for it (Linux 6.14; else they stay).

    Returns:
        bytes read; fewer than asked for only at the end of the file.
    """
    view, done = memoryview(buffer), 0
    flags = _DONTCACHE
    while done < len(buffer):
        try:
            got = os.preadv(descriptor, [view[done:]], offset + done, flags)
        except OSError as error:
            if not flags or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            flags = 0
            continue
        if not got:
            break
        done += got
    return done
