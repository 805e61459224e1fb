"""Kernel mounts of ours: which there are, and taking them away."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.linux import OVERLAY, file_system, mounts
from pagepool.linux.superblocks import mounted_device
from pagepool.mount.holders import MountUnknownError, in_use
from pagepool.mount.kernel import erofs, stack
from pagepool.mount.mountinfo import MountPoint, mount_points, mounted_at, resolve
from pagepool.mount.turns import turn

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class KernelMount:
    """An overlay, or the metadata of a tree.

    Args:
        path: where.
        kind: ``overlay`` or ``erofs``.
        source: of an overlay, what it is of; of EROFS its file, or the loop device.
        device: major and minor number.
        read_only: whether nothing can be written.
    """

    path: Path
    kind: str
    source: str
    device: tuple[int, int]
    read_only: bool


def list_kernel_mounts(run: Path | None = None) -> list[KernelMount]:
    """Overlays of ours in this mount namespace, and what of EROFS is mounted below a directory, as they were made.

    Args:
        run: the directory; None: overlays only.
    """
    below = None if run is None else resolve(run)
    return [found for point in mount_points() if (found := _ours(point, below)) is not None]


def unmount_kernel(at: Path, *, force: bool = False, known: Container[tuple[int, int]] = ()) -> tuple[int, int] | None:
    """Unmount an overlay of ours, or an EROFS, once whoever else of ours unmounts at this path is done.

    Args:
        at: where.
        force: also if it is in use: whoever uses it keeps it, and nobody else gets at it.
        known: devices that overlays of ours are noted to have; else that is looked up in the list of mounts, which
            takes the longer the more there are.

    Returns:
        the device of what was unmounted, if the kernel says which that was.

    Raises:
        MountUnknownError: nothing of that kind is mounted there.
        BusyError: it is in use; the error names the processes that can be seen to use it.
        OSError: it may not be unmounted.
    """
    target = resolve(at)
    try:
        with turn(target):
            device = _seen_device(target)
            # Numbers are given again: what is noted of a mount that is gone may be somebody else's by now.
            if device not in known or file_system(target) != OVERLAY:
                point = mounted_at(target)
                if point is None or _ours(point, target) is None:
                    raise MountUnknownError(target)
            mounts.unmount(target, mounts.MNT_DETACH if force else 0)
            return device
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise OSError(error.errno, error.strerror, str(target)) from None
        raise in_use(target) from None


def _seen_device(path: Path) -> tuple[int, int] | None:
    try:
        return mounted_device(path)
    except OSError:
        return None


def _ours(point: MountPoint, below: Path | None) -> KernelMount | None:
    path, kind, source, device, read_only = point
    if kind == stack.KIND and source.startswith(stack.PREFIX):
        return KernelMount(path, kind, source.removeprefix(stack.PREFIX), device, read_only)
    if kind == erofs.KIND and below is not None and path.is_relative_to(below):
        return KernelMount(path, kind, source, device, read_only)
    return None
