"""Limits on what a directory takes: project quotas of XFS and ext4, by FS_IOC_FSSETXATTR and quotactl_fd(2) (5.14).

A project is a number that files have, and that new files take from their directory. Nothing can be renamed or linked
from one project into another, so that a directory and all that is moved about in it has to be one project: an
overlay's upper and work, for example.

Works where the file system was mounted with ``prjquota``, on ext4 also made with ``-O project -E quotatype=prjquota``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.errors import UnsupportedError
from pagepool.linux.calls import call
from pagepool.linux.directories import walk_from_below

if TYPE_CHECKING:
    from pathlib import Path

_QUOTACTL_FD: Final = 443
_GET_QUOTA: Final = 0x800007
_SET_QUOTA: Final = 0x800008
_PROJECT: Final = 2
_BLOCK_LIMITS: Final = 1
_KIB: Final = 1024
_GET_XATTR: Final = 0x801C581F
_SET_XATTR: Final = 0x401C5820
_INHERIT: Final = 0x200
_NO_QUOTA: Final = (errno.ESRCH, errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV)


class _FileAttributes(ctypes.Structure):
    # struct fsxattr
    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("extsize", ctypes.c_uint32),
        ("nextents", ctypes.c_uint32),
        ("project", ctypes.c_uint32),
        ("cowextsize", ctypes.c_uint32),
        ("pad", ctypes.c_char * 8),
    )


class _Quota(ctypes.Structure):
    # struct if_dqblk
    _fields_ = (
        ("block_hard", ctypes.c_uint64),
        ("block_soft", ctypes.c_uint64),
        ("space", ctypes.c_uint64),
        ("inode_hard", ctypes.c_uint64),
        ("inode_soft", ctypes.c_uint64),
        ("inodes", ctypes.c_uint64),
        ("block_time", ctypes.c_uint64),
        ("inode_time", ctypes.c_uint64),
        ("valid", ctypes.c_uint32),
    )


class QuotaUsage(NamedTuple):
    """What a project takes.

    Args:
        used: bytes on disk.
        limit: most bytes; 0: there is no limit.
        files: how many files.
    """

    used: int
    limit: int
    files: int


def set_quota(directory: Path, limit: int, project: int) -> None:
    """Make a directory a project, with all that is in it, and limit what it takes.

    Args:
        directory: better empty: symlinks and device nodes that are in it stay outside of the project, and cannot be
            moved about in it. Nothing in it may be moved meanwhile.
        limit: bytes on disk, counted in KiB; 0: no limit.
        project: a number that nothing else on this file system has, not 0.

    Raises:
        UnsupportedError: the file system has no project quotas, or they are not turned on.
        OSError: EPERM and others.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # The limit first: where there are no quotas nothing was changed.
        wanted = _Quota(block_hard=-(-limit // _KIB), valid=_BLOCK_LIMITS)
        _control(descriptor, _SET_QUOTA, project, wanted)
        for found in walk_from_below(directory):
            for name in found.others:
                _assign_file(found.descriptor, name, project)
            _assign(found.descriptor, project, inherit=True)
    except OSError as error:
        raise _explain(error, directory) from error
    finally:
        os.close(descriptor)


def quota_usage(directory: Path, project: int) -> QuotaUsage:
    """What a project takes on the file system of a directory.

    Raises:
        UnsupportedError: as `set_quota`.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = _Quota()
        _control(descriptor, _GET_QUOTA, project, found)
        return QuotaUsage(found.space, found.block_hard * _KIB, found.inodes)
    except OSError as error:
        raise _explain(error, directory) from error
    finally:
        os.close(descriptor)


def project_of(directory: Path) -> int:
    """The project that a directory is, 0 if none."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return int(_attributes(descriptor).project)
    except OSError as error:
        if error.errno in _NO_QUOTA:
            return 0
        raise
    finally:
        os.close(descriptor)


def _control(descriptor: int, command: int, project: int, quota: _Quota) -> None:
    number = ctypes.c_uint(command << 8 | _PROJECT)
    call("syscall", ctypes.c_long(_QUOTACTL_FD), descriptor, number, ctypes.c_uint(project), ctypes.byref(quota))


def _assign_file(at: int, name: str, project: int) -> None:
    """Links and devices are left out: they cannot be opened for it, and take no blocks of their own to speak of."""
    if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
        return
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    try:
        _assign(descriptor, project, inherit=False)
    finally:
        os.close(descriptor)


def _attributes(descriptor: int) -> _FileAttributes:
    data = bytearray(ctypes.sizeof(_FileAttributes))
    fcntl.ioctl(descriptor, _GET_XATTR, data)
    return _FileAttributes.from_buffer(data)


def _assign(descriptor: int, project: int, *, inherit: bool) -> None:
    found = _attributes(descriptor)
    found.project = project
    if inherit:
        found.flags |= _INHERIT
    fcntl.ioctl(descriptor, _SET_XATTR, bytes(found))


def _explain(error: OSError, directory: Path) -> Exception:
    if error.errno in _NO_QUOTA:
        return UnsupportedError(
            f"the file system of {directory} has no project quotas: it takes XFS or ext4, mounted with prjquota, and a "
            "kernel that has them for it"
        )
    return OSError(error.errno, error.strerror, str(directory))
