"""Errors as errno: the one table from what a file system raises to what a system call returns.

Content that cannot be had is EIO, whatever the reason: never "no such file", which a program would believe.
"""

from __future__ import annotations

import errno
from typing import Final

from pagepool import errors

ERRNOS: Final[dict[type[BaseException], int]] = {
    errors.InvalidError: errno.EIO,
    errors.LimitError: errno.EIO,
    errors.NotFoundError: errno.EIO,
    errors.DigestMismatchError: errno.EIO,
    errors.CorruptError: errno.EIO,
    errors.UnreachableError: errno.EIO,
    errors.UnauthorizedError: errno.EIO,
    errors.DeniedError: errno.EIO,
    errors.StoreFullError: errno.ENOSPC,
    errors.ReadOnlyError: errno.EROFS,
    errors.PendingError: errno.EIO,
    errors.BusyError: errno.EIO,
    errors.StoreFormatError: errno.EIO,
    errors.UnsupportedError: errno.EIO,
    errors.ResponseError: errno.EIO,
    errors.ContainerError: errno.EIO,
    MemoryError: errno.ENOMEM,
}
"""A class stands for its subclasses too, unless they have a line of their own. What is not here is EIO."""

_HIGHEST: Final = 511
"""The kernel takes no higher errno."""

_OF_READING: Final = frozenset(
    {errno.EISDIR, errno.EINVAL, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.EOVERFLOW, errno.EINTR, errno.ENXIO}
)
"""What reading a file that is open may give. Anything else comes from what stands behind it, such as a file of the
pool that is not there, and says nothing that the reader could understand."""


def to_errno(error: BaseException) -> int:
    """The errno of an error of a file system."""
    if isinstance(error, OSError):
        number = error.errno
        if number == errno.ENOSYS:
            return errno.EOPNOTSUPP  # ENOSYS has a meaning of its own to the kernel: never ask again
        return number if number is not None and 0 < number <= _HIGHEST else errno.EIO
    for kind in type(error).__mro__:
        if kind in ERRNOS:
            return ERRNOS[kind]
    return errno.EIO


def to_read_errno(error: BaseException) -> int:
    """The errno of an error while content was read."""
    number = to_errno(error)
    return number if number in _OF_READING else errno.EIO


def is_refusal(error: BaseException) -> bool:
    """Whether an error is an ordinary answer of a file system, of which nobody need be told in a log."""
    return isinstance(error, OSError) and error.errno is not None and error.errno != errno.EIO
