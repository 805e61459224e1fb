"""Mounting an EROFS image: from its file, or by a loop device where that cannot be.

The kernel mounts a file since 6.12, if its file system can be read past the page cache of the file: ext4, XFS and btrfs
can, tmpfs cannot. One image mounted twice is two file systems, with every page twice: mount it once, and share that.
"""

from __future__ import annotations

import enum
import errno
import os
from typing import TYPE_CHECKING, Final

from pagepool.linux import mounts
from pagepool.mount.kernel.loop import open_loop

if TYPE_CHECKING:
    from pathlib import Path

KIND: Final = "erofs"
# Programs run through overlays of it, whose own attributes count: nothing has to be run here.
_ATTRIBUTES: Final = (
    mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC | mounts.ATTR_NOATIME
)
_FLAGS: Final = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
_NO_FILE: Final = (errno.ENOTBLK, errno.EINVAL, errno.EOPNOTSUPP)
"""What says that a file cannot be mounted, or that something else is wrong: a loop device tells which."""


class ErofsWay(enum.Enum):
    """How an image can be mounted."""

    FILE = "file"
    LOOP = "loop device"


def mount_erofs(image: Path, at: Path, *, way: ErofsWay | None = None) -> ErofsWay:
    """Mount an image, read-only.

    The mount has nosuid, nodev and noexec: it is there to be a layer, and what is run is run through the overlay.

    Args:
        image: the file. It may be unlinked afterwards, and must not be changed.
        at: an existing directory.
        way: how; None: from the file if possible.

    Returns:
        how it was mounted.

    Raises:
        UnsupportedError: it needs a loop device, and there are none.
        OSError: it cannot be mounted; the text says what the kernel said. Nothing is left.
    """
    source = image.absolute()
    if way is not ErofsWay.LOOP:
        try:
            _mount(source, at)
        except OSError as error:
            if way is not None or error.errno not in _NO_FILE:
                raise
        else:
            return ErofsWay.FILE
    loop = open_loop(source, read_only=True)
    try:
        _mount(loop.path, at)
    finally:
        os.close(loop.descriptor)
    return ErofsWay.LOOP


def _mount(source: Path, at: Path) -> None:
    try:
        context = mounts.FileSystemContext(KIND)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        mounts.mount(source, at, KIND, _FLAGS)
        return
    with context:
        if len(os.fsencode(source)) > mounts.MAX_STRING:
            mounts.mount(source, at, KIND, _FLAGS)
            return
        context.set_string("source", source)
        context.set_flag("ro")  # a loop device that is read-only is not opened otherwise
        context.create()
        descriptor = context.mount(_ATTRIBUTES)
        try:
            mounts.move_mount(descriptor, at)
        finally:
            os.close(descriptor)
