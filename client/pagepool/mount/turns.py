"""Whose turn it is to unmount at a path, or to mount there.

umount2(2) takes a path, and unmounts whatever is seen there by then. Two programs of ours that both saw the same mount
would so unmount that and the one below it, which may be anybody's. Hence each looks and unmounts in a turn of its own.
So does whoever mounts by the kernel: two that found nothing there would otherwise hide one another's.

A turn is a lock on a byte of one file, whose place is a hash of the path: nothing is left behind for a path. It ends
with the process that has it. Never wait in a turn for another process: that may want one.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from pagepool.errors import DeniedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILE: Final = "turns"
_FLOCK: Final = "hhqqi4x"
"""struct flock with 64-bit offsets."""


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Have one's turn at a path for the length of the block. Blocks while somebody else has it, in any thread.

    Without a lock where the directory of records cannot be had: whoever may unmount must not be kept from it.

    Args:
        path: resolved.
    """
    descriptor = -1
    with suppress(OSError, DeniedError):
        from pagepool.mount.records import default_directory, ready_directory

        directory = ready_directory(default_directory())
        descriptor = os.open(directory / _FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if descriptor < 0:
        yield
        return
    try:
        at = zlib.crc32(os.fsencode(path))
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0))
        yield
    finally:
        os.close(descriptor)
