"""fs-verity: the kernel compares every page of a file with a tree of hashes when it is read from the disk.

Where the file system has it (ext4 with the `verity` feature, f2fs, btrfs) a file that has been sealed cannot be changed
any more, and pages that are wrong on the disk are an I/O error instead of wrong bytes. Follows the kernel's
Documentation/filesystems/fsverity.rst. A file that is open for writing anywhere cannot be sealed.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from pagepool import linux

if TYPE_CHECKING:
    from pathlib import Path

_ENABLE: Final = 0x40806685  # FS_IOC_ENABLE_VERITY
_GETFLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS
_VERITY_FLAG: Final = 0x00100000
_ARGUMENT: Final = struct.Struct("<IIIIQIIQ88x")  # struct fsverity_enable_arg
_SHA256: Final = 1
_BLOCK: Final = 4096
_CANNOT: Final = frozenset((errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ETXTBSY, errno.EPERM, errno.ENOPKG))


def seal(descriptor: int) -> bool:
    """Seal a file that is open for reading, and nowhere for writing.

    Returns:
        whether it is sealed; False if that is not possible here.

    Raises:
        OSError: it failed for another reason: the disk is full, or broken.
    """
    try:
        fcntl.ioctl(descriptor, _ENABLE, _ARGUMENT.pack(1, _SHA256, _BLOCK, 0, 0, 0, 0, 0))
    except OSError as error:
        if error.errno == errno.EEXIST:
            return True
        if error.errno in _CANNOT:
            return False
        raise
    return True


def is_sealed(descriptor: int) -> bool:
    """Whether the kernel verifies a file."""
    flags = array.array("L", [0])
    try:
        fcntl.ioctl(descriptor, _GETFLAGS, flags)
    except OSError:
        return False
    return bool(flags[0] & _VERITY_FLAG)


def protection(path: Path, *, sealed: bool) -> str:
    """What keeps a pool's objects from being read when they are wrong at rest.

    Args:
        path: the pool's directory.
        sealed: whether objects are sealed there.

    Returns:
        ``fs-verity``; ``file system`` where that has checksums of its own; ``memory`` for what is on no disk; else
        ``scrub``: nothing but `pagepool.pool.scrub`, when it comes by.
    """
    if sealed:
        return "fs-verity"
    kind = linux.file_system(path)
    if kind in (linux.TMPFS, linux.RAMFS):
        return "memory"
    return "file system" if kind in (linux.BTRFS, linux.BCACHEFS, linux.ZFS) else "scrub"


def can_seal(directory: int) -> bool:
    """Whether files in a directory can be sealed: tried with one that has no name.

    Args:
        directory: descriptor.
    """
    try:
        writing = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError:
        return False
    try:
        os.write(writing, b"x")
        descriptor = os.open(f"/proc/self/fd/{writing}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    finally:
        os.close(writing)
    try:
        return seal(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
