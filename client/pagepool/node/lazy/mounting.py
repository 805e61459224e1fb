"""Mounts the lazy file system. As root only.

Until a `LazyServer` answers, every use of the mount waits, that of INIT included. The mount lives as long as some
process has the descriptor open and it is not unmounted. Who mounts clears the state directory that the server is to
use: what is in it belongs to the mount before.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from pagepool.errors import UnsupportedError
from pagepool.mount.device import DEVICE
from pagepool.mount.mountinfo import mounted_at, resolve

LAZY_TYPE: Final = "fuse.pagepool-lazy"
"""The file system type of the lazy mount."""
MAX_READ: Final = 1 << 20
READ_AHEAD_KIB: Final = 1024
"""A link with a round trip of 20 ms gives 6 MB/s at the kernel's 128 KiB, and 50 MB/s at this."""
STARTING_READ_AHEAD_KIB: Final = 64
"""While a container starts: of what the kernel asks for then, the next start fetches all (docs/benchmarks.md)."""

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)


def mount_lazy(at: Path) -> int:
    """Mount the lazy file system.

    Args:
        at: an existing directory, which only root can reach: whoever can look into it makes the node fetch.

    Returns:
        the FUSE device, not inherited by programs that are started.

    Raises:
        UnsupportedError: there is no FUSE.
        OSError: it cannot be mounted there.
    """
    if not DEVICE.exists():
        raise UnsupportedError(f"there is no {DEVICE}: the lazy mount needs the kernel's module fuse")
    path = resolve(at)
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        _mount(path, descriptor)
    except OSError:
        os.close(descriptor)
        raise
    set_read_ahead(path)
    return descriptor


def mount_lazy_again(at: Path, descriptor: int) -> bool:
    """See that the lazy file system is mounted where it was. Asks nothing of it.

    Somebody may have unmounted it, with all that is FUSE for one: overlays go on with it, but no further one can be
    made, and no server could `settle`. The kernel mounts the same file system for the same device.

    Args:
        at: as it was given to `mount_lazy`.
        descriptor: the device that it gave.

    Returns:
        whether it had to be mounted.

    Raises:
        OSError: there is no such file system any more, because nothing had it mounted or its connection was aborted.
    """
    path = resolve(at.parent) / at.name  # a dead mount cannot be resolved
    point = mounted_at(path)
    if point is not None and point.type == LAZY_TYPE:
        return False
    _mount(path, descriptor)
    return True


def _mount(path: Path, descriptor: int) -> None:
    # allow_other: overlayfs asks with the credentials of whoever mounted the overlay.
    data = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={MAX_READ}"
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    if _libc.mount(b"pagepool-lazy", os.fsencode(path), LAZY_TYPE.encode(), flags, data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def settle(at: Path) -> None:
    """Have the kernel learn, from a file that is opened and closed, that it need not tell of that ever again.

    Else the first close(2) of a large object is a question; and if that is done by a process that starts a program
    (which closes what it inherited while the one that started it stands still), by the one that serves at that, nobody
    is left to answer it. To be called once for each mount, when it is served. Blocks until it is.
    """
    os.close(os.open(at / "probe", os.O_RDONLY | os.O_CLOEXEC))


def set_read_ahead(at: Path, kib: int = READ_AHEAD_KIB) -> None:
    """Have the kernel read ahead so much of files that are opened from now on. Nothing is asked of the mount.

    Has to be done before INIT is answered, too, whose answer can only lower it.
    """
    point = mounted_at(resolve(at.parent) / at.name)
    if point is not None:
        major, minor = point.device
        with suppress(OSError):  # without it reading is slower, that is all
            Path(f"/sys/class/bdi/{major}:{minor}/read_ahead_kb").write_text(f"{kib}\n")
