"""System calls that Python does not wrap, as functions that raise OSError."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
from functools import cache
from pathlib import Path

# File systems by their number in statfs(2).
TMPFS = 0x01021994
OVERLAY = 0x794C7630
RAMFS = 0x858458F6
BTRFS = 0x9123683E
BCACHEFS = 0xCA451A4E
ZFS = 0x2FC12FC1

_FICLONE = 0x40049409
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
_NO_COW = 0x00800000
_SYS_ADMIN = 21
_INITIAL_USERS = ["0", "0", "4294967295"]


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object, path: object = None) -> int:
    """Call a function of libc that returns -1 and sets errno when it fails. Releases the GIL.

    Args:
        path: what the error names; None: the function.
    """
    result = int(getattr(_libc(), name)(*arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path or name))
    return result


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def syncfs(descriptor: int) -> None:
    """Write all of a file system to its disk, and wait for it."""
    call("syncfs", descriptor)


def boot_id() -> bytes:
    """The 16 bytes that name the running kernel's boot."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


class _Statfs(ctypes.Structure):
    # struct statfs begins with the type, as a long on x86-64, arm64 and riscv64; the rest is not looked at.
    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_char * 248))


def file_system(where: Path | int) -> int:
    """The number of the file system that a path or an open file is on."""
    found = _Statfs()
    if isinstance(where, int):
        call("fstatfs", where, ctypes.byref(found))
    else:
        call("statfs", os.fsencode(where), ctypes.byref(found))
    return int(found.type) & 0xFFFFFFFF


def in_memory(path: Path) -> bool:
    """Whether a directory is on a file system that a reboot empties: tmpfs or ramfs."""
    return file_system(path) in (TMPFS, RAMFS)


def stay_in_place(descriptor: int) -> None:
    """Ask for a new, empty file to be written over where it lies, also on a file system that writes what is changed to
    another place (btrfs): then that needs no room on a full disk. Others need not be asked, and do not know it."""
    with contextlib.suppress(OSError):
        flags = bytearray(8)
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        wanted = int.from_bytes(flags[:4], sys.byteorder) | _NO_COW
        fcntl.ioctl(descriptor, _SET_FLAGS, wanted.to_bytes(4, sys.byteorder) + bytes(4))


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def words_of(error: OSError, directory: Path | str) -> str:
    """What an error says, and of a disk that is full but for its blocks that no inodes are left, which `df` hides.

    Args:
        directory: on that disk.
    """
    words = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        with contextlib.suppress(OSError):
            disk = os.statvfs(directory)
            if disk.f_files and not disk.f_favail and disk.f_bavail:
                return f"{words}: no inodes are left (df -i)"
    return words


def can_reflink(directory: Path) -> bool:
    """Whether files of a directory's file system can share their blocks (FICLONE); tried on two nameless files.

    Raises:
        OSError: no file can be made there.
    """
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    source = os.open(directory, flags, 0o600)
    try:
        target = os.open(directory, flags, 0o600)
        try:
            os.write(source, bytes(4096))
            fcntl.ioctl(target, _FICLONE, source)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(target)
    finally:
        os.close(source)


def why_no_trusted_attributes() -> str:
    """Why this process cannot see ``trusted.`` attributes, as the end of a sentence; "" if it can.

    The kernel does not say: it leaves them out of every list.
    """
    if os.geteuid():
        return "it needs root"
    if Path("/proc/self/uid_map").read_text().split() != _INITIAL_USERS:
        return "it needs root outside of user namespaces"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:") and not int(line.split()[1], 16) >> _SYS_ADMIN & 1:
            return "it needs the capability CAP_SYS_ADMIN"
    return ""
