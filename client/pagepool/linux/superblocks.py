"""Mounted file systems by their device number: which one is seen at a path, and whether one is still there.

Both are answered without a look at the list of mounts, which takes the longer the more there are, and without asking
the file system itself anything, so that nobody has to serve it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from typing import TYPE_CHECKING, Final

from pagepool.linux.calls import call

if TYPE_CHECKING:
    from pathlib import Path

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_STATX_DONT_SYNC: Final = 0x4000
_MOUNT_ROOT: Final = 0x2000
_USTAT: Final = {"x86_64": 136, "ppc64le": 62, "s390x": 62}
"""The number of ustat(2) by machine; newer architectures have none."""


class _Statx(ctypes.Structure):
    # struct statx; only these fields are looked at.
    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("_to_attributes_mask", ctypes.c_char * 40),
        ("attributes_mask", ctypes.c_uint64),
        ("_to_device", ctypes.c_char * 72),
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("_rest", ctypes.c_char * 112),
    )


def mounted_device(path: Path) -> tuple[int, int] | None:
    """The device, major and minor number, of the file system that is mounted at a path.

    Args:
        path: absolute; a symlink at its end is not followed.

    Returns:
        None if nothing is mounted just there, or the kernel does not say (before Linux 5.8).

    Raises:
        OSError: there is no such path.
    """
    found = _Statx()
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    arguments = (_AT_FDCWD, os.fsencode(path), flags, ctypes.c_uint(0), ctypes.byref(found))
    try:
        call("statx", *arguments, path=path)
    except AttributeError:  # this libc has no such function
        return None
    is_root = found.attributes & found.attributes_mask & _MOUNT_ROOT
    return (found.major, found.minor) if is_root else None


def is_gone(device: tuple[int, int]) -> bool:
    """Whether no file system has a device number any more: nothing can have it mounted then, in any mount namespace.

    Returns:
        False where that cannot be told, too. The number may have become another file system's since.
    """
    number = _USTAT.get(platform.machine())
    if number is None or sys.maxsize < 1 << 32:  # a 32-bit program has other numbers
        return False
    try:
        call("syscall", ctypes.c_long(number), ctypes.c_ulong(os.makedev(*device)), ctypes.byref(_Ustat()))
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


class _Ustat(ctypes.Structure):
    # struct ustat
    _fields_ = (
        ("free", ctypes.c_long),
        ("inodes", ctypes.c_ulong),
        ("name", ctypes.c_char * 12),
        ("_spare", ctypes.c_char * 16),
    )
